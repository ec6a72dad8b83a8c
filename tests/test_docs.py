"""What the documentation shows runs as it stands, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LIBRARY_WARNINGS = [  # that a reader of the page gets too, and that say nothing about it
    "`isinstance(treespec, LeafSpec)` is deprecated",  # lightning 2.6
    "'pin_memory' argument is set as true",  # transformers, where there is no GPU
]


def snippets(fence: str, *marks: pytest.MarkDecorator) -> list:
    found = [(page.stem, re.findall(rf"```{fence}\n(.*?)```", page.read_text(), flags=re.S)) for page in PAGES]
    return [pytest.param(text, id=f"{stem}-{n}", marks=marks) for stem, texts in found for n, text in enumerate(texts)]


LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())]


FOR_PACKAGES = ["pytorch_optimizer", "timm"]  # which the tests' own environment need not have


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("python"))
def test_every_snippet_runs_as_it_stands(snippet, tmp_path):
    strict = ["-W", "error", *(f"-Wignore:{start}" for start in LIBRARY_WARNINGS)]
    subprocess.run([sys.executable, *strict, "-c", snippet], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("package", FOR_PACKAGES)
def test_every_snippet_for_a_package_runs_where_it_is_installed(package, tmp_path):
    installed = [sys.executable, "-c", f"import {package}"]
    if subprocess.run(installed, capture_output=True, check=False).returncode:
        pytest.skip(f"{package} is not installed")
    for snippet in snippets(f"python {package}"):
        subprocess.run([sys.executable, "-c", *snippet.values], cwd=tmp_path, check=True, timeout=120)


# torch 2.13 does so now and then as a process exits, its group destroyed, when the machine is busy.
TORCH_ABORTS = "terminate called without an active exception"


@pytest.mark.parametrize("snippet", snippets("python torchrun", pytest.mark.slow))
def test_every_snippet_for_several_processes_runs_as_it_stands(snippet, tmp_path):
    (tmp_path / "snippet.py").write_text(snippet)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "snippet.py"]
    for _ in range(3):
        result = subprocess.run(torchrun, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        if TORCH_ABORTS not in result.stderr:
            break
    assert result.returncode == 0, result.stderr


def test_no_snippet_is_left_out():
    fences = [fence for page in PAGES for fence in re.findall(r"^```(.+)$", page.read_text(), flags=re.M)]
    known = ["python", "python torchrun", *(f"python {package}" for package in FOR_PACKAGES)]
    assert len(fences) == sum(len(snippets(fence)) for fence in known)
    assert all(snippets(fence) for fence in known)


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_leads_somewhere(page, link):
    assert (page.parent / link).exists()
