"""The one global norm: every method here measures all parameters together, never layer by layer."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# Below this a sum of squares in float32 is no longer exact to rounding: entries of 1e-23 square to nothing.
_FLOAT32_FLOOR = 1e-15

# Biases and normalization layers up to this size are copied side by side: on the CPU cheaper than a call for each.
_SMALL = 4096


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all ``tensors`` together, √Σ‖t‖².

    Squares are summed in float32, whatever the tensors' dtype, or in float64 if any tensor is float64.
    On the CPU a sum that leaves float32's range is taken again in float64, so that a gradient of 1e-30, as near a
    saddle, still has a direction; an accelerator would have to ask the host, so there it counts as 0 or inf.

    Args:
        tensors: real tensors of any shapes, dtypes and devices; may be empty.

    Returns:
        0-d float32 or float64 tensor on the first tensor's device (0 on the CPU for no tensors). Computing it never
        waits for an accelerator.
    """
    return norm_of_lists(by_kind(tensors).values())


def by_kind(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    """The tensors, in order, by device and dtype: list kernels want tensors of one kind."""
    kinds = defaultdict(list)
    for tensor in tensors:
        kinds[tensor.device, tensor.dtype].append(tensor)
    return kinds


def norm_of_lists(lists: Iterable[list[Tensor]]) -> Tensor:
    """``global_norm`` of all tensors of all lists; those of one list share device and dtype, and no list is empty."""
    lists = list(lists)
    if not lists:
        return torch.zeros(())
    dtype = torch.float64 if any(tensors[0].dtype == torch.float64 for tensors in lists) else torch.float32
    norm = _norm(lists, dtype)
    if norm.device.type == "cpu" and dtype == torch.float32 and not torch.compiler.is_compiling():
        in_range = _FLOAT32_FLOOR < norm.item() < torch.inf
        return norm if in_range else _norm(lists, torch.float64)
    return norm


def _norm(lists: Sequence[list[Tensor]], dtype: torch.dtype) -> Tensor:
    home = lists[0][0].device
    parts = [torch.stack(_norms(tensors, dtype)).to(home, non_blocking=True) for tensors in lists]
    whole: Tensor = torch.linalg.vector_norm(parts[0] if len(parts) == 1 else torch.cat(parts))
    return whole


def _norms(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """0-d norms whose squares add up to the tensors' squares."""
    if tensors[0].device.type != "cpu":
        return list(torch._foreach_norm(tensors, 2, dtype))
    small = [t for t in tensors if t.dim() == 1 and t.numel() <= _SMALL]
    if len(small) < 2:
        return list(torch._foreach_norm(tensors, 2, dtype))
    others = [t for t in tensors if t.dim() != 1 or t.numel() > _SMALL]
    together = torch.linalg.vector_norm(torch.cat(small), dtype=dtype)
    return [together, *(torch._foreach_norm(others, 2, dtype) if others else ())]
