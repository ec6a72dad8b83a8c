"""What the documentation shows runs as it stands, and its links lead somewhere."""

import re
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest

from sngd.studies.runs import all_runs

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS.parent / "results"
PAGES = sorted(DOCS.glob("*.md"))
LIBRARY_WARNINGS = [  # that a reader of the page gets too, and that say nothing about it
    "`isinstance(treespec, LeafSpec)` is deprecated",  # lightning 2.6
    "'pin_memory' argument is set as true",  # transformers, where there is no GPU
]


def snippets(fence: str, *marks: pytest.MarkDecorator) -> list:
    found = [(page.stem, re.findall(rf"```{fence}\n(.*?)```", page.read_text(), flags=re.S)) for page in PAGES]
    return [pytest.param(text, id=f"{stem}-{n}", marks=marks) for stem, texts in found for n, text in enumerate(texts)]


LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("python"))
def test_every_snippet_runs_as_it_stands(snippet, tmp_path):
    strict = ["-W", "error", *(f"-Wignore:{start}" for start in LIBRARY_WARNINGS)]
    subprocess.run([sys.executable, *strict, "-c", snippet], cwd=tmp_path, check=True, timeout=120)


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
    assert len(fences) == len(snippets("python") + snippets("python torchrun"))


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_leads_somewhere(page, link):
    assert (page.parent / link).exists()


def test_the_noise_scales_told_are_those_of_the_run():
    (run,) = all_runs(RESULTS / "mnist-tracked")
    first, *later = [(row["noise_scale"], row["noise_scale_low"], row["noise_scale_high"]) for row in run.rows]
    known = [scale for scale, _, _ in later if scale is not None]
    text = " ".join((DOCS / "constants.md").read_text("utf-8").split())
    assert "{:.0f} [{:.0f}, {:.0f}] at initial weights".format(*first) in text
    assert f"between {min(known):.0f} and {max(known):,.0f} after that" in text
    assert [place for place, (scale, _, _) in enumerate(later, 1) if scale is None] == [8, 9]
    assert "after passes 8 and 9 the gradient cannot be told from noise" in text
    holds = [low <= 900 <= (high or inf) for _, low, high in later]
    assert holds == [True] * 7 + [False] * 3
    assert all(low > 900 for _, low, _ in later[7:])
    assert "contain 900 from the first pass to the seventh and lie above 900 later" in text
