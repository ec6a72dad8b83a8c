"""The usual case, in which a step need not look at each tensor: plain tensors on the CPU that fit each other."""

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from sngd.sharding import are_plain


def are_usual(params: Sequence[Tensor], *others: Sequence[Tensor]) -> bool:
    """Whether list kernels can take these tensors as they are, with the answers that hold for the first parameter.

    So the parameters are plain tensors on the CPU of one real dtype, and ``others`` (gradients, buffers; one for each
    parameter, or none at all) are plain, strided, and have their parameters' shapes. Devices and dtypes of others are
    the caller's to check where that matters (``fused_is_right``). In a compiled graph nothing is usual.
    """
    if torch.compiler.is_compiling() or not are_plain(params) or not params[0].is_floating_point():
        return False
    if len({p.dtype for p in params}) > 1 or not all(map(attrgetter("is_cpu"), params)):
        return False
    shapes = [p.shape for p in params]
    return all(
        are_plain(tensors)
        and {*map(attrgetter("layout"), tensors)} == {torch.strided}
        and [t.shape for t in tensors] == shapes
        for tensors in others
        if tensors
    )
