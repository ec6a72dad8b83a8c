"""The usual case, in which a step need not look at each tensor: plain tensors on one device that fit each other."""

from collections.abc import Sequence
from functools import reduce
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sngd.sharding import PLAIN

_DTYPE, _IS_CPU, _IS_CUDA, _SHAPE, _LAYOUT = map(attrgetter, ("dtype", "is_cpu", "is_cuda", "shape", "layout"))


def shapes_if_usual(params: Sequence[Tensor], *others: Sequence[Tensor]) -> list[torch.Size] | None:
    """The parameters' shapes, if list kernels can take these tensors as they are, with answers that hold for the first.

    So the parameters are plain tensors of one real dtype, on the CPU or on one GPU, and ``others`` (gradients, buffers;
    one for each parameter, or none at all) are plain, strided, and have their parameters' shapes. Devices and dtypes of
    others are the caller's to check where that matters (``fused_is_right``).

    Returns:
        None otherwise. Compiled steps do not ask (``SNGD._usual_parts``).
    """
    if not {*map(type, params)} <= PLAIN or not params[0].is_floating_point():
        return None
    if len({*map(_DTYPE, params)}) > 1 or not _on_one_device(params):
        return None
    shapes = [*map(_SHAPE, params)]
    for tensors in filter(None, others):
        if not {*map(type, tensors)} <= PLAIN or {*map(_LAYOUT, tensors)} != {torch.strided}:
            return None
        if [*map(_SHAPE, tensors)] != shapes:
            return None
    return shapes


def _on_one_device(tensors: Sequence[Tensor]) -> bool:
    """Whether all are on the CPU, or all on one GPU. These questions are quicker than asking for devices."""
    if tensors[0].is_cpu:
        return all(map(_IS_CPU, tensors))
    return all(map(_IS_CUDA, tensors)) and len({*map(Tensor.get_device, tensors)}) == 1


def in_one_dtype(grads: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Gradients of parameters of ``dtype`` in the narrowest dtype that holds all of them and ``dtype``.

    A parameter's ``grad_dtype`` lets gradients differ from it, and from each other.
    """
    if all(grad.dtype is dtype for grad in grads):
        return grads
    wide = reduce(torch.promote_types, [grad.dtype for grad in grads], dtype)
    return [grad.to(wide) for grad in grads]


def with_gradients(params: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """The parameters that have gradients, and these."""
    grads = [p.grad for p in params]
    if type(None) not in {*map(type, grads)}:
        return params, grads
    params = [p for p in params if p.grad is not None]
    return params, [p.grad for p in params]
