"""The data of one step for parameters whose norm is not l2: every tensor is a ball of its own."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from math import frexp
from typing import Any

import torch
from torch import Tensor

from sngd.norms import Norm, find_norm
from sngd.norms.global_norm import ROOM, times_power_of_two
from sngd.norms.norm import inner
from sngd.norms.sharded import layout_of, sharded_units
from sngd.optim.options import Number, averages
from sngd.optim.part import Norms, Part, share_of, vectors_of
from sngd.optim.unit_pieces import Lists, UnitPieces
from sngd.sharding import all_local, is_shared, max_over_ranks


class BallPart(Part):
    """A part in which each tensor v takes a step w ← w − α c unit(v) with c = min{1, max_scale ‖v‖*/α}.

    ``exponent`` is 0 unless the whole norm, or v itself, would leave the dtype's range.

    With ``by_pieces`` neither vectors nor unit steps are kept between the norm and the step, unless they are few. Both
    are made twice, of one batch of tensors after another, so that they stay in the processor's cache.

    Of DTensors, units are computed of whole tensors, for which ranks communicate. So if a tensor of this kind has no
    gradient on this rank, then the rank takes part with zeros, and the part may even have no parameters.
    """

    everywhere: Sequence[Tensor] = ()  # all DTensors of this kind, with a gradient here or without
    _units: list[Tensor] | None = None

    @property
    def norm(self) -> Norm:
        return find_norm(self.group["norm"])

    def may_take_pieces(self) -> bool:
        """Whether a unit step follows from entries, or from lengths that are measured first."""
        return self.norm.in_pieces and self.is_of_one_dtype()

    @property
    def divides(self) -> bool:
        """Whether weights move by a multiple of v over its lengths, a quotient that need not be there by itself."""
        if not self.by_pieces or self.norm.by_entry or self.dropped or self.params[0].dtype not in ROOM:
            return False
        return not self.buffers or averages(self.group)

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
        if self.by_pieces:
            found = self._pieces.dual()
            if found is not None:
                return found
            self._units = list(map(self.norm.unit, self.vectors))  # which knows what to do; it takes longer
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
        units = [] if self.by_pieces else self.units
        return units, share_of(norms, lr, self.group["max_scale"], self.params[0].device)

    def steps(self, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not self.by_pieces:
            yield from super().steps(arguments)
            return
        found = self._pieces.quotients() if self.divides else self._pieces.units()
        for lists, vectors, others in found:
            tensors = dict(zip(self._lists, lists, strict=True))
            del tensors["grads"]
            if self.old_averages:
                tensors["new_averages"] = vectors
            directions = {"vectors": vectors, "divisors": others} if self.divides else {"vectors": others}
            yield arguments | tensors | directions

    @cached_property
    def _pieces(self) -> UnitPieces:
        make = partial(_vectors_of, self.directions, self.group, [*self._lists])  # without self, which would be a cycle
        return UnitPieces(self.norm, [*self._lists.values()], make)

    @cached_property
    def _lists(self) -> dict[str, list[Tensor]]:
        """What the vectors are made of and what the step changes, by the names of an implementation's arguments."""
        lists = {"params": self.params, "grads": self.grads, "buffers": self.buffers, "dropped": self.dropped}
        return {name: tensors for name, tensors in lists.items() if tensors}


def _vectors_of(
    directions: Callable[..., list[Tensor]], group: dict[str, Any], names: list[str], lists: Lists
) -> list[Tensor]:
    tensors = dict(zip(names, lists, strict=True))
    old_averages = tensors["buffers"] if averages(group) else []
    return vectors_of(directions, group, tensors["params"], tensors["grads"], old_averages)


def _largest(tensors: list[Tensor]) -> float:
    """The largest absolute entry; inf if one is not finite."""
    values = [torch.linalg.vector_norm(t, torch.inf).item() for t in tensors if t.numel()]
    return torch.inf if any(value != value for value in values) else max(values, default=0.0)
