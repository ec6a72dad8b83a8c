"""The step of a small model, of which most of the time is what surrounds the arithmetic: that is left out here."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sngd.norms.global_norm import ROOM, at_least_float32, has_room, host_may_read, norm_here
from sngd.optim.fused import fused_is_right, fused_sngd
from sngd.optim.kahan import kahan_add_
from sngd.optim.options import averages, coupled_decay
from sngd.optim.part import LEAST_FACTOR, coefficient, left_by_decay
from sngd.optim.pieces import long_ones
from sngd.optim.usual import shapes_if_usual, with_gradients
from sngd.optim.whole_norm import is_no_direction
from sngd.sharding import are_plain

_DTYPE = attrgetter("dtype")
_MOST = {dtype: torch.finfo(dtype).max for dtype in ROOM}


class _Bare(NamedTuple):
    """The tensors of one param group that have gradients, and the vectors v that the step follows.

    They are d = g + λw, or for ``normalize="momentum"`` the new momentum βm + (1−β)d.
    """

    group: dict[str, Any]
    params: list[Tensor]
    vectors: list[Tensor]
    buffers: list[Tensor]
    dropped: list[Tensor]
    shapes: list[torch.Size]


class BareStep(NamedTuple):
    """What a step was taken with: ‖v‖, and whether nothing moved because that is no direction.

    On a GPU, for which the host does not wait, ``skipped`` is a 0-d bool tensor there.
    """

    norm: Tensor
    skipped: bool | Tensor


def bare_step(groups: Sequence[dict[str, Any]], state: Mapping[Tensor, dict[str, Any]]) -> BareStep | None:
    """Take the step of all param groups, if all is usual and no option asks for more than this function does.

    It knows the l2 norm, ``max_scale``, weight decay and momentum, and on the CPU Kahan summation without the last two.
    It changes weights and buffers as ``SNGD.step`` otherwise does, bit for bit. Compiled steps do not come here.

    Args:
        groups, state: the optimizer's.

    Returns:
        None if the step has to be taken another way. Then nothing has been changed.
    """
    if not all(map(_is_known, groups)):
        return None
    parts = []
    for group in groups:
        params, grads = with_gradients(group["params"])
        if params is not group["params"] and not are_plain(group["params"]):
            return None  # of DTensors other ranks may have gradients, also if this one has none
        if params:
            part = _bare(group, params, grads, state)
            if part is None:
                return None
            parts.append(part)
    if not parts or (len(parts) > 1 and len({part.params[0].device for part in parts}) > 1):
        return None
    norm = norm_here([part.vectors for part in parts], [part.shapes for part in parts])
    if host_may_read(norm):
        return BareStep(norm, False) if _moved(parts, norm) else None
    skip = torch.as_tensor(is_no_direction(norm))
    for part in parts:
        _move_on_gpu(part, _coefficient(norm, part.group), skip)
    return BareStep(norm, skip)


def _moved(parts: Sequence[_Bare], norm: Tensor) -> bool:
    """Whether the step could be taken with a norm that the host can read, and now is."""
    if not has_room(norm, [part.vectors[0].dtype for part in parts], communicates=False):
        return False
    moves = []
    for part in parts:
        c = _coefficient(norm, part.group)
        factor = c.item() * float(part.group["lr"])
        if not LEAST_FACTOR < factor <= _MOST[at_least_float32(part.params[0].dtype)]:
            return False
        moves.append((part, c, factor))
    for move in moves:
        _move(*move)
    return True


def _coefficient(norm: Tensor, group: dict[str, Any]) -> Tensor:
    return coefficient(norm, group["lr"], group["max_scale"], 0)


def _is_known(group: dict[str, Any]) -> bool:
    """Whether the group has no other options than this module knows."""
    if group["norm"] != "l2" or group["foreach"] is not None or group["fused"] or group["capturable"]:
        return False
    return not (group["maximize"] or isinstance(group["lr"], Tensor))


def _bare(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Mapping[Tensor, dict[str, Any]]
) -> _Bare | None:
    """The group's tensors, if they are usual, of one dtype that the step knows, and with options short ones."""
    dtype, decay, momentum, on_cpu = params[0].dtype, group["weight_decay"], group["momentum"], params[0].is_cpu
    kahan = group["kahan_sum"] and dtype != at_least_float32(dtype) and on_cpu and not (decay or momentum)
    if not (kahan or dtype in ROOM):
        return None
    buffers: list[Any] = [state[p].get("momentum_buffer") for p in params] if momentum else []
    dropped: list[Any] = [state[p].get("kahan_buffer") for p in params] if kahan else []
    shapes = shapes_if_usual(params, grads, buffers, dropped)
    if shapes is None or {*map(_DTYPE, [*grads, *dropped])} != {dtype}:
        return None
    if (decay or momentum) and on_cpu and long_ones([params]):
        return None  # which are quicker in pieces
    if (momentum or not on_cpu) and (group["fused"] is False or not fused_is_right(params, grads, buffers)):
        return None
    vectors, coupled = grads, coupled_decay(group)
    if coupled:
        vectors = list(torch._foreach_add(vectors, params, alpha=coupled))
    if averages(group):
        vectors = list(torch._foreach_lerp(buffers, vectors, 1 - momentum))
    return _Bare(group, params, vectors, buffers, dropped, shapes)


def _move(part: _Bare, c: Tensor, factor: float) -> None:
    """Decoupled weight decay, then w ← w − α c v, or with momentum of normalized gradients u ← βu + c v, w ← w − αu.

    With Kahan summation w is rounded, and what that drops is kept.
    """
    group = part.group
    if group["weight_decay"] and group["decoupled_weight_decay"]:
        torch._foreach_mul_(part.params, 1 - group["lr"] * group["weight_decay"])
    if part.dropped:
        kahan_add_(part.params, part.vectors, part.dropped, -factor)
        return
    if not part.buffers:
        torch._foreach_add_(part.params, part.vectors, alpha=-factor)
        return
    _fused(part, c, None)


def _move_on_gpu(part: _Bare, c: Tensor, skip: Tensor) -> None:
    """The same, unless ``skip``."""
    group = part.group
    if group["weight_decay"] and group["decoupled_weight_decay"]:
        torch._foreach_mul_(part.params, left_by_decay(group["lr"] * group["weight_decay"], skip, part.params[0]))
    _fused(part, c, skip)


def _fused(part: _Bare, c: Tensor, skip: Tensor | None) -> None:
    options = {name: part.group[name] for name in ("lr", "momentum", "normalize")}
    fused_sngd(part.params, part.vectors, part.buffers, c=c, skip=skip, new_averages=part.vectors, **options)
