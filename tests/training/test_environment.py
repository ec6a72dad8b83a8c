import json
import subprocess

import pytest

from sngd.training.environment import commit_of, environment


@pytest.fixture
def package(tmp_path):
    """A package in a checkout with one commit."""
    package = tmp_path / "checkout" / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package, "init", "--quiet")
    git(package, "add", ".")
    git(package, "commit", "--quiet", "--message=first")
    yield package
    commit_of.cache_clear()


def git(folder, *words):
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    return subprocess.run(["git", "-C", folder, *author, *words], check=True, capture_output=True, text=True).stdout


def test_the_environment_is_plain_json():
    found = json.loads(json.dumps(environment()))
    assert {"sngd", "commit", "torch", "python", "processor", "instructions", "cores"} <= found.keys()


def test_the_commit_is_the_checkouts(package):
    head = git(package, "rev-parse", "HEAD").strip()
    assert len(head) == 40
    (package.parents[1] / "notes.md").write_text("not of the package")
    assert commit_of(package) == head


@pytest.mark.parametrize("name", ["__init__.py", "new.py"])
def test_a_file_of_the_package_that_differs_from_the_commit_is_said(package, name):
    (package / name).write_text("x = 1")
    assert commit_of(package) == git(package, "rev-parse", "HEAD").strip() + "-dirty"


def test_a_package_that_is_installed_in_another_projects_checkout_has_no_commit(package):
    installed = package.parents[1] / ".venv" / "sngd"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit_of(installed) is None


def test_a_package_in_no_checkout_has_no_commit(tmp_path):
    assert commit_of(tmp_path) is None


def test_without_git_there_is_no_commit(package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit_of(package) is None
