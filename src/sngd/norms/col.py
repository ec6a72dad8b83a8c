"""The largest column: every input takes a step of the same length."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from torch import Tensor

from sngd.norms.norm import Norm, Weight, length, normalized


@dataclass(frozen=True)
class Col(Norm):
    """‖W‖ = max over columns j of ‖W_j‖₂; unit(V) has columns V_j/‖V_j‖₂; dual Σ‖V_j‖₂; κ = √(number of columns).

    The factor is √d_out/(d_in·kernel), for vectors √d, and 1 for tables.
    """

    name: ClassVar[str] = "col"
    reduced: ClassVar[tuple[int, ...]] = (-2,)
    in_pieces: ClassVar[bool] = True

    def bare_unit(self, m: Tensor) -> Tensor:
        return normalized(m, self.reduced)

    def bare_size(self, m: Tensor) -> Tensor:
        return length(m, -2).amax(-1)

    def bare_kappa(self, rows: int, columns: int) -> float:
        return sqrt(columns)

    def factor(self, weight: Weight) -> float:
        return 1.0 if self.table else sqrt(weight.d_out) / weight.columns
