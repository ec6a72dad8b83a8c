"""The global norm: the Euclidean norm of all parameters' gradients together, not layer by layer."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from sngd.sharding import (
    Sharding,
    Spread,
    accelerator_or_cpu,
    all_local,
    are_plain,
    is_plain,
    is_shared,
    max_over_ranks,
    sharding_of,
    sum_over_ranks,
)

# For norms in this range, the sum of squares, 1/norm and their products with common learning rates keep all digits.
ROOM = {torch.float32: (1e-15, 1e15), torch.float64: (1e-145, 1e145)}
_FACTOR = 100  # largest exponent of one multiplication: float32 holds 2^±100, but not the 2^±1074 of float64's range
_NOWHERE: Mapping[Spread, torch.device] = MappingProxyType({})

# Several 1-D tensors up to this size are copied into one tensor; on the CPU this is cheaper than a call for each.
_SMALL, _SEVERAL = 4096, 8
_SMALL_ON_ACCELERATOR = 2**16  # entries

# On the CPU, longer tensors are summed row by row, to lose fewer digits. The limit depends on the bytes of an entry.
# Up to it, torch's single sum is wrong by at most 1e-6 of the norm for normal entries, and by 1.3e-4 for equal ones.
_LONG = {2: 8192, 4: 131072}
_ROW = 1024
_PIECE = 512 * _ROW


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all ``tensors`` together, √Σ‖t‖².

    Squares are summed in float32, whatever the tensors' dtype, or in float64 if any tensor is float64.
    On the CPU, if the sum leaves the dtype's range, it is computed again from tensors times a power of two. So all
    finite tensors get their norm. On an accelerator the host would have to wait to know this, so there the norm may
    come out as 0 or inf. DTensors count in full: the ranks' sums of squares are added up, by one small all-reduce for
    each mesh dimension over which something is sharded.

    Args:
        tensors: real tensors of any shapes, dtypes and devices; may be empty. DTensors sharded or replicated.

    Returns:
        0-d float32 or float64 tensor on an accelerator if any tensor is (0 on the CPU for no tensors). Computing it
        never waits for an accelerator.

    Raises:
        RuntimeError: a DTensor has a partial placement, or this rank is not in its mesh.
    """
    lists: list[tuple[Spread, list[Tensor]]] = [
        ((sharding, ()), all_local(some)) for (_, _, sharding), some in by_kind(tensors).items()
    ]
    norm = norm_of_lists(lists)
    dtypes = {some[0].dtype for _, some in lists}
    if not host_may_read(norm) or has_room(norm, dtypes, communicates=any(is_shared(spread) for spread, _ in lists)):
        return norm
    exponent = exponent_of_largest(lists)
    if exponent is None:
        return norm
    scaled = norm_of_lists((spread, times_power_of_two(some, -exponent)) for spread, some in lists)
    return torch.tensor(ldexp(scaled.item(), exponent), dtype=torch.float64, device="cpu")


def host_may_read(norm: Tensor) -> bool:
    """Whether reading a number neither waits for an accelerator nor breaks a compiled graph."""
    return norm.is_cpu and not torch.compiler.is_compiling()


def has_room(norm: Tensor, dtypes: Iterable[torch.dtype], *, communicates: bool) -> bool:
    """Whether the sum of squares behind this norm, and the norm's reciprocal, keep all digits.

    Args:
        norm: 0-d, on the CPU; it is read.
        dtypes: dtypes of the tensors whose norm it is.
        communicates: whether other ranks have part of the tensors. They may have other dtypes but must find the same
            answer, so the narrower range is used.
    """
    wide = not communicates and {*dtypes} <= {torch.float64}
    low, high = ROOM[torch.float64 if wide else torch.float32]
    return low < norm.item() < high


def least_exact_norm(dtype: torch.dtype) -> float:
    """The least norm whose square has all digits of ``dtype``."""
    info = torch.finfo(dtype)
    return math.sqrt(info.tiny / info.eps)


