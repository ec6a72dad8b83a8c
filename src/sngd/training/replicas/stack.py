"""Several runs as the rows of matrices, which take their steps together."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sngd.problems import Problem
from sngd.training.evaluate import Measured
from sngd.training.loop import Composed
from sngd.training.replicas.alike import gains_in_evaluation
from sngd.training.replicas.estimates import estimates_of
from sngd.training.replicas.losses import Batch, Losses
from sngd.training.replicas.measure import measure
from sngd.training.replicas.steps import rule_of

if TYPE_CHECKING:
    from sngd.training.run_state import RunState


class Stack:
    """Makes the tensors of ``runs`` views of rows, so that a step of all rows is a step of each run.

    A step always computes all rows. Runs that are not to take it are put back. So the numbers of a run depend on which
    runs are in the stack, not on which of them are ahead of others: vectors are as long, and sums have the same order.

    Args:
        runs: runs of one problem and method whose settings may differ in seed, learning rate and parameters.
    """

    def __init__(self, runs: Sequence["RunState"]) -> None:
        self.runs, self.problem = list(runs), runs[0].problem
        self.loops = [run.loop for run in runs if isinstance(run.loop, Composed)]
        self._losses = Losses(self.problem, runs[0].model)
        layout = self._losses.layout
        params = [[p for p in run.model.parameters() if p.requires_grad] for run in runs]
        self.weights = layout.matrix(params)
        self.gradient = torch.zeros_like(self.weights)
        for row, own in enumerate(params):
            views = zip(own, layout.views(self.weights[row]), layout.views(self.gradient[row]), strict=True)
            for param, weight, gradient in views:
                param.data, param.grad = weight, gradient
        estimators = [loop.estimator for loop in self.loops]
        self.estimates = estimates_of(estimators, self._losses, self.weights, self.gradient, self._draw)
        self.rule = rule_of([loop.optimizer for loop in self.loops], layout, self.weights, self.gradient)
        self.losses: Callable[[], Tensor] | None = None  # computes those of the last batches

    def step(self, rows: Sequence[int]) -> None:
        """Let the runs in ``rows``, which have taken as many steps as each other, take the next one."""
        started = time.perf_counter()
        for row in rows:
            run = self.runs[row]
            if run.iterate is not None:
                run.iterate.update(run.loop.iterate_weight)
        others = sorted(set(range(len(self.runs))) - set(rows)) if len(rows) < len(self.runs) else []
        matrices = (self.weights, *self.estimates.matrices, *self.rule.matrices) if others else ()
        before = [matrix[others] for matrix in matrices]
        self.losses = self.estimates.estimate(rows)
        self.rule.step(rows)
        for matrix, old in zip(matrices, before, strict=True):
            matrix[others] = old
        self._advance(rows)
        seconds = (time.perf_counter() - started) / len(rows)
        for row in rows:
            self.runs[row].steps += 1
            self.runs[row].seconds += seconds

    def _advance(self, rows: Sequence[int]) -> None:
        """The plans' next steps; learning rates are set only where a stage ends."""
        for row in rows:
            plan, scheduler = self.loops[row].plan, self.loops[row].scheduler
            if plan.stage_at(scheduler.last_epoch + 1) != plan.stage_at(scheduler.last_epoch):
                self.loops[row].optimizer._opt_called = True  # type: ignore[attr-defined]  # else torch warns
                scheduler.step()
                self.rule.options_changed()
            else:
                scheduler.last_epoch += 1
                scheduler._step_count += 1

    def settle(self) -> None:
        """Make the runs' states complete, to be saved or shown."""
        self.rule.settle()
        if self.losses is not None:
            for run, loss in zip(self.runs, self.losses(), strict=True):
                run.loss = loss

    @property
    def in_step(self) -> bool:
        """Whether all runs have spent as many oracle calls after as many steps."""
        return self.estimates.in_step

    @cached_property
    def gains_in_evaluation(self) -> bool:
        """Whether ``measure`` takes less time than to measure one run after the other."""
        return self._losses.written_out or gains_in_evaluation(self.problem)

    def measure(self, samples: Problem, *, grad_norm: bool) -> list[Measured]:
        """What ``sngd.training.evaluate`` measures on these samples, of every run."""
        norms = [run.norm for run in self.runs]
        return measure(self._losses, self.weights, samples, grad_norm=grad_norm, norms=norms)

    def _draw(self, rows: Sequence[int], size: int | None, part: slice = slice(None)) -> Batch:
        """See ``Draw``; a run's samples are those that it would draw by itself, in the same order."""
        inputs, targets = self.problem.train
        drawn = {row: indices for row in rows if (indices := self.runs[row].draw(size)) is not None}
        members = range(len(self.runs))[part]
        if self.problem.augment is None:
            if size is None:
                return Batch(inputs, targets, shared=True)
            of_rows = [drawn.get(row, drawn[rows[0]]) for row in members]
            indices = torch.cat(of_rows) if len(of_rows) > 1 else of_rows[0]
            chosen = (samples.index_select(0, indices) for samples in (inputs, targets))
            return Batch(*(samples.view(-1, size, *samples.shape[1:]) for samples in chosen))
        varied = {}
        for row in rows:
            samples = (inputs, targets) if size is None else (inputs[drawn[row]], targets[drawn[row]])
            varied[row] = self.problem.augmented(samples, self.runs[row].augmentation)
        each = [varied.get(row, varied[rows[0]]) for row in members]
        return Batch(torch.stack([x for x, _ in each]), torch.stack([y for _, y in each]))
