"""The Euclidean norm of all tensors together, the norm of Zhao, Xie and Li."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sngd.norms.norm import Norm, Weight, length, normalized


@dataclass(frozen=True)
class L2(Norm):
    """‖w‖₂ over all entries of all tensors of all param groups that have this norm: one ball for all of them.

    The methods of this class are about one tensor alone: unit(v) = v/‖v‖₂, dual ‖v‖₂, κ = 1. It has no factor:
    ``scaled`` and ``table`` change nothing. The optimizer divides by ``sngd.norms.global_norm`` instead.
    """

    name: ClassVar[str] = "l2"

    def bare_unit(self, m: Tensor) -> Tensor:
        return normalized(m, (-2, -1))

    def bare_size(self, m: Tensor) -> Tensor:
        return length(m, (-2, -1))

    def bare_kappa(self, rows: int, columns: int) -> float:
        return 1.0

    def factor(self, weight: Weight) -> float:
        return 1.0
