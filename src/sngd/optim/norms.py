"""The one global norm: every method here measures all parameters together, never layer by layer."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

# Below this a sum of squares in float32 is no longer exact to rounding: entries of 1e-23 square to nothing.
_FLOAT32_FLOOR = 1e-15


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
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    norm = _norm(tensors, dtype)
    if norm.device.type == "cpu" and dtype == torch.float32 and not torch.compiler.is_compiling():
        in_range = _FLOAT32_FLOOR < norm.item() < torch.inf
        return norm if in_range else _norm(tensors, torch.float64)
    return norm


def _norm(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    if not tensors:
        return torch.zeros((), dtype=dtype)
    alike = defaultdict(list)  # _foreach_norm is one kernel only for tensors of one device and dtype
    for tensor in tensors:
        alike[tensor.device, tensor.dtype].append(tensor)
    norms = [torch.stack(torch._foreach_norm(group, 2, dtype)) for group in alike.values()]
    home = tensors[0].device
    whole: Tensor = torch.linalg.vector_norm(torch.cat([n.to(home, non_blocking=True) for n in norms]))
    return whole