def exponent_of_largest(
    lists: Iterable[tuple[Spread, list[Tensor]]], everywhere: Mapping[Spread, torch.device] = _NOWHERE
) -> int | None:
    """e with 2^(e−1) ≤ largest absolute entry < 2^e, over all ranks; None if that entry is 0 or not finite.

    Args:
        lists, everywhere: as for ``norm_of_lists``; tensors on the CPU.
    """
    largest: dict[Spread, float] = dict.fromkeys(everywhere, 0.0)
    for spread, tensors in lists:
        values = [torch.linalg.vector_norm(t, math.inf).item() for t in tensors if t.numel()]
        here = max(values, default=0.0) if all(map(math.isfinite, values)) else math.inf  # max() may ignore nan
        largest[spread] = max(largest.get(spread, 0.0), here)
    if any(map(is_shared, largest)):
        on_cpu = {spread: torch.tensor(value, dtype=torch.float64, device="cpu") for spread, value in largest.items()}
        most = max_over_ranks(on_cpu).item()
    else:
        most = max(largest.values(), default=0.0)
    return math.frexp(most)[1] if 0 < most < math.inf else None


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype for computing with tensors of ``dtype``: float32 for narrower ones, else ``dtype`` itself."""
    return dtype if dtype is torch.float32 else torch.promote_types(dtype, torch.float32)


def times_power_of_two(tensors: Sequence[Tensor], exponent: int) -> list[Tensor]:
    """Each tensor times 2^exponent, in float32 or wider; exact, unless a result is subnormal or overflows."""
    scaled = [t.to(at_least_float32(t.dtype)) for t in tensors]
    while scaled and exponent:
        part = max(-_FACTOR, min(_FACTOR, exponent))
        scaled = list(torch._foreach_mul(scaled, 2.0**part))
        exponent -= part
    return scaled


def ldexp(x: float, exponent: int) -> float:
    """x · 2^exponent; inf if it is too large for a float."""
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.inf


def by_kind(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype, Sharding], list[Tensor]]:
    """The tensors, in order, by device, dtype and sharding, because list kernels take tensors of one kind."""
    tensors = list(tensors)
    if _are_alike(tensors):  # as nearly always, and soon known
        return {(tensors[0].device, tensors[0].dtype, None): tensors}
    kinds = defaultdict(list)
    for tensor in tensors:
        sharding = None if is_plain(tensor) else sharding_of(tensor)
        kinds[tensor.device, tensor.dtype, sharding].append(tensor)
    return kinds


def _are_alike(tensors: list[Tensor]) -> bool:
    """Whether there are tensors, and all of them are plain ones on the CPU, of one dtype."""
    if not tensors or torch.compiler.is_compiling() or not are_plain(tensors):
        return False
    return all(map(attrgetter("is_cpu"), tensors)) and len({t.dtype for t in tensors}) == 1


class Unmade(NamedTuple):
    """A long tensor on the CPU of which only the norm is wanted, so that it is never there as a whole.

    Attributes:
        like: a tensor of its shape, dtype and device.
        pieces: makes it, as flat pieces one after another. All but the last have a multiple of 1024 entries.
    """

    like: Tensor
    pieces: Callable[[], Iterator[Tensor]]


def norm_of_lists(
    lists: Iterable[tuple[Spread, Sequence[Tensor | Unmade]]], everywhere: Mapping[Spread, torch.device] = _NOWHERE
) -> Tensor:
    """``global_norm`` of all tensors of all lists, given as local tensors.

    Args:
        lists: spread and tensors; those of one list share device and dtype, and no list is empty.
        everywhere: spreads of which other ranks may have tensors, each with a device of this rank. If this rank has no
            tensors of a spread, it takes part in the sum with a zero on that device.
    """
    lists = list(lists)
    if not everywhere and len(lists) == 1 and not is_shared(lists[0][0]):
        return norm_here([lists[0][1]])
    here: dict[Spread, list[Sequence[Tensor | Unmade]]] = {spread: [] for spread in everywhere}
    for spread, tensors in lists:
        here.setdefault(spread, []).append(tensors)
    if not any(map(is_shared, here)):
        return norm_here([tensors for some in here.values() for tensors in some])
    norms = {
        spread: norm_here(some) if some else torch.zeros((), device=everywhere[spread]) for spread, some in here.items()
    }
    return sum_over_ranks({spread: square(norm) for spread, norm in norms.items()}).sqrt()


def square(norm: Tensor) -> Tensor:
    """The square, in float64 if the device has it, so that 1e-30 squared is not 0 and all ranks have the same dtype."""
    return norm.to(torch.float64 if norm.device.type in ("cpu", "cuda") else torch.float32).square()


def norm_here(
    lists: Sequence[Sequence[Tensor | Unmade]], shapes: Sequence[Sequence[torch.Size] | None] | None = None
) -> Tensor:
    """The norm of this rank's tensors; for each list, ``shapes`` may have its tensors' if they are known already."""
    if not lists:
        return torch.zeros((), device="cpu")
    firsts = [tensors[0] if isinstance(tensors[0], Tensor) else tensors[0].like for tensors in lists]
    dtype = torch.float64 if torch.float64 in [first.dtype for first in firsts] else torch.float32
    known = zip(lists, shapes or [None] * len(lists), strict=True)
    norms = [_norms(tensors, dtype, of) for tensors, of in known]
    if len(norms) == len(norms[0]) == 1:
        return norms[0][0]
    parts = [*map(torch.stack, norms)]
    if len(parts) > 1:
        home = accelerator_or_cpu(first.device for first in firsts)
        parts = [torch.cat([part.to(home, non_blocking=True) for part in parts])]
    whole: Tensor = torch.linalg.vector_norm(parts[0])
    return whole


def _norms(
    tensors: Sequence[Tensor | Unmade], dtype: torch.dtype, shapes: Sequence[torch.Size] | None
) -> tuple[Tensor, ...] | list[Tensor]:
    """0-d norms whose squares add up to the tensors' squares."""
    made = [t if isinstance(t, Tensor) else t.like for t in tensors]
    on_cpu, compiling = made[0].is_cpu, torch.compiler.is_compiling()
    # torch 2.13's compiler forgets a factor in the gradient of norms of norms of rows
    differentiated = compiling and torch.is_grad_enabled() and any(t.requires_grad for t in made)
    if differentiated or (compiling and not on_cpu):
        return torch._foreach_norm(made, 2, dtype)
    if not on_cpu:
        return torch._foreach_norm(merged(made), 2, dtype)
    if compiling:  # it makes code for single norms, and calls the list kernel
        return [norm_of_one(t, dtype) for t in made]
    if made[0].dtype != dtype and made[0].is_floating_point():
        return _norms_of_converted(tensors, dtype)
    small, short, long = _by_length(tuple(shapes or [t.shape for t in made]), made[0].itemsize)
    if len(short) == len(made):
        return torch._foreach_norm(made, 2, dtype)
    lists: tuple[list[Tensor], list[Tensor | Unmade]] = [made[i] for i in short], [tensors[i] for i in long]
    if small:
        together = torch.cat([made[i] for i in small])
        (lists[1] if is_long(together.numel(), together.itemsize) else lists[0]).append(together)
    norms = list(torch._foreach_norm(lists[0], 2, dtype)) if lists[0] else []
    return norms + [norm_by_rows(t, dtype) for t in lists[1]]


