"""A stage plan as a learning-rate scheduler for any torch optimizer."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sngd.checks import shown
from sngd.stages import StagePlan
from sngd.state import check_keys, saved_count


class StagewiseLR(LRScheduler):
    """Sets learning rates from a `StagePlan`: stage t is M_t steps of learning rate α_t.

    This is the plan of Algorithm 2 of Zhao, Xie, Li 2021. The first param group gets the plan's learning rate, whatever
    learning rate the optimizer was made with. Every other group keeps its ratio to the first one: groups made with 0.1
    and 0.2 run at α_t and 2 α_t. So does a group that is added later with 0.2, from the next call of `step` on. If a
    learning rate is a 0-d tensor its value is changed in place. After the plan's last step the last rate stays.

    A plan whose stages have a momentum sets the groups' `momentum` too. The optimizer must be made with one then.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        plan: the stages; lengths count calls of `step`.
        last_epoch: steps already taken, minus one, as in torch's schedulers; −1 begins the plan.

    Raises:
        TypeError: if the plan is no `StagePlan`, for instance a list of learning rates without numbers of steps.
        ValueError: if the first group's initial learning rate is not finite and positive, or the plan has a momentum
            and a group has none.

    Examples:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> scheduler = StagewiseLR(optimizer, stages.multistep(0.5, 160, (80, 120), steps_per_epoch=len(loader)))
        >>> for x, y in batches:
        ...     optimizer.zero_grad()
        ...     loss(model(x), y).backward()
        ...     optimizer.step()
        ...     scheduler.step()
    """

    def __init__(self, optimizer: Optimizer, plan: StagePlan, last_epoch: int = -1) -> None:
        if not isinstance(plan, StagePlan):
            raise TypeError(f"plan must be a StagePlan, for instance StagePlan([(lr, steps), …]), got {plan!r}")
        self._plan = plan
        self._ratios = _ratios_to_first(optimizer)
        _check_momentum(optimizer, plan)
        super().__init__(optimizer, last_epoch)

    @property
    def plan(self) -> StagePlan:
        """The plan that sets the learning rates."""
        return self._plan

    @property
    def stage(self) -> int:
        """Index of the stage that the optimizer's next step belongs to."""
        return self._plan.stage_at(self.last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of every param group for the optimizer's next step; sets the groups' momentum."""
        if self._plan.sets_momentum:
            for group in self.optimizer.param_groups:
                group["momentum"] = self._plan[self.stage].momentum
        lr = self._plan.lr_at(self.last_epoch)
        self._take_in_new_groups()
        return [lr * ratio for ratio in self._ratios]

    def _take_in_new_groups(self) -> None:
        if len(self._ratios) < len(self.optimizer.param_groups):  # or the host would wait for rates on a GPU
            self._ratios += _ratios_to_first(self.optimizer)[len(self._ratios) :]

    def state_dict(self) -> dict[str, Any]:
        """Position and plan, as plain values: `torch.load(..., weights_only=True)` reads them back."""
        state = super().state_dict()
        state["plan"] = state.pop("_plan").as_list()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved position, with the saved plan.

        The optimizer's learning rates are set too. So the optimizer's own state may be loaded before this one or after
        it, and also before the scheduler is made.

        Raises:
            ValueError: an entry is missing or out of its range; nothing is changed then.
        """
        check_keys(state_dict, "plan", "last_epoch", "_step_count", "_ratios")
        plan = StagePlan.from_list(state_dict["plan"])
        _check_momentum(self.optimizer, plan)
        for count in ("last_epoch", "_step_count"):
            saved_count(state_dict, count)
        self._take_in_new_groups()
        ratios = state_dict["_ratios"]
        groups = len(self._ratios)
        if not isinstance(ratios, list) or len(ratios) != groups or not all(map(_is_ratio, ratios)):
            raise ValueError(f"state_dict's _ratios must be {groups} finite numbers ≥ 0, got {shown(ratios)}")
        known = {key: value for key, value in state_dict.items() if key in self.__dict__}
        super().load_state_dict(known)
        self._plan = plan
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def _check_momentum(optimizer: Optimizer, plan: StagePlan) -> None:
    if plan.sets_momentum and not all(group.get("momentum") for group in optimizer.param_groups):
        raise ValueError("optimizer must be made with a momentum above 0 in every param group, as the plan sets it")


def _is_ratio(value: object) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _ratios_to_first(optimizer: Optimizer) -> list[float]:
    # A group has an initial_lr if the optimizer had a scheduler before; its lr is then no longer the initial one.
    initial = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if not 0 < initial[0] < math.inf:
        raise ValueError(
            "optimizer's first param group must have an initial lr that is finite and > 0 "
            f"(the other groups keep their ratio to it), got {initial[0]!r}"
        )
    return [lr / initial[0] for lr in initial]
