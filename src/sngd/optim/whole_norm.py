"""The norm of a whole step: one l2 ball, and a ball for each tensor of the groups that have another norm.

The size of a step is the largest of its sizes in all balls. The dual norm of the gradient is then the sum of the dual
norms: ‖g‖* = ‖g of the l2 groups‖₂ + Σ ‖g_i‖* over the tensors i of the other groups.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import inf, ldexp
from typing import NamedTuple

import torch
from torch import Tensor

from sngd.norms.global_norm import (
    exponent_of_largest,
    has_room,
    host_may_read,
    least_exact_norm,
    norm_here,
    norm_of_lists,
    square,
)
from sngd.optim.ball import BallPart
from sngd.optim.part import Norms, Part
from sngd.sharding import Spread, is_shared, max_over_ranks, sum_over_ranks

Everywhere = Mapping[Spread, torch.device]


def norms_of(parts: Sequence[Part], everywhere: Everywhere) -> Norms:
    """The norms of all parts' vectors, over all ranks.

    If squares or sums would leave their dtype's range, vectors are scaled by a power of two first, provided that the
    host may read the norm (``host_may_read``).

    Args:
        everywhere: as for ``norm_of_lists``.
    """
    joint = [part for part in parts if not isinstance(part, BallPart)]
    balls = [part for part in parts if isinstance(part, BallPart)]
    other_models = any(groups for _, groups in everywhere)  # whose ranks may have balls
    if not balls and not other_models:
        l2, exponent = _l2_norm(joint, everywhere)
        return Norms(l2, exponent, l2)

    elsewhere = joint or everywhere or len({part.params[0].device for part in balls}) > 1
    sums = _sums(joint, balls, everywhere) if elsewhere else _sums_of_balls_here(balls)
    l2, dual = sums.squares.sqrt(), sums.duals
    if not host_may_read(dual):
        return Norms(l2 + dual, 0, l2)
    exponents = [0, 0]
    dtypes = {part.vectors[0].dtype for part in joint}
    if sums.joint and not has_room(l2, dtypes, communicates=any(map(is_shared, everywhere))):
        l2, exponents[0] = _l2_norm(joint, everywhere)
    if not sums.balls:
        return Norms(l2, exponents[0], l2)
    if not has_room(dual, [], communicates=True):
        dual, exponents[1] = _scaled_dual(balls, everywhere)
    return Norms(*_sum(l2, exponents[0], dual, exponents[1]), l2)


def _l2_norm(parts: Sequence[Part], everywhere: Everywhere) -> tuple[Tensor, int]:
    """‖v‖₂ over all parts as norm · 2^exponent; the parts' vectors are scaled accordingly."""
    norm = norm_of_lists([(part.spread, part.measured()) for part in parts], everywhere)
    dtypes = [part.dtype for part in parts]
    if not host_may_read(norm) or has_room(norm, dtypes, communicates=any(map(is_shared, everywhere))):
        return norm, 0
    ingredients = exponent_of_largest([(part.spread, part.ingredients()) for part in parts], everywhere)
    if ingredients is None:
        return norm, 0
    for part in parts:
        part.scale_ingredients(-ingredients)
    vectors = exponent_of_largest([(part.spread, part.vectors) for part in parts], everywhere)
    if vectors is None:  # they cancelled
        return torch.zeros((), device="cpu"), 0
    for part in parts:
        part.scale_vectors(-vectors)
    return norm_of_lists([(part.spread, part.vectors) for part in parts], everywhere), ingredients + vectors


class _Sums(NamedTuple):
    """0-d tensors: the l2 ball's sum of squares, the other balls' dual norms, and how many parts of each there are."""

    squares: Tensor
    duals: Tensor
    joint: Tensor
    balls: Tensor


def _sums(joint: Sequence[Part], balls: Sequence[BallPart], everywhere: Everywhere, exponent: int = 0) -> _Sums:
    """The sums over all ranks, by one all-reduce for each mesh dimension and process group; duals · 2^−exponent."""
    spreads: dict[Spread, list[Part]] = {spread: [] for spread in everywhere}
    for part in (*joint, *balls):
        spreads.setdefault(part.spread, []).append(part)
    sums = {}
    for spread, some in spreads.items():
        devices = [part.params[0].device for part in some if part.params]
        sums[spread] = _sums_here(some, exponent, devices[0] if devices else everywhere[spread])
    return _Sums(*sum_over_ranks(sums).unbind())


def _sums_of_balls_here(balls: Sequence[BallPart]) -> _Sums:
    """``_sums`` of balls alone that are on one device of this rank, in fewer operations."""
    duals = [part.dual() for part in balls]
    total = duals[0] if len(duals) == 1 else torch.stack(duals).sum()
    zero = torch.zeros_like(total)
    return _Sums(zero, total, zero, torch.ones_like(total))


def _sums_here(parts: Sequence[Part], exponent: int, device: torch.device) -> Tensor:
    """This rank's ``_Sums`` of parts on one device, as one tensor."""
    joint = [part.vectors for part in parts if not isinstance(part, BallPart)]
    balls = [part for part in parts if isinstance(part, BallPart)]
    norm = norm_here(joint) if joint else torch.zeros((), device=device)  # no copy from the host, for CUDA graphs
    if not host_may_read(norm):  # squares that have lost digits count as 0, so that this ball stays where it is
        norm = torch.where(norm < least_exact_norm(norm.dtype), 0, norm)
    later = device.type != "cpu"
    squares = square(norm.to(device, non_blocking=later))
    duals = torch.zeros_like(squares)
    for part in balls:
        duals = duals + part.dual(exponent).to(device, non_blocking=later)
    counts = [torch.full_like(squares, len(some)) for some in (joint, balls)]
    return torch.stack([squares, duals.to(squares.dtype), *counts])


def _scaled_dual(balls: Sequence[BallPart], everywhere: Everywhere) -> tuple[Tensor, int]:
    """Σ ‖v‖* over all parts and ranks as sum · 2^exponent."""
    largest: dict[Spread, float] = defaultdict(lambda: -inf, dict.fromkeys(everywhere, -inf))
    for part in balls:
        largest[part.spread] = max(largest[part.spread], part.exponent_of_largest())
    on_cpu = {spread: torch.tensor(value, dtype=torch.float64, device="cpu") for spread, value in largest.items()}
    most = max_over_ranks(on_cpu).item()
    exponent = int(most) if abs(most) < inf else 0
    return _sums([], balls, everywhere, exponent).duals, exponent


def _sum(l2: Tensor, l2_exponent: int, dual: Tensor, dual_exponent: int) -> tuple[Tensor, int]:
    """l2 · 2^l2_exponent + dual · 2^dual_exponent as sum · 2^exponent."""
    if l2_exponent == dual_exponent == 0:
        return l2 + dual, 0
    exponent = max(e for norm, e in ((l2, l2_exponent), (dual, dual_exponent)) if norm != 0 or e)
    total = ldexp(l2.item(), l2_exponent - exponent) + ldexp(dual.item(), dual_exponent - exponent)
    return torch.tensor(total, dtype=torch.float64, device="cpu"), exponent


def is_no_direction(norm: Tensor) -> bool | Tensor:
    """Whether the norm is zero or not finite.

    If the host may not read it, the answer is a 0-d bool tensor, and vectors are never scaled. Then a norm whose
    squares have lost digits counts too.
    """
    if host_may_read(norm):
        return not 0 < norm.item() < inf
    # two operations, where comparing with both limits would take four
    return norm.clamp(least_exact_norm(norm.dtype), torch.finfo(norm.dtype).max) != norm
