"""A pass of the engine over the data against a DataLoader loop, methods against AdamW, seeds against processes."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sngd.bench import plain_loop
from sngd.bench.result import Comparison, Result, compared
from sngd.bench.timing import Call, interleaved
from sngd.problems import Problem, load_problem
from sngd.problems.augment import unit_interval
from sngd.problems.registry import default_batch_size
from sngd.problems.variants import prepared
from sngd.training import RunConfig
from sngd.training.run_state import RunState

ENGINE, LOOP = "sngd train", "DataLoader loop"
STUDY, PROCESSES = "sngd compare", "separate processes"
LANGUAGE = "shakespeare-gpt"
SEEDS = 8
_STEPS = 5  # timed together
_CHECKED = 20  # steps after which both must have the same weights
_TOLERANCE = 1e-4  # of the distance that the weights have moved
_ACCURACY = 0.01  # by which the mean test accuracies of two studies, with other seeds, may differ


class Case(NamedTuple):
    """One pass over the first ``samples`` training samples (None: all), with an evaluation after it or without."""

    problem: str
    batch_size: int
    samples: int | None = None
    evaluates: bool = False
    goal: float | None = None

    @property
    def name(self) -> str:
        return f"{self.problem}, b={self.batch_size}"


METHODS: dict[str, float | None] = {  # with goals for the time of a training step over AdamW's
    "nsgd-momentum": None,
    "sngd-layer": None,
    "signum": None,
    "scion": 1.2,  # so that half of AdamW's steps are 0.6 of its time
    "muon": None,
    "muon-adamw": None,
}
CASES = (
    Case("mnist-mlp", 128, goal=0.35),
    Case("mnist-mlp", 32, goal=0.5),
    Case("cifar10-resnet8", 128, samples=2560, evaluates=True, goal=0.7),
    Case("cifar10-resnet20", 128, samples=1280, evaluates=True, goal=0.7),
)
PROBLEM_SECONDS = 20.0


def bench_train(
    *,
    cases: Sequence[Case] = CASES,
    methods: Mapping[str, float | None] = METHODS,
    studies: bool = True,
    data: Path | None = None,
    seconds: float = PROBLEM_SECONDS,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Result:
    """Compare passes over data, training steps of several methods, and a study of several seeds.

    Args:
        cases: what is trained.
        methods: names of methods whose training step on shakespeare-gpt is compared with AdamW's, and goals.
        studies: whether to compare the study of seeds too, which takes minutes.
        data: folder of data sets, see ``sngd.problems.load_problem``.
        seconds: for each case; of the study, two rounds are measured.
        on_progress: called with what is measured next, how many measurements are done, and how many there are.

    Raises:
        ValueError: two sides that should do the same arithmetic do not.
    """
    comparisons: list[Comparison] = []
    sizes: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    count = len(cases) + bool(methods) + studies
    for index, case in enumerate(cases):
        on_progress(case.name, index, count)
        try:
            problem = _first(load_problem(case.problem, data), case.samples)
        except ValueError as error:  # no such data here, and no network
            left_out[case.name] = str(error)
            continue
        check(case, problem)
        sides = Sides(case, problem)
        times = interleaved({ENGINE: sides.engine, LOOP: sides.loop}, seconds=seconds, least=3)
        comparisons.append(compared(case.name, ENGINE, LOOP, times, goal=case.goal))
        sizes[case.name] = {"samples": problem.n, "evaluates": case.evaluates, "rounds": len(times[ENGINE])}
    if methods:
        on_progress(f"{LANGUAGE}, methods", len(cases), count)
        try:
            comparisons += compare_methods(methods, LANGUAGE, data=data, seconds=seconds)
        except ValueError as error:
            left_out[LANGUAGE] = str(error)
    if studies:
        on_progress(f"{SEEDS} seeds", count - 1, count)
        try:
            comparisons.append(_study(load_problem("mnist-mlp", data), data))
        except ValueError as error:
            left_out[f"{SEEDS} seeds"] = str(error)
    return Result("train", "cpu", sizes, comparisons, left_out)


def _first(problem: Problem, samples: int | None) -> Problem:
    """The first training samples, and a fifth as many for testing."""
    if samples is None or problem.test is None:
        return problem
    (x, y), (test_x, test_y), few = problem.train, problem.test, samples // 5
    return replace(problem, train=(x[:samples], y[:samples]), test=(test_x[:few], test_y[:few]))


class Sides:
    """The same pass twice: by the engine, and by a plain loop with the same weights, batches and random numbers.

    Where the engine keeps bytes and makes numbers in [0, 1] of a batch, the plain loop has these from the beginning.

    ``usual_layout``: the plain loop's inputs lie in memory as torch makes them, whatever the engine does. Otherwise
    they lie as the engine's, so that sums are rounded alike.
    """

    def __init__(self, case: Case, problem: Problem, *, usual_layout: bool = True) -> None:
        config = RunConfig(
            case.problem, "sgd", batch_size=case.batch_size, epochs=1e6, lr=0.1, threads=torch.get_num_threads()
        )
        config = replace(config.resolved(problem.n), curve_samples=0, grad_norm=False)  # as the plain loop
        self.case, self.problem, self.steps = case, problem, problem.n // case.batch_size
        self.usual_layout = usual_layout
        self.plain = prepared(problem) if problem.prepare is unit_interval else problem
        self.run, twin = RunState(config, problem), RunState(config, problem)
        self.model, self.augmentation = twin.model, twin.augmentation
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.run.write_out()
        self.order = [twin.samples.draw(case.batch_size).tolist() for _ in range(self.steps)]

    def engine(self, steps: int | None = None) -> None:
        for _ in range(steps or self.steps):
            self.run.step()
        if self.case.evaluates:
            self.run.evaluate()

    def loop(self, steps: int | None = None) -> None:
        prepare = self._contiguous if self.usual_layout else self.plain.prepared
        loader = DataLoader(TensorDataset(*self.plain.train), batch_sampler=self.order[:steps])
        plain_loop.train_pass(loader, self.model, self.optimizer, self.problem.loss, self._varied, prepare)
        if self.case.evaluates:
            for samples in (self.plain.train, self.plain.test):
                if samples is not None:
                    plain_loop.evaluated(samples, self.model, self.problem.loss, prepare)

    def _contiguous(self, x: Tensor) -> Tensor:
        return self.plain.prepared(x).contiguous()

    def _varied(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.problem.augmented((x, y), self.augmentation)


def check(case: Case, problem: Problem) -> None:
    """ValueError unless some steps of both sides lead to the same weights."""
    sides = Sides(case._replace(evaluates=False), problem, usual_layout=False)
    before = [p.detach().clone() for p in sides.model.parameters()]
    steps = min(_CHECKED, sides.steps)
    sides.engine(steps)
    sides.loop(steps)
    pairs = zip(sides.run.model.parameters(), sides.model.parameters(), strict=True)
    apart = _length([a.detach() - b.detach() for a, b in pairs])
    moved = _length([p.detach() - b for p, b in zip(sides.model.parameters(), before, strict=True)])
    if not apart <= _TOLERANCE * moved:
        raise ValueError(
            f"{case.name}: {ENGINE} and {LOOP} must do the same arithmetic, but after {steps} steps their weights "
            f"differ by {apart / moved:.2g} of the way"
        )


def _length(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())


# --- several methods


def compare_methods(
    methods: Mapping[str, float | None], name: str, *, data: Path | None = None, seconds: float
) -> list[Comparison]:
    """The time of whole training steps, forward and backward too, of methods over AdamW's.

    Args:
        methods: names, each with the goal for the ratio, or None.
        name: of the problem; each method trains with its default learning rate and the problem's batch size.
        data: folder of data sets.
        seconds: for all together.

    Raises:
        ValueError: there is no such data.
    """
    problem, batch_size = load_problem(name, data), default_batch_size(name)
    calls = {method: _steps_of(method, name, problem) for method in (*methods, "adamw")}
    times = interleaved(calls, seconds=seconds)
    case = f"{name}, b={batch_size}"
    return [compared(case, method, "adamw", times, same=False, goal=goal) for method, goal in methods.items()]


def _steps_of(method: str, name: str, problem: Problem) -> Call:
    config = RunConfig(name, method, epochs=1e6, threads=torch.get_num_threads())
    run = RunState(config.resolved(problem.n), problem)

    def steps() -> None:
        for _ in range(_STEPS):
            run.step()

    return steps


# --- several seeds


def _study(problem: Problem, data: Path | None) -> Comparison:
    """A study of several seeds, one pass each, against as many processes with a plain loop, as many at a time."""
    jobs = max(1, torch.get_num_threads())
    accuracies: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder, "data.pt")
        plain = prepared(problem)
        torch.save((plain.train, plain.test), path)

        def study() -> None:
            accuracies[STUDY] = _compare(Path(folder, "study"), jobs, data)

        def processes() -> None:
            command = [sys.executable, plain_loop.__file__, str(path)]
            with ThreadPoolExecutor(jobs) as pool:
                printed = pool.map(lambda seed: _output([*command, str(seed), "1", "128"]), range(SEEDS))
                accuracies[PROCESSES] = fmean(map(float, printed))

        times = interleaved({STUDY: study, PROCESSES: processes}, seconds=0, least=2, warm_up=0)
    ours, theirs = accuracies[STUDY], accuracies[PROCESSES]
    if abs(ours - theirs) > _ACCURACY:
        raise ValueError(
            f"{STUDY} and {PROCESSES} must do the same arithmetic, but their test accuracies are {ours:.3f} and "
            f"{theirs:.3f}"
        )
    return compared(f"{SEEDS} seeds, mnist-mlp, b=128", STUDY, PROCESSES, times)


def _compare(folder: Path, jobs: int, data: Path | None) -> float:
    """Do the study; the mean test accuracy of its runs."""
    words = ["compare", "mnist-mlp", "--methods", "sgd", "--seeds", str(SEEDS), "--epochs", "1", "--lr", "0.1"]
    words += ["--batch-size", "128", "--jobs", str(jobs), "--out", str(folder), "--overwrite"]
    _output([sys.executable, "-m", "sngd", *words, *(("--data", str(data)) if data else ())])
    files = list(folder.rglob("metrics.jsonl"))
    return fmean(json.loads(file.read_text().splitlines()[-1])["test_accuracy"] for file in files)


def _output(command: list[str]) -> str:
    """What a command prints; ValueError with its last line if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{' '.join(command[:3])} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout
