"""The one global norm: every method here measures all parameters together, never layer by layer."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from sngd.sharding import PLAIN, Sharding, Spread, all_local, sharding_of, sum_over_ranks

# Below this a sum of squares in float32 is no longer exact to rounding: entries of 1e-23 square to nothing.
_FLOAT32_FLOOR = 1e-15

# Biases and normalization layers up to this size are copied side by side: on the CPU cheaper than a call for each.
_SMALL = 4096

# Longer tensors on the CPU, by bytes an entry, are summed in rows: sums of float16 and bfloat16 lose more.
_LONG = {2: 8192, 4: 65536}
_ROW = 1024


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all ``tensors`` together, √Σ‖t‖².

    Squares are summed in float32, whatever the tensors' dtype, or in float64 if any tensor is float64.
    On the CPU a sum that leaves float32's range is taken again in float64, so that a gradient of 1e-30, as near a
    saddle, still has a direction; an accelerator would have to ask the host, so there it counts as 0 or inf.
    DTensors count in full: the ranks' sums of squares are added up, by one small all-reduce for each mesh dimension
    that shards something.

    Args:
        tensors: real tensors of any shapes, dtypes and devices; may be empty. DTensors sharded or replicated.

    Returns:
        0-d float32 or float64 tensor on an accelerator if any tensor is (0 on the CPU for no tensors). Computing it
        never waits for an accelerator.

    Raises:
        RuntimeError: a DTensor has a partial placement, or this rank is not in its mesh.
    """
    return norm_of_lists(((sharding, ()), all_local(some)) for (_, _, sharding), some in by_kind(tensors).items())


def by_kind(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype, Sharding], list[Tensor]]:
    """The tensors, in order, by device, dtype and sharding: list kernels want tensors of one kind."""
    kinds = defaultdict(list)
    for tensor in tensors:
        sharding = None if type(tensor) in PLAIN else sharding_of(tensor)  # a call less for each of many tensors
        kinds[tensor.device, tensor.dtype, sharding].append(tensor)
    return kinds


def norm_of_lists(
    lists: Iterable[tuple[Spread, list[Tensor]]], everywhere: Mapping[Spread, torch.device] = MappingProxyType({})
) -> Tensor:
    """``global_norm`` of all tensors of all lists, given as local tensors.

    Args:
        lists: spread and tensors; those of one list share device and dtype, and no list is empty.
        everywhere: spreads of which another rank may have a list though this one has none: it joins their sums, with
            a zero on the device given.
    """
    here: dict[Spread, list[list[Tensor]]] = {spread: [] for spread in everywhere}
    for spread, tensors in lists:
        here.setdefault(spread, []).append(tensors)
    if not any(groups or (sharding and sharding[1]) for sharding, groups in here):
        return _norm_here([tensors for some in here.values() for tensors in some])
    norms = {
        spread: _norm_here(some) if some else torch.zeros((), device=everywhere[spread])
        for spread, some in here.items()
    }
    return sum_over_ranks({spread: _square(norm) for spread, norm in norms.items()}).sqrt()


def _square(norm: Tensor) -> Tensor:
    """In one dtype on all ranks, whatever they hold, and in float64 where there is one: 1e-30 squared is not 0."""
    return norm.to(torch.float64 if norm.device.type in ("cpu", "cuda") else torch.float32).square()


def _norm_here(lists: list[list[Tensor]]) -> Tensor:
    """Norm of what this rank holds."""
    if not lists:
        return torch.zeros(())
    dtype = torch.float64 if any(tensors[0].dtype == torch.float64 for tensors in lists) else torch.float32
    norm = _norm(lists, dtype)
    if norm.device.type == "cpu" and dtype == torch.float32 and not torch.compiler.is_compiling():
        in_range = _FLOAT32_FLOOR < norm.item() < torch.inf
        return norm if in_range else _norm(lists, torch.float64)
    return norm


def _norm(lists: Sequence[list[Tensor]], dtype: torch.dtype) -> Tensor:
    devices = [tensors[0].device for tensors in lists]
    home = next((device for device in devices if device.type != "cpu"), devices[0])  # towards the CPU one must wait
    parts = [torch.stack(_norms(tensors, dtype)).to(home, non_blocking=True) for tensors in lists]
    whole: Tensor = torch.linalg.vector_norm(parts[0] if len(parts) == 1 else torch.cat(parts))
    return whole


def _norms(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """0-d norms whose squares add up to the tensors' squares."""
    if tensors[0].device.type != "cpu" or torch.compiler.is_compiling():
        return list(torch._foreach_norm(tensors, 2, dtype))
    limit = _LONG.get(tensors[0].itemsize, math.inf)
    small: list[Tensor] = []
    short: list[Tensor] = []
    long: list[Tensor] = []
    for t in tensors:
        n = t.numel()
        (small if n <= _SMALL and t.dim() == 1 else short if n <= limit else long).append(t)
    if small:
        merged = torch.cat(small) if len(small) > 1 else small[0]
        (short if merged.numel() <= limit else long).append(merged)
    norms = list(torch._foreach_norm(short, 2, dtype)) if short else []
    return norms + [_norm_by_rows(t, dtype) for t in long]


def _norm_by_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm of row norms. As one sum, torch's on the CPU, 10⁷ entries in float32 err by 4e-4 of their norm."""
    flat = tensor.reshape(-1)
    rows = flat[: flat.numel() // _ROW * _ROW].view(-1, _ROW)
    rest = flat[rows.numel() :]
    norms = [torch.linalg.vector_norm(rows, dim=1, dtype=dtype), torch.linalg.vector_norm(rest, dtype=dtype).view(1)]
    return _norms([torch.cat(norms)], dtype)[0]
