"""A whole training step as one CUDA graph: the batch, its variation, the loss, its gradient and the update.

The host then draws a batch's numbers and starts the rest by a single call. A graph repeats what it was recorded with:
learning rate and momentum are numbers in it. So there is one for each stage of a plan.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sngd.estimators import MiniBatch
from sngd.estimators.replay import Chance, generator_state, tensors_kept
from sngd.optim import SNGD
from sngd.problems import Problem
from sngd.problems.augment import Variation
from sngd.training.compiled import first_line
from sngd.training.graphed import DRAWN_ON_HOST, Recorder, host_chance, record, same_objects
from sngd.training.loop import Composed, Loop
from sngd.training.ranks import Loss

ENOUGH = 100  # steps of a stage that are left; recording takes about as long as ten steps


def can_be_whole(loop: Loop, problem: Problem) -> bool:
    """Whether all of a step but its random numbers happens on the device, and every step does the same.

    So the estimate is that of a mini-batch, the optimizer keeps no numbers on the host, the samples are in the device's
    memory, and what varies them does not draw while it does.
    """
    if not (isinstance(loop, Composed) and type(loop.estimator) is MiniBatch):
        return False
    on_device = type(loop.optimizer) in (torch.optim.SGD, SNGD)
    stored = all(isinstance(part, Tensor) for part in problem.train)
    return on_device and stored and (problem.augment is None or isinstance(problem.augment, Variation))


class WholeSteps:
    """The steps of a run, recorded anew for each stage of its plan that has many left.

    Args:
        loop, model, problem: of the run, after ``can_be_whole`` has said yes; the problem's samples are on the device.
        loss: the training loss of a batch, in operations that can be recorded.
        record: turns work into what can be repeated.
    """

    def __init__(
        self, loop: Composed, model: nn.Module, problem: Problem, loss: Loss, record: Recorder = record
    ) -> None:
        self._loop, self._model, self._problem, self._loss, self._record = loop, model, problem, loss, record
        self._begun = loop.scheduler.last_epoch
        self._stage: int | None = None  # of the recorded step
        self._recorded: _Step | None = None
        self.failed = False  # with an error, after which graphs from before draw other random numbers than torch

    @property
    def due(self) -> bool:
        """Whether to record before the next step. The first one makes the optimizer's state, and is not recorded."""
        steps, stage = self._loop.scheduler.last_epoch, self._loop.scheduler.stage
        return steps != self._begun and stage != self._stage and self._loop.plan.steps_left(steps) >= ENOUGH

    @property
    def ready(self) -> bool:
        """Whether the next step is one that was recorded."""
        return self._recorded is not None and self._loop.scheduler.stage == self._stage

    def record(self, generator: torch.Generator) -> str | None:
        """Record a step of the present stage, if repeating it gives the same bits. Random generators change.

        Args:
            generator: where the random numbers of the trial's batch come from.

        Returns:
            None, or why it was not recorded, as the end of a sentence.
        """
        self._recorded, self._stage = None, self._loop.scheduler.stage
        calls, size = self._loop.oracle_calls, self._loop.next_batch_size
        assert size is not None
        samples = torch.arange(self._problem.n, device=self._problem.train[0].device)
        try:
            found = self._tried(self._inputs(samples[:size], generator), self._inputs(samples[-size:], generator))
        finally:
            self._loop.estimator.oracle_calls = calls
        if isinstance(found, str):
            return found
        self._recorded = found
        return None

    def step(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Take a step with these samples, varied with numbers of the generator; returns their mean loss before it.

        The next step writes its loss where this one did.
        """
        assert self._recorded is not None
        loop = self._loop
        calls = loop.oracle_calls + loop.next_cost  # a graph counts nothing
        value = self._recorded.repeat(self._inputs(indices, generator))
        loop.estimator.oracle_calls = calls
        loop.scheduler.step()
        return value

    def _inputs(self, indices: Tensor, generator: torch.Generator) -> list[Tensor]:
        """What differs between steps: the samples' indices, and the numbers that vary them."""
        draws = self._problem.drawn(torch.Size([len(indices), *self._problem.train[0].shape[1:]]), generator)
        return [indices] if draws is None else [indices, draws.to(indices.device, non_blocking=True)]

    def _take(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        batch = self._problem.varied(self._problem.chosen(indices), draws)
        return self._loop.step_weights(partial(self._loss, self._model), batch)

    def _tried(self, inputs: Sequence[Tensor], others: Sequence[Tensor]) -> "_Step | str":
        """The step, recorded with some inputs and tried with others; or why it is not. All tensors end as they were."""
        try:
            device = inputs[0].device
            chance, host, tensors = Chance(device), host_chance(device), self._tensors()
            with tensors_kept(self._places()):
                expected = self._after(self._take(*inputs))
                if not same_objects(self._tensors(), tensors):
                    return "the model or the optimizer replaces tensors, and does not change them in place"
            if host_chance(device) != host:
                return DRAWN_ON_HOST
            with tensors_kept(self._places()):
                step = _Step(self._take, others, self._record)
            with tensors_kept(self._places()), chance.replayed():
                found = self._after(step.repeat(inputs))
        except Exception as error:  # the model's or CUDA's, of which there are many kinds
            self.failed = True
            return f"a CUDA graph cannot hold them ({first_line(error)})"
        if not all(map(_same_bits, found, expected)):
            return "weights or the optimizer's state come out differently when recorded"
        return step

    def _after(self, value: Tensor) -> list[Tensor]:
        """Copies of the loss and of all that a step changes, and the state of the device's random generator."""
        return [generator_state(value.device), *(tensor.detach().clone() for tensor in (value, *self._tensors()))]

    def _tensors(self) -> list[Tensor]:
        return [value for place in self._places() for value in place.values() if isinstance(value, Tensor)]

    def _places(self) -> list[dict[Any, Any]]:
        """Dicts that hold all tensors that a step changes."""
        buffers = [module._buffers for module in self._model.modules()]
        return [dict(enumerate(self._model.parameters())), *buffers, *self._loop.kept]


class _Step:
    """A recorded step, and where it reads what differs between steps."""

    def __init__(self, take: Callable[..., Tensor], inputs: Sequence[Tensor], record: Recorder) -> None:
        self._inputs = [part.clone() for part in inputs]
        self._recorded = record([partial(take, *self._inputs)])[0]

    def repeat(self, inputs: Sequence[Tensor]) -> Tensor:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._recorded.repeat()
        value: Tensor = self._recorded.results
        return value


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Also of nan."""
    return torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)))
