"""What the engine runs: a method as a sequence of actions, each of known cost, between which a run can resume."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from sngd.checks import shown
from sngd.estimators import Estimator
from sngd.estimators.estimator import Batch, Loss
from sngd.norms import L2, Product, find_norm, product_of
from sngd.optim import SNGD, StagewiseLR
from sngd.stages import StagePlan
from sngd.state import check_fits


class Loop(Protocol):
    """A method at work on a model."""

    @property
    def oracle_calls(self) -> int:
        """∇f(w; a) evaluated so far."""

    @property
    def next_batch_size(self) -> int | None:
        """Number of samples that the next action takes; None means all."""

    @property
    def next_cost(self) -> int:
        """Oracle calls that the next action makes."""

    @property
    def lr(self) -> float:
        """Learning rate of the next action."""

    @property
    def iterate_weight(self) -> float:
        """Weight of the present iterate in the random output."""

    @property
    def skipped_steps(self) -> int:
        """Steps that changed nothing because there was no direction."""

    def step(self, loss: Loss, batch: Batch) -> Tensor:
        """Take one action; return the batch's mean loss before it."""

    def state_dict(self) -> dict[str, Any]:
        """For ``torch.load(…, weights_only=True)``; the model's weights are not in it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


class Composed:
    """Estimator × step rule × plan: estimate the gradient, take the step, advance the plan."""

    def __init__(self, estimator: Estimator, optimizer: Optimizer, plan: StagePlan) -> None:
        self.estimator, self.optimizer, self.plan = estimator, optimizer, plan
        self.scheduler = StagewiseLR(optimizer, plan)

    @property
    def oracle_calls(self) -> int:
        return self.estimator.oracle_calls

    @property
    def next_batch_size(self) -> int | None:
        return self.estimator.next_batch_size

    @property
    def next_cost(self) -> int:
        return self.estimator.next_cost

    @property
    def lr(self) -> float:
        return self.plan.lr_at(self.scheduler.last_epoch)

    @property
    def iterate_weight(self) -> float:
        """Relative to the first iterate's, so that a constant plan of any length has the same: 1."""
        return self.plan.iterate_weight(self.scheduler.last_epoch) / self.plan.iterate_weight(0)

    @property
    def skipped_steps(self) -> int:
        return int(getattr(self.optimizer, "skipped_steps", 0))

    def step(self, loss: Loss, batch: Batch) -> Tensor:
        value = self.step_weights(loss, batch)
        self.scheduler.step()
        return value

    def step_weights(self, loss: Loss, batch: Batch) -> Tensor:
        """Take a step, and leave the plan where it is; return the batch's mean loss before it."""
        value = self.estimator.estimate(loss, batch)
        self.optimizer.step()
        return value

    @property
    def kept(self) -> list[dict[Any, Any]]:
        """The dicts in which the optimizer keeps what its next steps need; not those of param groups."""
        counted = {"skip_count": self.optimizer.skip_count} if isinstance(self.optimizer, SNGD) else {}
        return [*self.optimizer.state.values(), counted]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("estimator", "optimizer", "scheduler")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_buffers(self.optimizer, state["optimizer"]["state"])
        _check_options(self.optimizer, state["optimizer"]["param_groups"], self.plan)
        options = [group.keys() for group in self.optimizer.param_groups]
        for name in ("estimator", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        for own, group in zip(options, self.optimizer.param_groups, strict=True):
            if missing := sorted(own - group.keys()):  # optimizers fill in what earlier versions did not save
                raise ValueError(f"the optimizer's options lack {', '.join(missing)}")


def step_norm(loop: Loop, params: Sequence[Tensor]) -> Product:
    """The norm in which the loop's steps are normalized: ‖·‖₂ unless its optimizer is an ``SNGD`` in another norm.

    Learning rates of param groups are radii: steps are ``loop.lr`` times unit steps of this norm.
    """
    optimizer = getattr(loop, "optimizer", None)
    groups = optimizer.param_groups if isinstance(optimizer, SNGD) else []
    if all(isinstance(find_norm(group["norm"]), L2) for group in groups):
        return product_of(params)
    return product_of(params, groups, lr=loop.lr)


def _check_buffers(optimizer: Optimizer, saved: Mapping[int, Mapping[str, object]]) -> None:
    """ValueError for state that does not fit its parameter: most of torch's optimizers take it as it is."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for group in optimizer.state_dict()["param_groups"]:
        if len({frozenset(saved[index]) for index in group["params"] if index in saved}) > 1:
            raise ValueError("the optimizer's state must have the same entries for all parameters of a group")
    for index, entry in saved.items():
        for name, value in entry.items():
            if value is None and name == "momentum_buffer":  # of SGD before its first step
                continue
            like = torch.tensor(0.0) if name == "step" else params[index]
            tensor = check_fits(name, f"parameter {index}", value, like)
            if name == "step" and not 0 <= float(tensor) < 2**53:
                raise ValueError(f"step of parameter {index} must be a number of steps, got {float(tensor)}")


def _check_options(optimizer: Optimizer, saved: Sequence[Mapping[str, object]], plan: StagePlan) -> None:
    """ValueError for an option that is not what the run's settings made it.

    What the scheduler sets again must be a number, because it fills a tensor in place.
    """
    scheduled = {"lr", "initial_lr", *(["momentum"] if plan.sets_momentum else [])}
    for own, group in zip(optimizer.state_dict()["param_groups"], saved, strict=True):
        for name in scheduled & group.keys():
            value = group[name]
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 <= value < inf:
                raise ValueError(f"the optimizer's {name} must be finite and at least 0, got {shown(value)}")
        for name in own.keys() & group.keys() - {"params", "perturbed"} - scheduled:
            value = group[name]
            if type(value) is not type(own[name]) or value != own[name]:
                raise ValueError(f"the optimizer's {name} must be {shown(own[name])}, got {shown(value)}")
