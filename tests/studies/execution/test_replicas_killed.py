"""A study whose runs are trained as replicas is killed with all its processes, and ends bit for bit all the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = (
    "compare digits-mlp:600 --methods sngd,scsg --seeds 4 --epochs 30 --batch-size 13 --eval-every 3 --output random"
)
KILLS = 2


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "sngd", *WORDS.split(), "--jobs", "2", "--out", str(folder)]


def rows(folder: Path):
    found = {}
    for path in sorted(folder.rglob("metrics.jsonl")):
        own = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found[str(path.relative_to(folder))] = [{k: v for k, v in row.items() if k != "seconds"} for row in own]
    return found


def begun(folder: Path) -> int:
    """How many checkpoints there are."""
    return len(list(folder.rglob("checkpoint.pt")))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_with_all_its_processes_a_study_of_replicas_ends_alike(tmp_path):
    done = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True, check=True)
    assert "8 runs: 2 processes, each training 2 at a time with " in done.stderr
    true = rows(tmp_path / "whole")
    assert len(true) == 8
    for kill in range(KILLS):
        folder = tmp_path / f"killed-{kill}"
        process = subprocess.Popen(
            command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while begun(folder) < 1 + 4 * kill and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2 * kill)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        subprocess.run(command(folder), capture_output=True, check=True)
        assert rows(folder) == true
