"""The option ``norm_group``: process groups whose ranks hold other parameters of the same model.

State dicts and pickles cannot hold process groups, so an optimizer keeps them beside its param groups.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sngd.sharding import Groups, Spread, are_plain, is_plain, is_shared, sharding_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    NormGroup = ProcessGroup | Sequence[ProcessGroup] | None

# The value of "norm_group" in a param group that has process groups. State dicts save this text alone.
HELD = "held by the optimizer, not saved"

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"
_told: set[str] = set()  # warnings that this process has given


class NormGroups:
    """The process groups of each param group of one optimizer.

    Param groups are copied into state dicts, by deepcopy, and by ``ZeroRedundancyOptimizer`` between its own and those
    of the optimizer inside. So process groups that are assigned to a param group are moved from there to this object.
    Loading a state dict does not change them. A deep copy has the same process groups. A pickle has none.
    """

    def __init__(self, default: "NormGroup" = None) -> None:
        self.default: Groups | None = process_groups(default)
        self.each: list[Groups | None] = []  # None: lost with a pickle

    def given_to(self, param_group: dict[str, Any]) -> Groups | None:
        """The process groups of a new param group: its own if it has any, else the default."""
        return process_groups(param_group["norm_group"]) if "norm_group" in param_group else self.default

    def take_from(self, param_groups: list[dict[str, Any]]) -> None:
        """Take over what was assigned to ``param_groups[i]["norm_group"]``; None and ``HELD`` change nothing."""
        for i, group in enumerate(param_groups):
            if (given := group["norm_group"]) is not None and not isinstance(given, str):
                self.each[i] = process_groups(given)
                group["norm_group"] = shown(self.each[i])

    def show_in(self, param_groups: list[dict[str, Any]]) -> None:
        """Set "norm_group" of loaded param groups to what this optimizer has; they came with the saved optimizer's."""
        for groups, group in zip(self.each, param_groups, strict=True):
            group["norm_group"] = shown(groups)

    def known(self) -> list[Groups]:
        """The process groups of each param group.

        Raises:
            RuntimeError: a pickle lost them. Without them the norm would silently leave out other ranks' parameters.
        """
        known = [groups for groups in self.each if groups is not None]
        if len(known) < len(self.each):
            raise RuntimeError(
                "norm_group of this optimizer is lost, because pickles cannot hold process groups: set "
                'param_groups[i]["norm_group"] again, to () where nothing is to be summed'
            )
        return known

    def __deepcopy__(self, memo: dict[int, Any]) -> "NormGroups":
        twin = NormGroups()
        twin.default, twin.each = self.default, list(self.each)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {"default": _pickled(self.default), "each": [_pickled(groups) for groups in self.each]}


def _pickled(groups: Groups | None) -> Groups | None:
    return None if groups else groups


def shown(groups: Groups | None) -> str | None:
    """The value of "norm_group" in a param group with these process groups."""
    return None if groups == () else HELD


def process_groups(given: object) -> Groups:
    """A process group or a sequence of them as a tuple.

    Raises:
        TypeError: it is something else.
        ValueError: one is given twice, or this rank is not part of one.
    """
    if given is None:
        return ()
    from torch.distributed import GroupMember, ProcessGroup

    groups = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    for group in groups:
        if group is GroupMember.NON_GROUP_MEMBER:
            raise ValueError("norm_group has a process group that this rank is not part of: give each rank its own")
        if not isinstance(group, ProcessGroup):
            raise TypeError(f"norm_group must be a process group or a sequence of process groups, got {given!r}")
    if len(set(groups)) < len(groups):
        raise ValueError(f"norm_group has a process group twice, and would count its ranks twice: {given!r}")
    return groups


def spreads(param_groups: list[dict[str, Any]], groups: list[Groups]) -> dict[Spread, torch.device]:
    """The ways in which parameters are spread over ranks, each with a device that this rank has such parameters on.

    Parameters without a gradient count too: all ranks must take part in the same sums, even one without a parameter.
    """
    found: dict[Spread, torch.device] = {}
    params: list[Tensor] = [p for group in param_groups for p in group["params"]]
    anywhere = params[0].device if params else torch.device("cpu")
    for group, over in zip(param_groups, groups, strict=True):
        params = group["params"]
        if over:
            found.setdefault((None, over), params[0].device if params else anywhere)
        for p in () if are_plain(params) else params:
            if not is_plain(p) and p.requires_grad and is_shared(spread := (sharding_of(p), ())):
                found.setdefault((spread[0], over), p.device)
    return found


def warn_inside_zero(groups: list[Groups]) -> None:
    """Warn if ``ZeroRedundancyOptimizer`` makes this optimizer and ``norm_group`` does not name the other ranks."""
    if all(groups) or torch.compiler.is_compiling() or _ZERO not in sys.modules or not _called_from(_ZERO):
        return
    if torch.distributed.get_world_size() > 1:
        warnings.warn(
            "ZeroRedundancyOptimizer shows each rank's SNGD only a part of the parameters, and no norm_group is given: "
            "each rank normalizes its part by itself and a step has √(number of ranks) times the length lr: "
            "pass norm_group=torch.distributed.group.WORLD, or the process_group of ZeroRedundancyOptimizer",
            stacklevel=3,
        )


def _called_from(module: str) -> bool:
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") != module:
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return True


def warn_inside_backward(groups: list[Groups]) -> None:
    """Warn, once a process, if a step is taken inside backward, as a hook of a single parameter does."""
    if torch.compiler.is_compiling() or any(groups) or torch._C._current_graph_task_id() == -1 or "backward" in _told:
        return
    _told.add("backward")
    warnings.warn(
        "SNGD steps inside backward, where an optimizer usually has one parameter or one layer: each of them moves by "
        "its own lr along its own normalized gradient, which is another method than one step of length lr of the "
        "whole model. If the latter is wanted, step one optimizer of all parameters after backward",
        stacklevel=5,
    )
