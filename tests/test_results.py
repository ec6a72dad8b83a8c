"""What is committed is small, plainly named, and whole."""

import subprocess
from pathlib import Path

import pytest

from sngd.studies.packed import is_packed
from sngd.studies.runs import all_runs, study_folders

ROOT = Path(__file__).parent.parent
MOST_FILES, MOST_BYTES, LARGEST_PICTURE = 120, 4_100_000, 300_000


def tracked() -> list[str]:
    """Every name that git tracks, as it is."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [name.decode() for name in listed.split(b"\0") if name]


def test_every_tracked_name_is_plain_ascii():
    assert [name for name in tracked() if not name.isascii()] == []


def test_results_are_few_small_files():
    files = [ROOT / name for name in tracked() if name.startswith("results/")]
    assert len(files) <= MOST_FILES
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_no_picture_is_large_and_none_is_there_twice():
    pictures = [ROOT / name for name in tracked() if name.startswith("results/") and name.endswith((".png", ".svg"))]
    assert pictures
    assert [path for path in pictures if path.stat().st_size > LARGEST_PICTURE] == []
    assert len({path.with_suffix("") for path in pictures}) == len(pictures)


def test_every_committed_study_is_packed():
    studies = study_folders(ROOT / "results")
    assert studies
    assert [study for study in studies if not is_packed(study)] == []


# The commit that wrote down what a study measures, see docs/reproduction.md.
WRITTEN_DOWN = dict.fromkeys(
    (
        *("fig2", "fig3", "fig4", "alternatives", "counting", "spider-sizes", "large-batches", "reduced-variance"),
        *("variation/mnist-batch-32", "variation/mnist-batch-128"),
    ),
    "54c63f0",
) | {"variation/resnet8": "c3d9233"}


@pytest.mark.parametrize("study", WRITTEN_DOWN)
def test_runs_are_younger_than_what_was_written_down(study):
    written = WRITTEN_DOWN[study]
    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        pytest.skip("no git checkout with its history")
    assert git("diff", "--name-only", f"{written}~", written).stdout.split()[0] == "docs/reproduction.md"
    commits = {run.environment["commit"] for run in all_runs(ROOT / "results" / "small" / study)}
    assert commits
    for commit in commits:
        clean = str(commit).removesuffix("-dirty")
        assert git("merge-base", "--is-ancestor", written, clean).returncode == 0, commit
        assert clean != git("rev-parse", written).stdout.strip()


def git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
