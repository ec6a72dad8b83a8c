"""The Euclidean norm of each tensor by itself: every layer takes a step of the same length."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sngd.norms.norm import Norm, Weight, normalized, per_output


@dataclass(frozen=True)
class Layer(Norm):
    """‖W‖ = ‖W‖_F; unit(V) = V/‖V‖_F; dual ‖V‖_F; κ = 1.

    The factor is √(d_out/d_in)/kernel, for vectors √d, for tables (n, d) √d.
    """

    name: ClassVar[str] = "layer"
    reduced: ClassVar[tuple[int, ...]] = (-2, -1)

    def bare_unit(self, m: Tensor) -> Tensor:
        return normalized(m, self.reduced)

    def bare_size(self, m: Tensor) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(m, dim=(-2, -1))
        return size

    def bare_kappa(self, rows: int, columns: int) -> float:
        return 1.0

    def factor(self, weight: Weight) -> float:
        return per_output(weight, self.table)
