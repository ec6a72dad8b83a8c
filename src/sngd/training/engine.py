"""One run of a method on a problem: it counts oracle calls, evaluates on a schedule, and resumes bit for bit.

An oracle call is the gradient ∇f(w; a) of one sample a at one point w. The budget of a run is a number of these.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import ceil, isfinite
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sngd.checks import cut
from sngd.iterates import RandomIterate
from sngd.problems import Problem, load_problem
from sngd.problems.columns import materialized
from sngd.problems.problem import Samples
from sngd.state import saved_generator
from sngd.training.config import RunConfig
from sngd.training.evaluate import evaluate
from sngd.training.extend import check_extension, extended
from sngd.training.loop import step_norm
from sngd.training.methods import Setting, find_method, recorded_parameters
from sngd.training.metrics import Row
from sngd.training.observers import Observers
from sngd.training.ranks import ALONE, Forward, Ranks, on_all_ranks
from sngd.training.run_folder import Checkpoint, RunFolder
from sngd.training.sampler import SAMPLERS, Sampler
from sngd.training.tracking import Tracker, tracked_names, training_objective

CHECKPOINT_SECONDS = 30.0  # seconds of training between checkpoints; each evaluation saves one too
PROGRESS_SECONDS = 0.1


class Progress(NamedTuple):
    """How far a run is: oracle calls spent, budget, and the loss of the last batch (None before the first)."""

    oracle_calls: int
    budget: int
    loss: float | None


class Interrupted(Exception):
    """The run was asked to stop and has saved a checkpoint."""


def train(
    config: RunConfig,
    folder: Path,
    *,
    data: Path | None = None,
    problem: Callable[[], Problem] | None = None,
    resume: bool = False,
    extend: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    log: Sequence[str] = (),
    ranks: Ranks = ALONE,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Row:
    """Train in ``folder`` until the budget is spent or the training loss is no longer finite.

    A run that is killed at any moment and called again with ``resume`` ends with the weights and rows (except
    ``seconds``) of the uninterrupted run, bit for bit, on the same machine and versions.

    Several processes can train together: each calls this function with its own ``ranks`` and otherwise the same
    arguments. Only rank 0 reads and writes ``folder``. Until the first step, a ValueError or OSError on one rank is
    raised on all. All ranks are interrupted together. The run resumes with any number of processes.

    Args:
        config: the settings. Those that are None get defaults; a resumed run takes them from its folder.
        folder: folder for the run's files; it is made if it does not exist.
        data: folder of data sets, see ``sngd.problems.load_problem``.
        problem: loads the problem; default: ``load_problem(config.problem, data)``. A finished run does not load it.
        resume: go on with the run in the folder; start it if there is none.
        extend: with ``resume``, a run of a constant plan may go on to more epochs than it was begun with. It ends as a
            run that was begun with so many, bit for bit.
        overwrite: delete the run in the folder and start again.
        tensorboard: write the rows as TensorBoard event files too, in the folder's ``tensorboard``.
        log: send the rows to these too, some of ``sngd.training.observers.OBSERVERS``.
        ranks: this process among those of the run.
        on_progress: called before the first step and then about ten times a second.
        should_stop: called after each step; once it is true, a checkpoint is saved and Interrupted raised.

    Returns:
        The last row of metrics, which measures the iterate that the method returns.

    Raises:
        ValueError: bad settings, a run already in the folder, or one with other settings.
        BrokenRun: (a ValueError) the folder's files are damaged.
        Interrupted: ``should_stop`` said so, on any rank.
        ConnectionError: another process of the run has ended.
    """
    files = RunFolder(folder)
    with ExitStack() as kept:
        with ranks.agreed():
            observers = ["tensorboard"] * tensorboard + list(log)
            events = kept.enter_context(Observers(folder, observers)) if observers and ranks.first else None
            if ranks.first:
                kept.enter_context(files.locked())
            found = _find(files, config, resume, extend, overwrite) if ranks.first else None
        settings, checkpoint, rows = _Found(*ranks.from_first(found and tuple(found)))
        config = RunConfig(**settings)
        if rows is not None:
            return _last_row(files, events, rows, ranks)
        kept.enter_context(_repeatable(ranks.threads(config.threads or 1)))
        with ranks.agreed():
            ranks.device(config.device)  # an error if the device is absent, before data are loaded
        loaded = ranks.one_a_machine_first(problem or partial(load_problem, config.problem, data))
        with ranks.agreed():
            with files.naming_config() if resume else nullcontext():
                config = config.resolved(loaded.n)
                run = RunState(config, loaded, ranks)
            if checkpoint is not None:
                with files.naming_checkpoint():
                    run.load_state_dict(checkpoint)
            if ranks.first:
                if checkpoint is None:
                    files.begin(config.to_json())
                elif files.read_config().get("epochs") != config.epochs:
                    files.save_checkpoint(run.state_dict(finished=False))  # before: one that ended would stay so
                    files.write_config(config.to_json())
                files.truncate(run.rows)
                if events:
                    events.begin(files.rows())
        ranks.copy_first([*run.model.parameters(), *run.model.buffers()])  # machines may draw different initial ones
        return _loop(run, files, events, on_progress, should_stop)


class _Found(NamedTuple):
    """The settings to train with, and how far the folder's run is."""

    settings: dict[str, Any]
    checkpoint: Checkpoint | None  # to go on from
    rows: int | None  # of metrics, if the run has ended


