"""What a GPU gains from many runs at once, and from steps as CUDA graphs.

    python benchmarks/gpu.py [--json FILE]    # needs MNIST and CIFAR-10, see 'sngd train --help'

Measured are the wall times of some steps until the device has done them, all sides in turn. With `--device cpu` it runs
without a GPU, with few runs and without graphs, to see that it works.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sngd.bench.timing import Call, interleaved, ratio, spread
from sngd.problems import Problem, load_problem
from sngd.training import RunConfig
from sngd.training.environment import environment
from sngd.training.repeatable import repeatable, without_tf32
from sngd.training.replicas.stack import Stack
from sngd.training.run_folder import write_json
from sngd.training.run_state import RunState

REPLICAS = (1, 16, 64, 256)
SECONDS = 20.0  # for each comparison
PASSES = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="steps in a measurement")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each comparison")
    parser.add_argument("--json", type=Path, help="write what was measured there")
    given = parser.parse_args()
    measured: list[dict[str, object]] = []
    for name, measure in (
        ("mnist-mlp", replicas),
        ("cifar10-resnet8", graphs),
        ("cifar10-resnet20", graphs),
        ("cifar10-resnet20", compiled),
    ):
        config = RunConfig(name, "sngd", lr=1e-3, batch_size=128, epochs=1e6, device=given.device, threads=1)
        with repeatable(threads=1), without_tf32():  # as runs do
            found = measure(config, given.steps, given.seconds)
        print(*found, sep="\n", flush=True)
        measured += found
        if given.json:
            write_json(given.json, {"environment": environment(), "cases": measured})


def replicas(config: RunConfig, steps: int, seconds: float) -> list[dict[str, object]]:
    """The time of a step of so many runs that are trained as one, over the time of a step of a single run."""
    problem = load_problem(config.problem)
    config = config.resolved(problem.n)
    counts = REPLICAS if config.device != "cpu" else (1, 4)
    sides: dict[str, Callable[[], object]] = {"1": RunState(config, problem).step}
    for count in counts[1:]:
        stack = Stack([RunState(replace(config, seed=seed), problem) for seed in range(count)])
        sides[str(count)] = partial(stack.step, range(count))
    times = timed(sides, config.device, steps, seconds)
    return [
        {
            "case": f"{config.problem}, {count} replicas",
            "milliseconds": round(1e3 * spread(times[count]).median / steps, 4),
            "ratio": rounded(times[count], times["1"]),
        }
        for count in sides
    ]


def graphs(config: RunConfig, steps: int, seconds: float) -> list[dict[str, object]]:
    """A run's step with graphs and without, and the time of 160 passes of steps; with float32, unless it says so.

    ``graphs`` are two, of the loss and of its gradient; ``one graph`` has the whole step.
    """
    problem = load_problem(config.problem)
    config = config.resolved(problem.n)
    runs = {"single operations": RunState(config, problem)}
    if config.device != "cpu":
        runs["graphs"] = recorded(RunState(config, problem), whole=False)
        runs["one graph"] = recorded(RunState(config, problem))
        runs["one graph, bfloat16"] = recorded(RunState(replace(config, precision="bfloat16"), problem))
    return compared(runs, config, problem, steps, seconds)


def compiled(config: RunConfig, steps: int, seconds: float) -> list[dict[str, object]]:
    """The same with compiled code in the graph."""
    if config.device == "cpu":
        return []
    problem = load_problem(config.problem)
    config = replace(config, precision="bfloat16").resolved(problem.n)
    began = time.monotonic()
    quick = RunState(config, problem)
    if reason := quick.compile():
        raise SystemExit(f"{config.problem}: steps are not compiled, because {reason}")
    took = round(time.monotonic() - began, 1)
    runs = {
        "one graph, bfloat16, not compiled": recorded(RunState(config, problem)),
        "one graph, bfloat16, compiled": recorded(quick),
    }
    return [case | {"seconds_of_compiling": took} for case in compared(runs, config, problem, steps, seconds)]


def compared(
    runs: Mapping[str, RunState], config: RunConfig, problem: Problem, steps: int, seconds: float
) -> list[dict[str, object]]:
    """The time of a step of each run, and its ratio to the first one's."""
    times = timed({name: run.step for name, run in runs.items()}, config.device, steps, seconds)
    first = next(iter(times.values()))
    assert config.batch_size is not None
    return [
        {
            "case": f"{config.problem}, {name}",
            "milliseconds": round(1e3 * spread(found).median / steps, 4),
            "seconds_of_160_passes": round(spread(found).median / steps * PASSES * problem.n / config.batch_size, 1),
            "ratio": rounded(found, first),
        }
        for name, found in times.items()
    ]


def recorded(run: RunState, whole: bool = True) -> RunState:
    """The run, whose steps are CUDA graphs from now on, each of them a single one if ``whole``."""
    reason = run.record()
    if not reason and whole:
        run.step()  # makes the optimizer's state
        reason = run.record_whole_step()
    if reason:
        raise SystemExit(f"{run.config.problem}: steps are not CUDA graphs, because {reason}")
    if not whole:
        run.whole = None
    return run


def rounded(times: list[float], others: list[float]) -> list[float]:
    """The ratio's median and quartiles."""
    return [round(value, 3) for value in ratio(times, others)]


def timed(sides: Mapping[str, Callable[[], object]], device: str, steps: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of so many steps of each side, until the device has done them."""

    def repeated(step: Callable[[], object]) -> Call:
        def call() -> None:
            for _ in range(steps):
                step()
            if device != "cpu":
                torch.cuda.synchronize(device)

        return call

    return interleaved({name: repeated(step) for name, step in sides.items()}, seconds=seconds, warm_up=2)


if __name__ == "__main__":
    main()
