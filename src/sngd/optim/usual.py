"""The usual case, in which a step need not look at each tensor: plain tensors on the CPU that fit each other."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sngd.sharding import are_plain

_DTYPE, _IS_CPU, _SHAPE, _LAYOUT = map(attrgetter, ("dtype", "is_cpu", "shape", "layout"))


def are_usual(params: Sequence[Tensor], *others: Sequence[Tensor]) -> bool:
    """Whether list kernels can take these tensors as they are, with the answers that hold for the first parameter.

    So the parameters are plain tensors on the CPU of one real dtype, and ``others`` (gradients, buffers; one for each
    parameter, or none at all) are plain, strided, and have their parameters' shapes. Devices and dtypes of others are
    the caller's to check where that matters (``fused_is_right``). In a compiled graph nothing is usual.
    """
    if torch.compiler.is_compiling() or not are_plain(params) or not params[0].is_floating_point():
        return False
    if len({*map(_DTYPE, params)}) > 1 or not all(map(_IS_CPU, params)):
        return False
    shapes = [*map(_SHAPE, params)]
    for tensors in others:
        if not tensors:
            continue
        if not are_plain(tensors) or {*map(_LAYOUT, tensors)} != {torch.strided} or [*map(_SHAPE, tensors)] != shapes:
            return False
    return True


def with_gradients(params: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """The parameters that have gradients, and these."""
    grads = [p.grad for p in params]
    if type(None) not in {*map(type, grads)}:
        return params, grads
    params = [p for p in params if p.grad is not None]
    return params, [p.grad for p in params]