def _norms_of_converted(tensors: Sequence[Tensor | Unmade], dtype: torch.dtype) -> list[Tensor]:
    """``_norms`` on the CPU of tensors of another dtype. As each conversion is a call of its own, they are joined."""
    made = [t for t in tensors if isinstance(t, Tensor) and t.numel() <= _PIECE]
    others = [t for t in tensors if not isinstance(t, Tensor) or t.numel() > _PIECE]
    ends = accumulate(map(Tensor.numel, made))
    batches = groupby(zip(ends, made, strict=True), key=lambda end_of: end_of[0] // _PIECE)
    joined = [_flatten_dense_tensors([t for _, t in batch]) for _, batch in batches]
    return [norm_by_rows(t, dtype) for t in (*joined, *others)]


def merged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors with the same entries, of which a flat one has those of small contiguous ones, for an accelerator.

    Copying these takes less time there than the host takes to start an operation for each.
    """
    small: list[Tensor] = []
    others: list[Tensor] = []
    for t in tensors:
        (small if t.numel() <= _SMALL_ON_ACCELERATOR and t.is_contiguous() else others).append(t)
    return [_flatten_dense_tensors(small), *others] if len(small) > 1 else [*tensors]


@lru_cache(maxsize=256)
def _by_length(shapes: tuple[torch.Size, ...], itemsize: int) -> tuple[list[int], list[int], list[int]]:
    """Indices of the tensors that are summed as one, one by one, and row by row; the same in every step of a model."""
    small: list[int] = []
    others: tuple[list[int], list[int]] = [], []
    for i, shape in enumerate(shapes):
        is_small = len(shape) == 1 and shape.numel() <= _SMALL
        (small if is_small else others[is_long(shape.numel(), itemsize)]).append(i)
    if len(small) < _SEVERAL:
        others[0].extend(small)
        small = []
    return small, *others


def is_long(numel: int, itemsize: int) -> bool:
    """Whether the norm of so many entries of so many bytes is summed row by row."""
    return numel > _LONG.get(itemsize, math.inf)


def norm_of_one(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """‖tensor‖₂, 0-d, with the digits that a single sum of a long tensor would lose on the CPU."""
    if is_long(tensor.numel(), tensor.itemsize):
        return norm_by_rows(tensor, dtype)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=dtype)
    return norm


def norm_by_rows(tensor: Tensor | Unmade, dtype: torch.dtype) -> Tensor:
    """The norm of row norms. torch's single sum on the CPU is wrong by 4e-4 of the norm for 10⁷ entries in float32."""
    norms = []
    for flat in _flat_pieces(tensor, dtype) if isinstance(tensor, Tensor) else tensor.pieces():
        count, over = divmod(flat.numel(), _ROW)
        norms.append(torch.linalg.vector_norm(flat.narrow(0, 0, count * _ROW).view(-1, _ROW), dim=1, dtype=dtype))
        rest = flat.narrow(0, count * _ROW, over)
    together = torch.cat([*norms, torch.linalg.vector_norm(rest, dtype=dtype).view(1)])
    if is_long(together.numel(), together.itemsize):
        return norm_by_rows(together, dtype)
    whole: Tensor = torch.linalg.vector_norm(together, dtype=dtype)
    return whole


def _flat_pieces(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The tensor's entries in one row; in pieces, each in the place of the one before, if they are converted."""
    flat = tensor.reshape(-1)
    if tensor.dtype == dtype or torch.compiler.is_compiling():  # torch's compiler converts as it adds up
        yield flat
        return
    if flat.requires_grad and torch.is_grad_enabled():  # autograd keeps every piece
        yield from flat.split(_PIECE)
        return
    room = torch.empty(min(_PIECE, len(flat)), dtype=dtype, device=flat.device)
    for piece in flat.split(_PIECE):
        yield room[: len(piece)].copy_(piece)
