"""The data of one step for parameters whose norm is not l2: every tensor is a ball of its own."""

from math import frexp

import torch
from torch import Tensor

from sngd.norms import Norm, find_norm
from sngd.norms.global_norm import times_power_of_two
from sngd.norms.norm import inner
from sngd.optim.options import Number
from sngd.optim.part import Norms, Part, share_of


class BallPart(Part):
    """A part in which each tensor v takes a step w ← w − α c unit(v) with c = min{1, max_scale ‖v‖*/α}.

    ``exponent`` is 0 unless the whole norm, or v itself, would leave the dtype's range.
    """

    _units: list[Tensor] | None = None

    @property
    def norm(self) -> Norm:
        return find_norm(self.group["norm"])

    @property
    def units(self) -> list[Tensor]:
        """unit(v) of each vector v."""
        if self._units is None:
            loop = self.group["foreach"] is False and not self.group["fused"]
            self._units = list(map(self.norm.unit, self.vectors)) if loop else self.norm.units(self.vectors)
        return self._units

    def dual(self, exponent: int = 0) -> Tensor:
        """Σ ‖v‖* · 2^−exponent, 0-d; of DTensors, this rank's part of it."""
        shift = self.exponent - exponent
        return inner(times_power_of_two(self.vectors, shift) if shift else self.vectors, self.units)

    def exponent_of_largest(self) -> float:
        """e such that the largest |v_i| lies in [2^(e−1), 2^e); −inf if all are 0. Tensors on the CPU.

        The vectors are computed again, from scaled ingredients: g + λw may overflow, and (1−β)g round to 0.
        """
        largest = _largest(self.ingredients())
        if 0 < largest < torch.inf:
            self.scale_ingredients(-frexp(largest)[1])
            self._units = None
        largest = _largest(self.vectors)
        return frexp(largest)[1] + self.exponent if 0 < largest < torch.inf else -torch.inf

    def direction(self, norms: Norms, lr: Number) -> tuple[list[Tensor], Tensor]:
        return self.units, share_of(norms, lr, self.group["max_scale"], self.params[0].device)


def _largest(tensors: list[Tensor]) -> float:
    """The largest absolute entry; inf if one is not finite."""
    values = [torch.linalg.vector_norm(t, torch.inf).item() for t in tensors if t.numel()]
    return torch.inf if any(value != value for value in values) else max(values, default=0.0)
