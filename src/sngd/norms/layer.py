"""The Euclidean norm of each tensor by itself: every layer takes a step of the same length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sngd.norms.global_norm import ROOM, at_least_float32
from sngd.norms.norm import Norm, Weight, length, normalized, per_output

_SHORT = 2**16  # entries; the norm of more is not summed at once


@dataclass(frozen=True)
class Layer(Norm):
    """‖W‖ = ‖W‖_F; unit(V) = V/‖V‖_F; dual ‖V‖_F; κ = 1.

    The factor is √(d_out/d_in)/kernel, for vectors √d, for tables (n, d) √d.
    """

    name: ClassVar[str] = "layer"
    reduced: ClassVar[tuple[int, ...]] = (-2, -1)

    @torch.no_grad()
    def units(self, vs: Sequence[Tensor]) -> list[Tensor]:
        """``unit`` of each tensor; on the CPU short ones together, unless their squares leave the dtype's range."""
        short = [v for v in vs if v.is_cpu and v.numel() <= _SHORT]
        if not short or type(self) is not Layer or torch.compiler.is_compiling():  # whose unit may be another one
            return super().units(vs)
        wide = [v.to(at_least_float32(v.dtype)).contiguous() for v in short]
        norms = torch._foreach_norm(wide)
        low, high = ROOM[torch.float32]
        if not all(low < norm.item() < high for norm in norms):
            return super().units(vs)
        units = torch._foreach_div(wide, norms)
        torch._foreach_mul_(units, self.factors_of(short))
        made = iter(units)
        return [next(made) if v.is_cpu and v.numel() <= _SHORT else self.unit(v) for v in vs]

    def bare_unit(self, m: Tensor) -> Tensor:
        return normalized(m, self.reduced)

    def bare_size(self, m: Tensor) -> Tensor:
        return length(m, (-2, -1))

    def bare_kappa(self, rows: int, columns: int) -> float:
        return 1.0

    def factor(self, weight: Weight) -> float:
        return per_output(weight, self.table)
