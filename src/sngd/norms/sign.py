"""The largest absolute entry: the unit step is the sign (signSGD; with momentum Signum, Bernstein et al. 2018)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from sngd.norms.norm import Norm, Weight


@dataclass(frozen=True)
class Sign(Norm):
    """‖W‖ = max |W_ij|; unit(V) = sign(V); dual Σ|V_ij|; κ = √(number of entries).

    The factor is 1/(d_in·kernel), and 1 for vectors and tables.
    """

    name: ClassVar[str] = "sign"
    by_entry: ClassVar[bool] = True
    in_pieces: ClassVar[bool] = True

    def bare_unit(self, m: Tensor) -> Tensor:
        return m.sign()

    def unit_entries(self, pieces: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
        signs = list(torch._foreach_sign(list(pieces)))
        if {*factors} != {1.0}:
            torch._foreach_mul_(signs, list(factors))
        return signs

    def bare_size(self, m: Tensor) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(m, torch.inf, dim=(-2, -1))
        return size

    def bare_kappa(self, rows: int, columns: int) -> float:
        return sqrt(rows * columns)

    def factor(self, weight: Weight) -> float:
        return 1.0 if self.table else 1 / weight.columns
