"""Where the tensors of a run lie in its row of a matrix."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_MULTIPLE = 64  # numbers: vector instructions need no remainder, and every tensor begins at a cache line
_LONG = 65536  # a longer row is summed in parts, to lose fewer digits
_PART = 1024


class Layout:
    """Tensors of given shapes, one after the other in a row of ``width`` numbers; what lies between them is zero.

    Args:
        like: the tensors of one run, of one dtype and device.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.shapes = [tensor.shape for tensor in like]
        self.dtype, self.device = like[0].dtype, like[0].device
        self._sizes = [prod(shape) for shape in self.shapes]
        self._starts = []
        end = 0
        for size in self._sizes:
            self._starts.append(end)
            end = _up(end + size, _MULTIPLE)
        self.width = end if end <= _LONG else _up(end, _PART)

    def matrix(self, rows: Sequence[Sequence[Tensor] | None]) -> Tensor:
        """A new matrix (number of rows, width) with a copy of each row's tensors; zeros for None."""
        matrix = torch.zeros(len(rows), self.width, dtype=self.dtype, device=self.device)
        for row, tensors in zip(matrix, rows, strict=True):
            if tensors is not None:
                torch._foreach_copy_(self.views(row), [tensor.detach() for tensor in tensors])
        return matrix

    def views(self, row: Tensor) -> list[Tensor]:
        """The tensors of one row, (width,), that share its memory."""
        return [piece.squeeze(0) for piece in self.pieces(row.unsqueeze(0))]

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """For each tensor the stack (R, …) of those of all R rows, which shares the matrix's memory."""
        cut = zip(self._starts, self._sizes, self.shapes, strict=True)
        return [
            matrix[:, start : start + size].unflatten(1, shape or (1,)).view(-1, *shape) for start, size, shape in cut
        ]

    def norms(self, matrix: Tensor) -> Tensor:
        """‖row‖₂ of each row, (R,)."""
        if self.width > _LONG:
            matrix = torch.linalg.vector_norm(matrix.view(matrix.shape[0], -1, _PART), dim=2)
        norms: Tensor = torch.linalg.vector_norm(matrix, dim=1)
        return norms


def apart(tensors: Sequence[Tensor]) -> bool:
    """Whether each tensor has memory of its own, which copies in rows have, too."""
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return len(places) == len(tensors) and all(tensor.is_contiguous() for tensor in tensors)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