def _find(files: RunFolder, config: RunConfig, resume: bool, extend: bool, overwrite: bool) -> _Found:
    begun = files.exists() and not overwrite
    if begun and not resume:
        raise ValueError(f"{files.path}: holds a run already; --resume goes on with it, --overwrite throws it away")
    if not begun:
        return _Found(config.resolved().to_json(), None, None)
    known, checkpoint = _agree(config, files, extend), files.load_checkpoint()
    settings = known.to_json()
    if files.read_config().get("epochs") != known.epochs:
        return _Found(settings, _extended(files, checkpoint, known), None)
    if checkpoint is None:  # if there is a final row the run has ended, and its weights were not kept
        return _Found(settings, None, files.final_rows() or None)
    return _Found(settings, None, checkpoint["rows"]) if checkpoint["finished"] else _Found(settings, checkpoint, None)


def _extended(files: RunFolder, checkpoint: Checkpoint | None, config: RunConfig) -> Checkpoint | None:
    """The checkpoint to go on from to more epochs; None if the run was killed before the first one."""
    try:
        if checkpoint is None:
            if files.final_rows():
                raise ValueError("it has ended, and its weights were not kept")
            return None
        return extended(checkpoint, files.rows()[: checkpoint["rows"]], config.eval_every)
    except ValueError as error:
        raise ValueError(f"{files.path}: cannot go on to {config.epochs:g} epochs: {error}") from None


@contextmanager
def _repeatable(threads: int) -> Iterator[None]:
    """Inside, torch uses this number of CPU threads and cuDNN's deterministic kernels, so that runs can be repeated."""
    cudnn = torch.backends.cudnn  # its own context manager, flags(), would reset other settings to defaults
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def _last_row(files: RunFolder, events: Observers | None, count: int, ranks: Ranks) -> Row:
    """The last row of a run that has ended."""
    rows: list[Row] = []
    with ranks.agreed():
        if ranks.first:
            files.truncate(count)
            rows = files.rows()
        if events:
            events.begin(rows)
    return cast(Row, ranks.from_first(rows)[-1])


def _agree(config: RunConfig, files: RunFolder, extend: bool) -> RunConfig:
    """The folder's settings, with the epochs of ``config`` if it may ``extend`` them. ValueError for other settings."""
    stored = files.read_config()
    try:
        known = RunConfig(**stored)
        known.resolved()
    except ValueError as error:
        raise ValueError(f"{files.path / 'config.json'}: {error}") from None
    known = replace(known, params=recorded_parameters(known.method, known.params))
    if extend and config.epochs > known.epochs:
        try:
            check_extension(known, config.epochs)
        except ValueError as error:
            raise ValueError(f"{files.path}: cannot go on to {config.epochs:g} epochs: {error}") from None
        known = replace(known, epochs=config.epochs)
    given = {key: value for key, value in config.to_json().items() if key in stored and value is not None}
    given["params"] = {**known.params, **config.params}
    try:
        wanted, settings = replace(known, **given).resolved().to_json(), known.to_json()
    except ValueError as error:
        raise ValueError(f"{files.path}: cannot resume with other settings: {error}") from None
    differing = [
        f"{key} is {cut(str(settings[key]))}, not {cut(str(wanted[key]))}"
        for key in stored
        if settings[key] != wanted[key]
    ]
    if differing:
        raise ValueError(f"{files.path}: cannot resume with other settings: {'; '.join(differing)}")
    return known


