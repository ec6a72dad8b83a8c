"""Kahan summation: the part of a step that float16 or bfloat16 weights lose to rounding is added to the next step."""

import threading
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from sngd.optim.pieces import in_batches


def single_tensor_kahan_sub_(param: Tensor, step: Tensor, dropped: Tensor, skip: Tensor | None) -> None:
    """``param -= step`` in place; ``param + dropped`` is the weight before rounding.

    With s = w + k − step in float32 and w' its rounding to the weights' dtype: w ← w', k ← s − w'. In bfloat16 the
    pair has at least 16 significant bits where w alone has 8 (Kahan 1965; for weight updates Zamirai et al. 2020,
    "Revisiting BFloat16 Training", arXiv 2010.06192).

    Args:
        param: float16 or bfloat16 weights.
        step: what is subtracted, float32, of the same shape.
        dropped: k, what rounding has dropped so far. It has the shape and dtype of ``param`` and is at most half a unit
            in its last place.
        skip: 0-d bool tensor; if it is true nothing changes. None: the step is always taken.
    """
    new = param + (dropped - step)
    rounded = _rounded(new, param.dtype)
    dropped.copy_(unless(skip, dropped, new - rounded))
    param.copy_(unless(skip, param, rounded))


def foreach_kahan_sub_(params: list[Tensor], steps: list[Tensor], dropped: list[Tensor], skip: Tensor | None) -> None:
    """``single_tensor_kahan_sub_`` on lists of tensors."""
    news = list(torch._foreach_sub(dropped, steps))
    torch._foreach_add_(news, params)
    rounded = [_rounded(new, p.dtype) for new, p in zip(news, params, strict=True)]
    torch._foreach_sub_(news, rounded)
    torch._foreach_copy_(dropped, [unless(skip, d, n) for d, n in zip(dropped, news, strict=True)])
    torch._foreach_copy_(params, [unless(skip, p, r) for p, r in zip(params, rounded, strict=True)])


def kahan_add_(params: list[Tensor], vectors: list[Tensor], dropped: list[Tensor], alpha: float) -> None:
    """``single_tensor_kahan_sub_`` with the step −alpha · vector, for lists of tensors on the CPU.

    The numbers on the way are float32, and those of one batch of tensors after another lie in the same memory.
    """
    for batch in in_batches(params, vectors, dropped):
        ws, vs, ks = batch.lists
        new, other = _scratch.places(tuple(w.shape for w in ws))
        torch._foreach_copy_(new.tensors, ks)
        torch._foreach_copy_(other.tensors, vs)
        new.row.add_(other.row, alpha=alpha)
        torch._foreach_copy_(other.tensors, ws)
        new.row.add_(other.row)
        torch._foreach_copy_(ws, new.tensors)
        torch._foreach_copy_(other.tensors, ws)
        new.row.sub_(other.row)
        torch._foreach_copy_(ks, new.tensors)


class _Place(NamedTuple):
    """Float32 tensors, one after another in memory, and the row of all their entries."""

    row: Tensor
    tensors: list[Tensor]


_Places = tuple[_Place, _Place]


class _Scratch(threading.local):
    """Two rows of memory for each thread, and where tensors of certain shapes lie in them.

    To find new memory, and to lay tensors out in it, takes longer than the arithmetic of a small network.
    """

    LENGTH = 2**19  # entries of a row, which hold every batch but one of a single weight that cannot be cut
    MOST_TENSORS = 8192  # that are laid out at a time, of all shapes together

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._known: dict[tuple[torch.Size, ...], _Places] = {}
        self._tensors = 0

    def places(self, shapes: tuple[torch.Size, ...]) -> _Places:
        """Two places for tensors of these shapes. What lies there is overwritten by the next use."""
        found = self._known.get(shapes)
        if found is None:
            found = self._laid_out(shapes)
        return found

    def _laid_out(self, shapes: tuple[torch.Size, ...]) -> _Places:
        entries = sum(shape.numel() for shape in shapes)
        with torch.inference_mode(False):  # whose tensors could not be used outside
            if entries > self.LENGTH or len(shapes) > self.MOST_TENSORS:
                return _places_in(torch.empty(2, entries, dtype=torch.float32, device="cpu"), shapes)
            if self._rows is None:
                self._rows = torch.empty(2, self.LENGTH, dtype=torch.float32, device="cpu")
            found = _places_in(self._rows, shapes)
        if self._tensors + len(shapes) > self.MOST_TENSORS:
            self._known, self._tensors = {}, 0
        self._known[shapes] = found
        self._tensors += len(shapes)
        return found


_scratch = _Scratch()


def _places_in(rows: Tensor, shapes: Sequence[torch.Size]) -> _Places:
    lengths = [shape.numel() for shape in shapes]
    new, other = (row[: sum(lengths)] for row in rows)
    return _place(new, shapes, lengths), _place(other, shapes, lengths)


def _place(row: Tensor, shapes: Sequence[torch.Size], lengths: list[int]) -> _Place:
    return _Place(row, [part.view(shape) for part, shape in zip(row.split(lengths), shapes, strict=True)])


def _rounded(new: Tensor, dtype: torch.dtype) -> Tensor:
    """``new`` rounded to a dtype of 16 bits; in a compiled graph these numbers are float32.

    There torch's compiler leaves out a conversion that is followed by the one back, as in ``new - new.to(dtype)``, and
    then nothing would ever be dropped. Sums it leaves as they are, unless it is told to use unsafe mathematics.
    """
    if not torch.compiler.is_compiling():
        return new.to(dtype)
    return rounded_by_sums(new.float(), dtype)  # a weight of no dimension times a float64 lr is float64


def rounded_by_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` rounded to float16 or bfloat16 by arithmetic alone; of two numbers that are equally near, either.

    With s = 2^(24 − digits) and c = sx + x, the result is c − (c − x), every operation rounded to float32 (Veltkamp
    1968). No product meets a difference, so that a fused multiply-add changes nothing.

    Args:
        x: float32.
        dtype: of 11 digits (float16) or 8 (bfloat16).

    Returns:
        float32. Numbers of which c overflows, from 5e33 on, are not rounded, nor are bfloat16's subnormal numbers, so
        that the part which rounding drops from such weights is lost. What float16 cannot hold is not inf here.
    """
    info = torch.finfo(dtype)
    c = x * (info.eps * 2.0**23) + x
    rounded = torch.where(c.abs() < inf, c - (c - x), x)
    if dtype is torch.bfloat16:
        return rounded
    far = 1.5 * 2.0**23 * (info.tiny * info.eps)  # where float32's neighbours are as far apart as float16's at 0
    return torch.where(x.abs() < info.tiny, (x + far) - far, rounded)


def unless(skip: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    """``old`` if the 0-d bool tensor ``skip`` is true, else ``new``."""
    return new if skip is None else torch.where(skip, old, new)
