"""The wheel and the source distribution: built, looked into, and used where the source is not."""

import email
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import sngd

ROOT = Path(__file__).parents[1]
BUILT_FROM = [
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
    "constraints.txt",
]
pytestmark = pytest.mark.slow

BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2])
"""


def build(kind, source, folder):
    """A wheel or an sdist of the tree ``source``, made by the backend that pyproject.toml names."""
    folder.mkdir()
    command = [sys.executable, "-c", BUILD, kind, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    tree = tmp_path_factory.mktemp("tree")
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return build("sdist", tree, tree / "dist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the source distribution alone."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return build("wheel", tree, folder / "dist")


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a new environment: it has the wheel and, beside it, the packages of the tests but no sngd."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not followed
    return python


def run(*words, cwd):
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_source_distribution_has_the_release_notes_and_what_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*BUILT_FROM, "src/sngd/__init__.py", "src/sngd/studies/page/style.css", "PKG-INFO"} <= names
    assert sdist.name == f"sngd-{sngd.__version__}.tar.gz"


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {
        path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "sngd").rglob("*") if path.is_file()
    }
    inside = {name for name in inside if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} == inside


def test_what_the_index_will_show(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        about = email.message_from_bytes(archive.read(name))
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("sngd", sngd.__version__, "MIT")
    assert [need for need in about.get_all("Requires-Dist") if "extra ==" not in need] == ["torch>=2.6"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (doi,) = (line.split()[1] for line in citation.splitlines() if line.strip().startswith("doi:"))
    assert f"Paper, https://doi.org/{doi}" in about.get_all("Project-URL")
    classifiers = about.get_all("Classifier")
    assert "Programming Language :: Python :: 3.11" in classifiers
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload().startswith("# sngd")


def test_the_changelog_has_a_part_for_what_comes(sdist):
    with tarfile.open(sdist) as archive:
        (name,) = [name for name in archive.getnames() if name.endswith("CHANGELOG.md")]
        notes = archive.extractfile(name).read().decode()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["dynamic"] == ["version"]
    assert "## Unreleased" in notes or f"## {sngd.__version__}" in notes


def test_it_is_used_where_the_source_is_not(python, tmp_path):
    where = run(python, "-c", "import sngd; print(sngd.__file__, sngd.__version__)", cwd=tmp_path)
    assert Path(where.split()[0]).is_relative_to(python.parents[1])
    assert where.split()[1] == sngd.__version__
    script = python.parent / "sngd"
    assert run(script, "--version", cwd=tmp_path) == f"sngd {sngd.__version__}\n"
    words = ["compare", "digits-mlp", "--methods", "sgd,sngd", "--seeds", 1, "--epochs", 1, "--jobs", 1, "--json"]
    found = json.loads(run(script, *words, cwd=tmp_path))
    assert [row["finished"] for row in found["methods"]] == [1, 1]
    assert "--hue-0" in (tmp_path / found["report"]).read_text(encoding="utf-8")
    assert (tmp_path / "runs" / "compare-digits-mlp" / "figures" / "curves.png").exists()


def test_a_type_checker_sees_its_types(python, tmp_path):
    (tmp_path / "mine.py").write_text("import sngd\nreveal_type(sngd.SNGD)\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "sngd.optim.sngd.SNGD" in done.stdout, done.stdout + done.stderr
