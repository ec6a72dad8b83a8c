"""Unit steps that divide by lengths ‖·‖₂, of tensors, of their rows or of their columns, for many tensors at once."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sngd.norms.global_norm import ROOM, is_long, norm_by_rows, norm_of_one

_CHUNK = 2**17  # entries of a sum of squares by columns, which stays in the cache


class Divisors(NamedTuple):
    """For unit(v) = v / divisor: the divisors, which broadcast to their tensors, and Σ ‖v‖* over all of them, 0-d."""

    each: list[Tensor]
    dual: Tensor


def lengths(vs: Sequence[Tensor], over: Sequence[int]) -> list[Tensor] | None:
    """‖V‖₂ over dimensions of each tensor's matrix (``Weight``), in a shape that broadcasts to the tensor.

    Args:
        vs: float32 or float64, of any shapes and strides, on the CPU; not empty.
        over: some of -2 (the length of a column) and -1 (of a row); both: of the whole tensor.

    Returns:
        None if squares are so small that a length is 0 that should not be. Others that lost digits: see ``divisors``.
    """
    if -1 not in over:
        found = list(map(_of_columns, vs))
    elif -2 not in over:
        found = list(map(_of_rows, vs))
    else:
        short = [v for v in vs if not is_long(v.numel(), v.itemsize)]
        norms = iter(torch._foreach_norm(short) if short else [])
        found = [norm_by_rows(v, v.dtype) if is_long(v.numel(), v.itemsize) else next(norms) for v in vs]
    if not _flat(found).all() and any(map(_is_lost, vs, found)):
        return None
    return found


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _is_lost(v: Tensor, length: Tensor) -> bool:
    """Whether the tensor has an entry that is not 0 where its length is 0."""
    return not length.all() and bool((v.ne(0) & length.eq(0)).any())


def _of_rows(v: Tensor) -> Tensor:
    """A vector is a column, whose rows have one entry."""
    inner = tuple(range(1, v.dim()))
    return torch.linalg.vector_norm(v, dim=inner, keepdim=True) if inner else v.abs()


def _of_columns(v: Tensor) -> Tensor:
    """torch's own norm of columns takes several times as long, and adds up all squares of a column one by one."""
    if v.dim() < 2:
        return norm_of_one(v, v.dtype)
    first, *others = [v] if v.numel() <= _CHUNK else v.split(max(1, _CHUNK * len(v) // v.numel()))
    squares = first.square()
    for chunk in others:
        squares[: len(chunk)].addcmul_(chunk, chunk)
    length: Tensor = squares.sum(0, keepdim=True).sqrt_()
    return length


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The length of what was measured in parts, over the same dimensions."""
    if len(parts) == 1:
        return parts[0]
    length: Tensor = torch.linalg.vector_norm(torch.stack(list(parts)), dim=0)
    return length


def divisors(measured: Sequence[Tensor], factors: Sequence[float]) -> Divisors | None:
    """Lengths over factors, and the sum of all factors times lengths; None if a square has left float32's range.

    What has length 0 is divided by a number that is not 0.

    Args:
        measured: lengths, float32 or float64, on the CPU; not empty.
        factors: that of each tensor's unit step.
    """
    all_lengths = _flat(measured)
    low, high = ROOM[torch.float32]
    made = list(measured)
    have_room = (all_lengths > low) & (all_lengths < high)  # which nan has not
    if not have_room.all():
        if not (have_room | (all_lengths == 0)).all():
            return None
        made = [torch.where(length == 0, 1, length) for length in measured]
    if {*factors} == {1.0}:
        return Divisors(made, all_lengths.sum(dtype=torch.float64))
    dual = _flat(torch._foreach_mul(list(measured), list(factors))).sum(dtype=torch.float64)
    return Divisors(list(torch._foreach_div(made, list(factors))), dual)
