"""The usual case, in which a step need not look at each tensor: plain tensors on the CPU that fit each other."""

from collections.abc import Sequence
from math import inf
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sngd.norms.global_norm import ROOM, has_room, norm_here
from sngd.optim.part import LEAST_FACTOR
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


def with_gradients(params: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """The parameters that have gradients, and these."""
    grads = [p.grad for p in params]
    if type(None) not in {*map(type, grads)}:
        return params, grads
    params = [p for p in params if p.grad is not None]
    return params, [p.grad for p in params]


def bare_step(groups: Sequence[dict[str, Any]]) -> Tensor | None:
    """Take the step w ← w − (α/‖g‖) g of all param groups, if no option asks for more and all is usual.

    It changes the weights as ``SNGD.step`` otherwise does, bit for bit, and leaves out all that serves other options,
    which for a small network takes as long as the arithmetic.

    Returns:
        ‖g‖; None if the step has to be taken another way. Then nothing has been changed.
    """
    if not all(map(_asks_for_no_more, groups)):
        return None
    lists = [(group["lr"], *with_gradients(group["params"])) for group in groups]
    lists = [(lr, params, grads) for lr, params, grads in lists if params]
    if not (lists and all(_are_of_one_dtype(params, grads) for _, params, grads in lists)):
        return None
    norm = norm_here([grads for _, _, grads in lists])
    if not has_room(norm, [grads[0].dtype for _, _, grads in lists], communicates=False):
        return None
    c = norm.reciprocal()
    factors = [c.mul(lr).item() for lr, _, _ in lists]
    if min(factors) <= LEAST_FACTOR:
        return None
    for factor, (_, params, grads) in zip(factors, lists, strict=True):
        torch._foreach_add_(params, grads, alpha=-factor)
    return norm


def _asks_for_no_more(group: dict[str, Any]) -> bool:
    more = group["momentum"] or group["weight_decay"] or group["maximize"] or group["fused"] or group["capturable"]
    if more or group["max_scale"] < inf or group["foreach"] is False or isinstance(group["lr"], Tensor):
        return False
    return bool(group["norm"] == "l2")


def _are_of_one_dtype(params: list[Tensor], grads: list[Tensor]) -> bool:
    """Whether they are usual, and of one dtype that is not converted."""
    dtype = params[0].dtype
    return dtype in ROOM and are_usual(params, grads) and {*map(attrgetter("dtype"), grads)} == {dtype}
