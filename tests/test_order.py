"""Slow tests really run last, with and without parallel workers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

A_FOLDER_OF_TESTS = """
import os
from pathlib import Path

import pytest

KINDS = [pytest.param("slow", marks=pytest.mark.slow), "fast", "fast", "fast"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", range(6))
def test_that_leaves_a_line(kind, n):
    with Path("worker-" + os.environ.get("PYTEST_XDIST_WORKER", "0")).open("a") as log:
        log.write(f"{kind} {n}\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_slow_tests_come_last_and_others_keep_their_order(tmp_path, workers):
    for name in ("conftest.py", "forked.py"):
        shutil.copy(Path(__file__).parent / name, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "test_some.py").write_text(A_FOLDER_OF_TESTS)
    subprocess.run([sys.executable, "-m", "pytest", "-n", workers], cwd=tmp_path, check=True, stdout=subprocess.PIPE)
    logs = [path.read_text().splitlines() for path in tmp_path.glob("worker-*")]
    assert sum(len(log) for log in logs) == 24
    for log in logs:
        assert log == sorted(log, key=lambda line: ("slow" in line, line[-1]))
