"""The attacks made small: nothing is found. Planted failures are. The page says what the committed run counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attacks import page
from attacks.target import CODE, CRASH, DIFFERENCE, ERROR, HANG, MEMORY, Counts

TESTS = Path(__file__).parents[1]


def attack(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it forks, which one with threads, as pytest's are, must not."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-m", "attacks", *words]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "tries"),
    [
        ("mutations magnitudes", "60"),
        ("kills", "1"),
        ("disk", "2"),
        ("hostile", "12"),
        pytest.param("studies", "1", marks=pytest.mark.timeout(900)),
    ],
)
def test_nothing_is_found(names, tries):
    result = attack(*names.split(), "--seed", "0", "--tries", tries, "--minutes", "2")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_planted_failures_are_found(tmp_path):
    result = attack("planted", "--seed", "0", "--tries", "2", "--write", str(tmp_path / "attack.json"))
    assert result.returncode == 1, result.stderr
    found = [Counts.from_json(one) for one in json.loads((tmp_path / "attack.json").read_text())["targets"]]
    assert all(counts.tried == 2 for counts in found)
    kinds = {counts.target: {f.kind: f.count for f in counts.findings.values()} for counts in found}
    assert kinds == {
        "nothing": {},
        "difference": {DIFFERENCE: 2},
        "code run": {CODE: 2},
        "error": {ERROR: 2},
        "unnamed": {ERROR: 2},
        "two lines": {ERROR: 2},
        "type": {ERROR: 2},
        "hang": {HANG: 2},
        "memory": {MEMORY: 2},
        "vast": {ERROR: 2},
        "crash": {CRASH: 2},
    }
    assert "dead\n    PYTHONPATH=tests python -m attacks --only planted/crash/0/0\n" in result.stdout


@pytest.mark.slow
def test_one_try_can_be_repeated():
    result = attack("--only", "planted/difference/0/1")
    assert result.returncode == 1
    assert json.loads(result.stdout) == {
        "kind": DIFFERENCE, "what": "planted", "place": "planted", "note": " (as planted)"
    }  # fmt: skip
    assert attack("--only", "planted/nothing/0/1").returncode == 0


def test_the_page_says_what_the_committed_run_counted():
    text = page.PAGE.read_text("utf-8")
    expected = page.filled(text, json.loads(page.REPORT.read_text("utf-8")))
    assert text == expected, "bring it up to date with: PYTHONPATH=tests python -m attacks.page"
    for name in ("all", "kills", "studies", "mutations", "hostile", "magnitudes", "disk"):
        assert f"<!-- counts: {name} -->" in text
