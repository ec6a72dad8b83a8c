"""The normalized step by torch's fused SGD kernel: when the kernel computes it correctly, and how to call it."""

from itertools import chain
from operator import attrgetter

import torch
from torch import Tensor

from sngd.optim.kahan import unless


def fused_is_right(params: list[Tensor], vectors: list[Tensor], buffers: list[Tensor]) -> bool:
    """Whether the kernel computes on these tensors what ``foreach=False``, the readable loop, computes.

    Args:
        params, vectors: the weights and the vectors along which they move; of equal shapes, the weights of one device
            and dtype.
        buffers: the momentum that the kernel updates; may be empty.
    """
    dtype, device = params[0].dtype, params[0].device.type
    if torch.compiler.is_compiling():  # the compiler fuses the step itself
        return False
    if device == "cpu":  # torch 2.13's kernel skips whole SIMD blocks of float16 and bfloat16
        right = dtype in (torch.float32, torch.float64)
    elif device == "cuda":  # the kernel reads lr as float32, too coarse for float64 weights, and rounds momentum early
        right = dtype == torch.float32 or (dtype != torch.float64 and not buffers)
    else:
        return False
    if any(map(Tensor.is_neg, vectors)):  # as the imaginary part of a conjugate is; the kernel refuses them
        return False
    alike = all(_alike(tensors, dtype, params[0].device) for tensors in (vectors, buffers))
    return right and alike and _in_one_order(params, vectors, buffers)


def _alike(tensors: list[Tensor], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether all have this dtype and device. The kernels do not check it; shapes are checked by ``check_shapes``."""
    if not {*map(attrgetter("dtype"), tensors)} <= {dtype}:
        return False
    if device.type == "cpu":  # whose tensors are quicker to ask
        return all(map(attrgetter("is_cpu"), tensors))
    return {*map(attrgetter("device"), tensors)} <= {device}


def _in_one_order(params: list[Tensor], *others: list[Tensor]) -> bool:
    """Whether each parameter's tensors have the same memory layout, without gaps.

    The kernels assume it. torch 2.13's CPU kernel does not check it, and overwrites what lies in the gaps.
    """
    if all(map(Tensor.is_contiguous, [*params, *chain(*others)])):
        return True
    if params[0].device.type == "cpu":
        return False
    strides = [p.stride() for p in params]
    alike = all([t.stride() for t in tensors] == strides for tensors in others if tensors)
    return alike and all(p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last) for p in params)


def _dampening(c: Tensor) -> float:
    """What makes the kernel add c times the vectors to momentum: it multiplies them by 1 − dampening, in float64.

    0 if that is not exactly c, as for most float64 numbers, or if the host would have to wait for c.
    """
    if not c.is_cpu:
        return 0.0
    dampening = 1 - c.item()
    return dampening if 1 - dampening == c.item() else 0.0


def fused_sngd(
    params: list[Tensor],
    vectors: list[Tensor],
    buffers: list[Tensor],
    *,
    c: Tensor,
    skip: Tensor | None,
    lr: float | Tensor,
    momentum: float,
    normalize: str,
    new_averages: list[Tensor],
) -> None:
    """One step in one kernel, in place: see ``sngd.optim.sngd`` for the formula and the arguments."""
    heavy_ball = len(buffers) > 0 and normalize == "gradient"
    # what the vectors are becomes the buffers' new content: the kernel does so in a first step
    kept = len(buffers) > 0 and not heavy_ball and new_averages is vectors and fused_is_right(params, vectors, buffers)
    dampening, rate = 0.0, lr if heavy_ball else lr * c
    if heavy_ball:
        c = c.to(params[0].dtype)
        dampening = _dampening(c)
        vectors = vectors if dampening else list(torch._foreach_mul(vectors, c))
    if isinstance(rate, Tensor):  # the CPU kernel takes a float, the CUDA kernel a float32 tensor on the device
        rate = float(rate) if rate.device.type == "cpu" else rate.float()
    torch._fused_sgd_(
        params,
        vectors,
        buffers if heavy_ball or kept else [],
        weight_decay=0.0,
        momentum=momentum if heavy_ball or kept else 0.0,
        lr=rate,
        dampening=dampening,
        nesterov=False,
        maximize=False,
        is_first_step=kept,
        found_inf=None if skip is None else skip.float(),
    )
    if buffers and not (heavy_ball or kept):
        torch._foreach_copy_(buffers, [unless(skip, b, v) for b, v in zip(buffers, new_averages, strict=True)])
