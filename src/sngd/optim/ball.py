"""The data of one step for parameters whose norm is not l2: every tensor is a ball of its own."""

from collections.abc import Sequence
from math import frexp

import torch
from torch import Tensor

from sngd.norms import Norm, find_norm
from sngd.norms.global_norm import times_power_of_two
from sngd.norms.norm import inner
from sngd.norms.sharded import layout_of, sharded_units
from sngd.optim.options import Number
from sngd.optim.part import Norms, Part, share_of
from sngd.sharding import all_local, is_shared, max_over_ranks


class BallPart(Part):
    """A part in which each tensor v takes a step w ← w − α c unit(v) with c = min{1, max_scale ‖v‖*/α}.

    ``exponent`` is 0 unless the whole norm, or v itself, would leave the dtype's range.

    Of DTensors, units are computed of whole tensors, for which ranks communicate. So if a tensor of this kind has no
    gradient on this rank, then the rank takes part with zeros, and the part may even have no parameters.
    """

    everywhere: Sequence[Tensor] = ()  # all DTensors of this kind, with a gradient here or without
    _units: list[Tensor] | None = None

    @property
    def norm(self) -> Norm:
        return find_norm(self.group["norm"])

    @property
    def units(self) -> list[Tensor]:
        """unit(v) of each vector v."""
        if self._units is None:
            self._units = self._units_of_shards() if self.everywhere else self._units_of(self.vectors)
        return self._units

    def _units_of(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        loop = self.group["foreach"] is False and not self.group["fused"]
        return list(map(self.norm.unit, vectors)) if loop else self.norm.units(vectors)

    def _units_of_shards(self) -> list[Tensor]:
        own = iter(self.vectors)
        present = [param.grad is not None for param in self.everywhere]
        all_params = zip(all_local(self.everywhere), present, strict=True)
        vectors = [next(own) if here else torch.zeros_like(param) for param, here in all_params]
        units = sharded_units(self.norm, vectors, [layout_of(param) for param in self.everywhere], self._units_of)
        return [unit for unit, here in zip(units, present, strict=True) if here]

    def dual(self, exponent: int = 0) -> Tensor:
        """Σ ‖v‖* · 2^−exponent, 0-d; of DTensors, this rank's part of it."""
        shift, units = self.exponent - exponent, self.units  # also without vectors, because other ranks wait
        if not units:
            return torch.zeros((), device=self.everywhere[0].device)
        return inner(times_power_of_two(self.vectors, shift) if shift else self.vectors, units)

    def exponent_of_largest(self) -> float:
        """e such that the largest |v_i| lies in [2^(e−1), 2^e); −inf if all are 0. Tensors on the CPU.

        The vectors are computed again, from scaled ingredients: g + λw may overflow, and (1−β)g round to 0.
        """
        largest = self._over_mesh(_largest(self.ingredients()))
        if 0 < largest < torch.inf:
            if self.vectors:
                self.scale_ingredients(-frexp(largest)[1])
            self._units = None
        largest = _largest(self.vectors)
        return frexp(largest)[1] + self.exponent if 0 < largest < torch.inf else -torch.inf

    def _over_mesh(self, value: float) -> float:
        """The largest value of all ranks that have parts of the same tensors, because they must decide alike."""
        mesh = (self.spread[0], ())
        if not is_shared(mesh):
            return value
        return max_over_ranks({mesh: torch.tensor(value, dtype=torch.float64, device="cpu")}).item()

    def direction(self, norms: Norms, lr: Number) -> tuple[list[Tensor], Tensor]:
        return self.units, share_of(norms, lr, self.group["max_scale"], self.params[0].device)


def _largest(tensors: list[Tensor]) -> float:
    """The largest absolute entry; inf if one is not finite."""
    values = [torch.linalg.vector_norm(t, torch.inf).item() for t in tensors if t.numel()]
    return torch.inf if any(value != value for value in values) else max(values, default=0.0)
