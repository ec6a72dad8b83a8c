"""The time of whole commands over that of an earlier version of this package, in the same environment.

    git worktree add --detach ../before a5648df
    python benchmarks/since.py ../before [--json FILE] [--rounds 3]    # needs MNIST, see 'sngd train --help'

Each command is run by both versions in turn, round after round, with two processes at a time. Measured is the wall
time. Nothing else should run on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sngd.training.environment import commit_of, environment
from sngd.training.run_folder import write_json

HERE = Path(__file__).parents[1]
JOBS = ("--jobs", "2")


class Case(NamedTuple):
    """A command, and the largest ratio of wall times that is wanted."""

    name: str
    command: str
    goal: float
    rounds: int | None = None  # fewer than are asked for, of what takes long


_SEEDS = "compare mnist-mlp --methods {} --seeds 8 --epochs {} --batch-size {}"
CASES = (
    Case("8 seeds, batch 32", _SEEDS.format("sngd", 5, 32), 0.35),
    Case("8 seeds, batch 128", _SEEDS.format("sngd", 5, 128), 0.50),
    Case("tuning grid", "compare mnist-mlp --methods sgd,sngd,s-sngd --tune --seeds 5 --epochs 2", 0.35),
    *(Case(f"8 seeds, {name}", _SEEDS.format(name, 2, 32), 0.5) for name in ("spider-sfo", "svrg", "scsg")),
    Case("reproduce all, quick", "reproduce all --profile quick", 0.5, rounds=1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path, help="a checkout of the earlier version")
    parser.add_argument("--json", type=Path, help="write what was measured there")
    parser.add_argument("--rounds", type=int, default=3, help="how often each command is run by both versions")
    parser.add_argument("--only", help="of the cases, those whose names have this word")
    arguments = parser.parse_args()
    measured = []
    for case in CASES:
        if arguments.only and arguments.only not in case.name:
            continue
        measured.append(measure(case, arguments.before.resolve(), case.rounds or arguments.rounds))
        print(json.dumps(measured[-1]), flush=True)
        if arguments.json:
            earlier = commit_of(arguments.before / "src" / "sngd")
            write_json(arguments.json, {"environment": environment(), "before": earlier, "cases": measured})


def measure(case: Case, before: Path, rounds: int) -> dict[str, object]:
    """Median times of both versions, and the ratio of each round."""
    times: dict[Path, list[float]] = {before: [], HERE: []}
    for _ in range(rounds):
        for checkout, found in times.items():
            found.append(seconds_of(checkout, case.command.split()))
    return {
        "case": case.name,
        "command": "sngd " + case.command,
        "goal": case.goal,
        "seconds_before": round(statistics.median(times[before]), 2),
        "seconds": round(statistics.median(times[HERE]), 2),
        "wall": [round(new / old, 3) for old, new in zip(*times.values(), strict=True)],
    }


def seconds_of(checkout: Path, words: Sequence[str]) -> float:
    """What the command takes with the package of this checkout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sngd", *words, "--out", str(Path(folder) / "out"), *JOBS]
        started = time.monotonic()
        subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(checkout / "src")},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.monotonic() - started


if __name__ == "__main__":
    main()
