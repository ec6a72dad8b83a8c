"""One run: model, method, sampler and counters; it takes steps, makes the rows due, and is saved and loaded as a whole.

An oracle call is the gradient ∇f(w; a) of one sample a at one point w. The budget of a run is a number of these.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import ceil, isfinite
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sngd.checks import cut
from sngd.iterates import RandomIterate
from sngd.norms.global_norm import at_least_float32
from sngd.problems import Problem
from sngd.problems.columns import materialized
from sngd.problems.models import mlp
from sngd.problems.problem import Samples
from sngd.state import saved_generator
from sngd.training.compiled import CompiledLoss, pays
from sngd.training.config import RunConfig
from sngd.training.evaluate import Measured, evaluate
from sngd.training.graphed import GraphedLoss
from sngd.training.graphed_step import WholeSteps, can_be_whole
from sngd.training.loop import Composed, step_norm
from sngd.training.methods import Setting, find_method
from sngd.training.metrics import Row, finite
from sngd.training.ranks import ALONE, Forward, Ranks
from sngd.training.replicas.alike import reason_against_method
from sngd.training.replicas.layers import layers_of
from sngd.training.replicas.stack import Stack
from sngd.training.sampler import SAMPLERS, Sampler
from sngd.training.tracking import Tracker, tracked_names, training_objective


class Progress(NamedTuple):
    """How far a run is: oracle calls spent, budget, and the loss of the last batch (None before the first)."""

    oracle_calls: int
    budget: int
    loss: float | None


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
        self.sampled = _drawn(self.evaluated, config.curve_samples)
        self.model = self._seeded_model()
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

        self.compiled: CompiledLoss | None = None
        self.graphed: GraphedLoss | None = None
        self.whole: WholeSteps | None = None
        self.stack: Stack | None = None  # of this run alone
        self.norm = step_norm(self.loop, [p for p in self.model.parameters() if p.requires_grad])
        self.tracker = None
        if config.track:
            # every rank measures on all samples, so that results do not depend on the number of ranks
            local = partial(self._local_loss, self.model)
            measured = training_objective(self.problem, self.model, local, config.batch_size)
            self.tracker = Tracker(tracked_names("track", config.track), measured, self.norm)

        self.steps = 0
        self.seen = 0  # samples drawn, those of full batches included
        self.rows = 0  # of metrics written so far
        self.evaluations = 0  # next one is due at evaluations · eval_every epochs
        self.seconds = 0.0  # spent in steps
        self.loss: Tensor | None = None  # of the last batch
        self.chance: dict[str, Tensor | None] | None = None  # what is saved in place of the present ``global_chance``

    def _seeded_model(self) -> nn.Module:
        torch.manual_seed(_seed(self.config.seed, "model"))
        return self.problem.build_model().to(self.device)

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
        if self.stack is not None:
            self.stack.settle()
        loss = None if self.loss is None else self.loss.item()
        return Progress(self.loop.oracle_calls, self.budget, loss)

    @property
    def last_progress(self) -> Progress:
        """Of a run that has ended: the budget counts as spent, of which less than a step is left."""
        return self.progress._replace(budget=self.loop.oracle_calls)

    def step(self) -> None:
        """Offer the iterate to the random output, then let the method take one step."""
        if self.stack is not None:
            self.stack.step([0])
            return
        started = time.perf_counter()
        if self.ranks.size > 1:  # seeds each rank's own dropout masks; checkpoints need not store the generators
            torch.manual_seed(_seed(self.config.seed, f"rank {self.ranks.rank} at step {self.steps}"))
        if self.iterate is not None:
            self.iterate.update(self.loop.iterate_weight)
        size = self.loop.next_batch_size
        if self.whole is not None and self.whole.ready:
            indices = self.draw(size)
            assert indices is not None
            self.loss = self.whole.step(indices, self.augmentation)
        else:
            self.loss = self.loop.step(self.loss_of, self._draw(size))
        self.ranks.copy_first(self.model.buffers())
        self.steps += 1
        self.seconds += time.perf_counter() - started

    def _draw(self, size: int | None) -> Samples:
        """The next samples (None: all), augmented once, so that all evaluations of a step use the same inputs."""
        indices = self.draw(size)
        samples = self.problem.train if indices is None else self.problem.chosen(indices)
        return self.problem.augmented(samples, self.augmentation)

    def draw(self, size: int | None) -> Tensor | None:
        """The indices of the next ``size`` samples, which count as seen; None: of all."""
        self.seen += self.problem.n if size is None else size
        return None if size is None else self.samples.draw(size)

    def loss_of(self, batch: Samples) -> Tensor:
        return self.ranks.mean_loss(self.graphed or self._one_by_one, self.model, batch)

    def compiling_pays(self) -> bool:
        """Whether compiled steps are known to save much more time in the run than compiling takes."""
        return self.device.type == "cpu" and not self._why_one_by_one() and pays(self.model, self.config, self.problem)

    def compile(self) -> str | None:
        """Let steps go through ``torch.compile`` from now on; or why that cannot be, as the end of a sentence.

        It is tried at the initial weights, also for a run that goes on, so that all parts of a run have one answer.
        """
        if reason := self._why_one_by_one():
            return reason
        embeds = any(isinstance(module, nn.Embedding) for module in self.model.modules())
        if embeds and not (self.device.type == "cpu" and torch.get_num_threads() == 1):
            return "an embedding's gradient would be summed in any order, take --threads 1 on a CPU"
        compiled = CompiledLoss(self.problem, torch.get_num_threads())
        with self._chance_kept(), self._rounding():
            for batch in self._trial_batches():
                if reason := compiled.try_on(self._seeded_model, batch):
                    return reason
        self.compiled = compiled
        return None

    def write_out(self) -> None:
        """Let steps be those of a stack of this run alone from now on, if its model's passes are written out there.

        They take less time than with autograd. Call it when all is loaded. Only a model that no user has made or can
        get hold of is trained so, because a change of it during the run would go unseen.
        """
        build = self.problem.build_model
        own_model = isinstance(build, partial) and build.func is mlp
        usual = self.device.type == "cpu" and self.config.precision == "float32" and self.tracker is None
        if not (own_model and usual) or self._why_one_by_one() or reason_against_method(self.config.method):
            return
        if layers_of(self.model, self.problem) is not None:
            self.stack = Stack([self])

    def record(self) -> str | None:
        """Let steps repeat recorded CUDA graphs from now on; or why that cannot be, as the end of a sentence."""
        if reason := self._why_one_by_one():
            return reason
        graphed = GraphedLoss(self._one_by_one, self.model)
        with self._chance_kept(), self._on_device():
            for batch in self._trial_batches():
                if reason := graphed.try_on(batch):
                    return reason
        self.graphed = graphed
        if can_be_whole(self.loop, self.problem):
            self.whole = WholeSteps(cast(Composed, self.loop), self.model, self.problem, self._one_by_one)
        return None

    def record_whole_step(self) -> str | None:
        """Let steps like the next one repeat a graph of all that they do; or why that cannot be, likewise.

        Call it if ``whole`` is there and due. Weights, buffers and what the optimizer keeps are as before afterwards.
        """
        assert self.whole is not None
        with self._chance_kept(), self._on_device():
            reason = self.whole.record(_generator(self.config.seed, "trial of a step"))
        if reason:
            self.graphed = None if self.whole.failed else self.graphed
            self.whole = None
        return reason

    def _why_one_by_one(self) -> str | None:
        """Why steps can be neither compiled nor recorded, as the end of a sentence."""
        if self.ranks.size > 1:
            return "several processes train together"
        if not isinstance(self.loop, Composed):
            return f"{self.config.method} needs second derivatives"
        return None

    def _one_by_one(self, model: Forward, batch: Samples) -> Tensor:
        """The training loss, in operations that the host starts one by one."""
        with self._rounding():
            value = (self.compiled or self._local_loss)(model, batch)
        return value.to(at_least_float32(value.dtype))

    def _rounding(self) -> AbstractContextManager[object]:
        """Inside, products are rounded as the run's precision says."""
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _on_device(self) -> AbstractContextManager[object]:
        """Inside, torch's present GPU is the run's, if that is on one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _chance_kept(self) -> AbstractContextManager[None]:
        """Afterwards torch's global generators are as before."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def _trial_batches(self) -> Iterator[Samples]:
        """A batch of each size that the method evaluates again and again."""
        for size in self._sizes():
            first = self.problem.chosen(torch.arange(size, device=self.device))
            yield self.problem.augmented(first, _generator(self.config.seed, "trial of compilation"))

    def _sizes(self) -> set[int]:
        """The numbers of samples that the method evaluates at a time, but for smaller rests."""
        assert isinstance(self.loop, Composed)
        estimator = self.loop.estimator
        first = estimator.next_batch_size or self.problem.n
        largest = min(first, getattr(estimator, "chunk_size", None) or first)
        return {largest, getattr(estimator, "batch_size", largest)}

    def _local_loss(self, model: Forward, batch: Samples) -> Tensor:
        return self.problem.mean_loss(model, materialized(batch))

    def evaluate(self) -> list[Row]:
        """The rows due now: of the current iterate and, at the end, of the random iterate if that is the output."""
        rows = [self.row(self._measured())]
        if self.returns_random(rows[0]):
            assert self.iterate is not None
            with self.iterate.swapped():
                rows.append(self.random_row(self._measured()))
        return rows

    def _measured(self) -> Measured:
        return self.measured(self.row_samples, grad_norm=bool(self.config.grad_norm))

    def measured(self, samples: Problem, *, grad_norm: bool) -> Measured:
        """What ``evaluate`` measures on these samples."""
        if self.stack is not None:
            return self.stack.measure(samples, grad_norm=grad_norm)[0]
        return evaluate(samples, self.model, grad_norm=grad_norm, norm=self.norm, ranks=self.ranks)

    @property
    def row_samples(self) -> Problem:
        """The samples that the row which is due now is measured on."""
        return self.evaluated if self.finished else self.sampled

    def row(self, measured: Measured) -> Row:
        """The row that is due now, of the current iterate as ``evaluate`` measured it."""
        diverged = not isfinite(cast(float, measured["train_loss"]))
        row = self._row(measured) | {"final": self.finished or diverged, "diverged": diverged}
        if self.row_samples is not self.evaluated:
            row["samples"] = self.row_samples.n
        if self.tracker is not None and not diverged:
            row |= self.tracker.measure(row["lr"], _generator(self.config.seed, f"tracking at step {self.steps}"))
        self.evaluations = int(self.loop.oracle_calls / self.problem.n / self.config.eval_every + 1e-9) + 1
        if self.returns_random(cast(Row, row)):
            row["final"] = False
        return cast(Row, finite(row))

    def returns_random(self, row: Row) -> bool:
        """Whether a row of the random iterate follows this one."""
        return self.iterate is not None and self.finished and not row["diverged"]

    def random_row(self, measured: Measured) -> Row:
        """The last row, of the random iterate."""
        row = self._row(measured) | {"iterate": "random", "final": True, "diverged": False}
        return cast(Row, finite(row))

    def _row(self, measured: Measured) -> dict[str, Any]:
        calls = self.loop.oracle_calls
        self.rows += 1
        return {
            "step": self.steps,
            "epoch": self.seen / self.problem.n,
            "oracle_calls": calls,
            "grads_over_n": calls / self.problem.n,
            "lr": self.loop.lr,
            **measured,
            "skipped_steps": self.loop.skipped_steps,
            "seconds": round(self.seconds, 3),
            "iterate": "last",
        }

    def state_dict(self, finished: bool) -> dict[str, Any]:
        """What a bit-for-bit continuation needs; ``torch.load(…, weights_only=True)`` reads it."""
        if self.stack is not None:
            self.stack.settle()
        return {
            "finished": finished,
            "model": self.model.state_dict(),
            "loop": self.loop.state_dict(),
            "samples": self.samples.state_dict(),
            "augmentation": self.augmentation.get_state(),
            "iterate": self.iterate.state_dict() if self.iterate is not None else None,
            "tracking_calls": self.tracker.oracle_calls if self.tracker is not None else 0,
            **(self.chance or self.global_chance()),
            "steps": self.steps,
            "seen": self.seen,
            "rows": self.rows,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
        }

    def global_chance(self) -> dict[str, Tensor | None]:
        """The state of torch's global generators, of which dropout and the like draw."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {"rng": torch.get_rng_state(), "cuda_rng": cuda}

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


def _drawn(problem: Problem, count: int | None) -> Problem:
    """The problem with at most ``count`` of its training and as many of its test samples, the same in all runs.

    0 and None stand for all. Evenly spaced ones of data in a periodic order could be of one class.
    """
    if not count or problem.n <= count:
        return problem
    test = problem.test and _some(problem.test, count)
    return replace(problem, train=_some(problem.train, count), test=test)


def _some(samples: Samples, count: int) -> Samples:
    inputs, targets = samples
    if len(inputs) <= count:
        return samples
    drawn = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:count]
    chosen = drawn.sort().values.to(inputs.device)
    return inputs[chosen], targets[chosen]


def _seed(seed: int, purpose: str) -> int:
    """A separate seed for each purpose, so that no two generators draw the same numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7])


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, purpose))
