"""What channels-last images and compiled steps gain, what compiling costs, and the share of evaluation, on the CPU.

    python benchmarks/engine.py [--json FILE]    # needs CIFAR-10 and MNIST, see 'sngd train --help'

All sides use one thread and are measured in turn, in the CPU time of the process and of the compilers that it starts,
because other processes of the machine take wall time from one side more than from the other. The cache of compiled code
is a new one; what a second run takes to find its code there is measured too.
"""

import argparse
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from sngd.problems import load_problem
from sngd.training import RunConfig
from sngd.training.environment import environment
from sngd.training.run_folder import write_json
from sngd.training.run_state import RunState

REPETITIONS = 9


class Case(NamedTuple):
    """A problem, its batch size, and the steps and evaluated samples of a repetition."""

    problem: str
    batch_size: int
    steps: int
    samples: int


CASES = (
    Case("mnist-mlp", 32, 200, 20_000),
    Case("mnist-mlp", 128, 100, 20_000),
    Case("cifar10-resnet8", 128, 2, 680),
    Case("cifar10-resnet20", 128, 1, 340),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write what was measured there")
    file = parser.parse_args().json
    torch.set_num_threads(1)
    measured = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for case in CASES:
            measured.append({**case._asdict(), **measure(case), **layouts(case)})
            print(measured[-1], flush=True)
            if file:
                write_json(file, {"environment": environment(), "cases": measured})


def measure(case: Case) -> dict[str, float | None]:
    """CPU seconds of compiling, of a step, and of evaluating a sample; and what follows from them for a run."""
    problem = load_problem(case.problem)
    config = RunConfig(case.problem, "sngd", batch_size=case.batch_size, epochs=1e6, threads=1).resolved(problem.n)
    plain, compiled, again = (RunState(config, problem) for _ in range(3))
    plain.write_out()
    compiling, from_the_cache = _seconds(lambda: _compile(compiled)), _seconds(lambda: _compile(again))
    inputs, targets = plain.problem.train
    some = replace(plain.problem, train=(inputs[: case.samples], targets[: case.samples]), test=None)
    sides: dict[str, tuple[int, Callable[[], object]]] = {
        "step": (case.steps, lambda: [plain.step() for _ in range(case.steps)]),
        "compiled_step": (case.steps, lambda: [compiled.step() for _ in range(case.steps)]),
        "sample_with_gradient": (case.samples, lambda: plain.measured(some, grad_norm=True)),
        "sample": (case.samples, lambda: plain.measured(some, grad_norm=False)),
    }
    found = _in_turn(sides)
    steps, test = problem.n / case.batch_size, found["sample"] * len(problem.test[0])
    gain = steps * (found["step"] - found["compiled_step"])
    of_all = problem.n * found["sample"] + test
    of_some = sum(map(len, (plain.sampled.train[0], plain.sampled.test[0]))) * found["sample"]
    evaluations = {  # seconds a pass, in runs of the default budget that have a row a pass
        "share_of_evaluation": of_some + of_all / RunConfig.epochs,
        "share_on_all": of_all,
        "share_on_all_with_gradient_norm": problem.n * found["sample_with_gradient"] + test,
    }
    return {
        "compiling": _short(compiling),
        "from_the_cache": _short(from_the_cache),
        **{name: _short(spent) for name, spent in found.items()},
        "passes_until_compiling_pays": _short(compiling / gain) if gain > 0 else None,
        **{name: _short(spent / (spent + steps * found["step"])) for name, spent in evaluations.items()},
    }


def layouts(case: Case) -> dict[str, float]:
    """The time of a step with the problem's images over that with images that lie in memory as torch makes them."""
    problem = load_problem(case.problem)
    if problem.train[0].dim() != 4:  # no images
        return {}
    config = RunConfig(case.problem, "sngd", batch_size=case.batch_size, epochs=1e6, threads=1).resolved(problem.n)
    usual = RunState(config, replace(problem, prepare=lambda images: problem.prepared(images).contiguous()))
    run = RunState(config, problem)
    found = _in_turn(
        {
            "usual": (case.steps, lambda: [usual.step() for _ in range(case.steps)]),
            "problem's": (case.steps, lambda: [run.step() for _ in range(case.steps)]),
        }
    )
    return {"channels_last_over_usual": _short(found["problem's"] / found["usual"])}


def _in_turn(sides: Mapping[str, tuple[int, Callable[[], object]]]) -> dict[str, float]:
    """CPU seconds of each side's work, divided by how often it does it: the median."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(1 + REPETITIONS):  # the first warms up
        for name, (count, work) in sides.items():
            spent = _seconds(work) / count
            times[name] += [spent] if repetition else []
    return {name: statistics.median(spent) for name, spent in times.items()}


def _compile(run: RunState) -> None:
    if reason := run.compile():
        raise SystemExit(f"steps cannot be compiled here, because {reason}")


def _seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, and of those that it waited for."""
    before = _spent()
    work()
    return _spent() - before


def _spent() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in usage)


def _short(number: float) -> float:
    return float(f"{number:.3g}")


if __name__ == "__main__":
    main()
