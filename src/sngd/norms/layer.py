"""The Euclidean norm of each tensor by itself: every layer takes a step of the same length."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sngd.norms.norm import Norm, Weight, length, normalized, per_output


@dataclass(frozen=True)
class Layer(Norm):
    """‖W‖ = ‖W‖_F; unit(V) = V/‖V‖_F; dual ‖V‖_F; κ = 1.

    The factor is √(d_out/d_in)/kernel, for vectors √d, for tables (n, d) √d.
    """

    name: ClassVar[str] = "layer"
    reduced: ClassVar[tuple[int, ...]] = (-2, -1)
    in_pieces: ClassVar[bool] = True

    def bare_unit(self, m: Tensor) -> Tensor:
        return normalized(m, self.reduced)

    def bare_size(self, m: Tensor) -> Tensor:
        return length(m, (-2, -1))

    def bare_kappa(self, rows: int, columns: int) -> float:
        return 1.0

    def factor(self, weight: Weight) -> float:
        return per_output(weight, self.table)