def _loop(
    run: "RunState",
    files: RunFolder,
    events: Observers | None,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Row:
    saved = shown = time.monotonic()
    on_progress(run.progress)
    while True:
        finished = run.finished
        if finished or run.evaluation_due:
            for row in run.evaluate(finished):
                finished = row["final"]
                if run.ranks.first:
                    files.append(row)
                if events:
                    events.add(row)
            if run.ranks.first:
                files.save_checkpoint(run.state_dict(finished))
            saved = time.monotonic()
        if finished:
            on_progress(run.progress._replace(budget=run.loop.oracle_calls))  # less than a step of the budget is left
            return row
        run.step()
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS:
            shown = now
            on_progress(run.progress)
        stop = run.ranks.any(should_stop())
        if run.ranks.first and (stop or now - saved >= CHECKPOINT_SECONDS):
            files.save_checkpoint(run.state_dict(finished=False))
            saved = time.monotonic()
        if stop:
            run.ranks.any(stop)  # rank 0 has saved
            raise on_all_ranks(Interrupted(f"{files.path}: stopped after {run.steps} steps; --resume goes on"))


class RunState:
    """Model, method, sampler and counters of one run; ``config`` must be resolved.

    Each use of random numbers has its own generator, seeded from the run's seed. So methods with the same seed share
    initial weights and sample order, whatever else they draw.
    """

    def __init__(self, config: RunConfig, problem: Problem, ranks: Ranks = ALONE) -> None:
        assert config.lr is not None
        assert config.batch_size is not None
        self.config, self.ranks, self.device = config, ranks, ranks.device(config.device)
        if config.batch_size > problem.n:
            raise ValueError(f"batch_size must be at most n = {problem.n}, got {config.batch_size}")
        self.problem = _to_device(problem, self.device)
        self.evaluated = _evenly_spaced(self.problem, config.eval_samples)
        torch.manual_seed(_seed(config.seed, "model"))
        self.model = problem.build_model().to(self.device)
        self.budget = round(config.epochs * problem.n)
        self.loop = find_method(config.method).build(
            Setting(
                model=self.model,
                n=problem.n,
                batch_size=config.batch_size,
                lr=config.lr,
                weight_decay=config.weight_decay,
                generator=lambda purpose: _generator(config.seed, purpose),
                values=config.params,
            ),
            config.stage_plan(problem.n),
        )
        if self.finished:
            least = self.loop.next_cost
            raise ValueError(
                f"epochs must be at least {least / problem.n:.4g} for one step ({least} of n = {problem.n})"
            )
        self.samples: Sampler = SAMPLERS[config.sampling](problem.n, _generator(config.seed, "samples"), self.device)
        self.augmentation = _generator(config.seed, "augmentation")
        self.iterate = None
        if config.output == "random":  # with the buffers, because BatchNorm's statistics belong to the iterate
            params = [p for p in self.model.parameters() if p.requires_grad]
            self.iterate = RandomIterate([*params, *self.model.buffers()], _generator(config.seed, "output"))

        self.norm = step_norm(self.loop, [p for p in self.model.parameters() if p.requires_grad])
        self.tracker = None
        if config.track:
            local = partial(
                self._local_loss, self.model
            )  # every rank measures on all samples, so that results do not depend on the number of ranks
            measured = training_objective(self.problem, self.model, local, config.batch_size)
            self.tracker = Tracker(tracked_names("track", config.track), measured, self.norm)

        self.steps = 0
        self.seen = 0  # samples drawn, those of full batches included
        self.rows = 0  # of metrics written so far
        self.evaluations = 0  # next one is due at evaluations · eval_every epochs
        self.seconds = 0.0  # spent in steps
        self.loss: Tensor | None = None  # of the last batch

    @property
    def finished(self) -> bool:
        """Whether the next step would exceed the budget."""
        return self.loop.oracle_calls + self.loop.next_cost > self.budget

    @property
    def evaluation_due(self) -> bool:
        due = ceil(self.evaluations * self.config.eval_every * self.problem.n - 1e-6)
        return self.loop.oracle_calls >= due

    @property
    def progress(self) -> Progress:
        loss = None if self.loss is None else self.loss.item()
        return Progress(self.loop.oracle_calls, self.budget, loss)

    def step(self) -> None:
        """Offer the iterate to the random output, then let the method take one step."""
        started = time.perf_counter()
        if self.ranks.size > 1:  # seeds each rank's own dropout masks; checkpoints need not store the generators
            torch.manual_seed(_seed(self.config.seed, f"rank {self.ranks.rank} at step {self.steps}"))
        if self.iterate is not None:
            self.iterate.update(self.loop.iterate_weight)
        self.loss = self.loop.step(self.loss_of, self._draw(self.loop.next_batch_size))
        self.ranks.copy_first(self.model.buffers())
        self.steps += 1
        self.seconds += time.perf_counter() - started

    def _draw(self, size: int | None) -> Samples:
        """The next samples (None: all), augmented once, so that all evaluations of a step use the same inputs."""
        inputs, targets = self.problem.train
        if size is not None:
            indices = self.samples.draw(size)
            inputs, targets = inputs.index_select(0, indices), targets.index_select(0, indices)
        self.seen += len(inputs)
        return self.problem.augmented((inputs, targets), self.augmentation)

    def loss_of(self, batch: Samples) -> Tensor:
        return self.ranks.mean_loss(self._local_loss, self.model, batch)

    def _local_loss(self, model: Forward, batch: Samples) -> Tensor:
        inputs, targets = materialized(batch)
        if self.problem.prepare is not None:
            inputs = self.problem.prepare(inputs)
        return self.problem.loss(model(inputs), targets)

    def evaluate(self, finished: bool) -> list[Row]:
        """The rows due now: of the current iterate and, at the end, of the random iterate if that is the output."""
        row = self._row(finished)
        diverged = not isfinite(row["train_loss"])
        row |= {"final": finished or diverged, "diverged": diverged}
        if self.tracker is not None and not diverged:
            row |= self.tracker.measure(row["lr"], _generator(self.config.seed, f"tracking at step {self.steps}"))
        self.evaluations = int(self.loop.oracle_calls / self.problem.n / self.config.eval_every + 1e-9) + 1
        rows = [row]
        if row["final"] and self.iterate is not None and not diverged:
            row["final"] = False
            with self.iterate.swapped():
                rows.append(self._row(finished) | {"iterate": "random", "final": True, "diverged": False})
        self.rows += len(rows)
        return cast(list[Row], rows)

    def _row(self, finished: bool) -> dict[str, Any]:
        calls = self.loop.oracle_calls
        return {
            "step": self.steps,
            "epoch": self.seen / self.problem.n,
            "oracle_calls": calls,
            "grads_over_n": calls / self.problem.n,
            "lr": self.loop.lr,
            **evaluate(self.evaluated, self.model, grad_norm=self.config.grad_norm, norm=self.norm, ranks=self.ranks),
            "skipped_steps": self.loop.skipped_steps,
            "seconds": round(self.seconds, 3),
            "iterate": "last",
            "final": finished,
        }

    def state_dict(self, finished: bool) -> dict[str, Any]:
        """What a bit-for-bit continuation needs; ``torch.load(…, weights_only=True)`` reads it."""
        return {
            "finished": finished,
            "model": self.model.state_dict(),
            "loop": self.loop.state_dict(),
            "samples": self.samples.state_dict(),
            "augmentation": self.augmentation.get_state(),
            "iterate": self.iterate.state_dict() if self.iterate is not None else None,
            "tracking_calls": self.tracker.oracle_calls if self.tracker is not None else 0,
            "rng": torch.get_rng_state(),  # dropout and the like draw from the global generators
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "steps": self.steps,
            "seen": self.seen,
            "rows": self.rows,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``.

        Raises:
            ValueError: a part of ``state`` is not of this run; the message names the part.
        """
        with part("model"):
            self.model.load_state_dict(state["model"])
        with part("loop"):
            self.loop.load_state_dict(state["loop"])
        with part("samples"):
            self.samples.load_state_dict(state["samples"])
        if self.iterate is not None:
            with part("iterate"):
                self.iterate.load_state_dict(state["iterate"])
        if self.tracker is not None:
            self.tracker.oracle_calls = state["tracking_calls"]
        self.augmentation.set_state(saved_generator(state, "augmentation"))
        torch.set_rng_state(saved_generator(state, "rng"))
        if self.device.type == "cuda":
            with part("cuda_rng"):
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        for count in ("steps", "seen", "rows", "evaluations", "seconds"):
            setattr(self, count, state[count])


@contextmanager
def part(name: str) -> Iterator[None]:
    """Turn the errors of loading another run's state into a one-line ValueError that names the part."""
    try:
        yield
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = cut(str(error)) or type(error).__name__
        raise ValueError(f"{name} is not this run's ({reason})") from error


def _to_device(problem: Problem, device: torch.device) -> Problem:
    inputs, targets = problem.train
    train = (inputs.to(device), targets.to(device))
    test = None if problem.test is None else (problem.test[0].to(device), problem.test[1].to(device))
    return replace(problem, train=train, test=test)


def _evenly_spaced(problem: Problem, count: int | None) -> Problem:
    """The problem with ``count`` of its training samples, the first of as many equal parts each; None: with all."""
    if count is None or count == problem.n:
        return problem
    if count > problem.n:
        raise ValueError(f"eval_samples must be at most n = {problem.n}, got {count}")
    inputs, targets = problem.train
    chosen = torch.arange(count, device=inputs.device) * problem.n // count
    return replace(problem, train=(inputs[chosen], targets[chosen]))


def _seed(seed: int, purpose: str) -> int:
    """A separate seed for each purpose, so that no two generators draw the same numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7])


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, purpose))
