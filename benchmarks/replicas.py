"""Where replicas gain on the CPU: the time of a run's step in a stack of replicas over that of a step by itself.

    python benchmarks/replicas.py [--json FILE]

Both sides use one thread and are measured in turn, in the process's own CPU time, because other processes of the
machine take wall time from one side more than from the other. ``sngd.training.replicas.alike`` has the limit that
follows from the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from sngd.problems import Problem, load_problem
from sngd.training import RunConfig
from sngd.training.environment import environment
from sngd.training.replicas.alike import operations
from sngd.training.replicas.stack import Stack
from sngd.training.run_folder import write_json
from sngd.training.run_state import RunState

REPLICAS = (2, 4, 8, 16)
REPETITIONS = 5
SECONDS = 0.1  # of each repetition


class Case(NamedTuple):
    """What is trained."""

    problem: str
    method: str
    batch_size: int


CASES = [
    *(Case("mnist-mlp", "sngd", size) for size in (8, 32, 128, 512)),
    *(Case("mnist-mlp", method, 32) for method in ("sgd", "adamw", "spider-sfo", "svrg", "scsg", "scion")),
    *(Case("digits-mlp", "sngd", size) for size in (32, 128)),
    Case("imbalanced", "sngd", 128),
    Case("saddle", "sngd", 128),
    *(Case("shakespeare-gpt", "sngd", size) for size in (1, 4, 32)),
    *(Case("convolutions-8", "sngd", size) for size in (1, 4, 16, 64)),
    *(Case("convolutions-16", "sngd", size) for size in (1, 4, 16, 64)),
]


def convolutions(channels: int) -> Problem:
    """Two layers of convolutions and a linear one, for images of 32 × 32 random pixels."""
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(2000, 3, 32, 32, generator=chance), torch.randint(10, (2000,), generator=chance)

    def build() -> nn.Module:
        first, second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, 2, padding=1)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(256 * channels, 10))

    return Problem(build, nn.functional.cross_entropy, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the ratios and their environment there")
    file = parser.parse_args().json
    torch.set_num_threads(1)
    measured = []
    for case in CASES:
        measured.append({**case._asdict(), **measure(case)})
        print(measured[-1], flush=True)
    if file:
        write_json(file, {"environment": environment(), "cases": measured})


def measure(case: Case) -> dict[str, object]:
    """Operations of a forward pass, microseconds of a step by itself, and ratios by the number of replicas."""
    name, _, channels = case.problem.partition("-")
    problem = convolutions(int(channels)) if name == "convolutions" else load_problem(case.problem)
    config = RunConfig(case.problem, case.method, lr=1e-3, batch_size=case.batch_size, epochs=1e6, threads=1)
    config = config.resolved(problem.n)
    most = max(REPLICAS) if operations(problem, case.batch_size) < 1e9 else 4
    sides: dict[int, Callable[[], None]] = {1: RunState(config, problem).step}
    for count in (count for count in REPLICAS if count <= most):
        stack = Stack([RunState(replace(config, seed=seed), problem) for seed in range(count)])
        sides[count] = lambda stack=stack, count=count: stack.step(range(count))  # type: ignore[misc]
    seconds: dict[int, list[float]] = {count: [] for count in sides}
    for _ in range(REPETITIONS):
        for count, step in sides.items():
            seconds[count].append(_seconds(step) / count)
    medians = {count: statistics.median(times) for count, times in seconds.items()}
    return {
        "operations": operations(problem, case.batch_size),
        "microseconds": round(1e6 * medians[1]),
        "ratios": {str(count): round(medians[count] / medians[1], 3) for count in sides if count > 1},
    }


def _seconds(step: Callable[[], None]) -> float:
    """CPU time of a step, the mean of as many as fit."""
    step()
    started, steps = time.process_time(), 0
    while (spent := time.process_time() - started) < SECONDS or not steps:
        step()
        steps += 1
    return spent / steps


if __name__ == "__main__":
    main()
