"""The largest row: every output, or every index of an embedding, takes a step of the same length."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from torch import Tensor

from sngd.norms.norm import Norm, Weight, length, normalized


@dataclass(frozen=True)
class Row(Norm):
    """‖W‖ = max over rows i of ‖W_i‖₂; unit(V) has rows V_i/‖V_i‖₂; dual Σ‖V_i‖₂; κ = √(number of rows).

    The factor is 1/√(d_in·kernel), so that no output changes by more than 1 for inputs of RMS 1. For tables (n, d) it
    is √d: every row gets RMS 1. A row of zeros, of an index that is not in the batch, stays where it is.
    """

    name: ClassVar[str] = "row"
    reduced: ClassVar[tuple[int, ...]] = (-1,)
    in_pieces: ClassVar[bool] = True

    def bare_unit(self, m: Tensor) -> Tensor:
        return normalized(m, self.reduced)

    def bare_size(self, m: Tensor) -> Tensor:
        return length(m, -1).amax(-1)

    def bare_kappa(self, rows: int, columns: int) -> float:
        return sqrt(rows)

    def factor(self, weight: Weight) -> float:
        return sqrt(weight.columns) if self.table else 1 / sqrt(weight.columns)
