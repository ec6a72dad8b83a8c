"""Unit steps on the CPU. Many of them are made twice, for the dual norm and for the step, so that none is kept."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sngd.norms import Norm
from sngd.norms.global_norm import ROOM, times_power_of_two
from sngd.norms.lengths import divisors, joined, lengths
from sngd.norms.norm import inner
from sngd.optim.pieces import Batch, cut_by_rows, in_batches

_FEW = 2**21  # entries of which vectors and unit steps stay in the cache, so that they are made once

Lists = list[list[Tensor]]


class UnitPieces:
    """The vectors v and unit(v) of one batch of tensors after another, with pieces of long ones.

    A batch stays in the processor's cache. Vectors and unit steps of all weights at once would go to memory and back,
    unless they are few: then there is one batch, which is kept.

    Args:
        norm: is ``in_pieces``.
        lists: what vectors are made of and what a step changes, a tensor in each list for each weight; first the
            weights. Plain tensors on the CPU.
        vectors_of: the vectors, computed from these lists or from pieces of their tensors.
    """

    def __init__(self, norm: Norm, lists: Lists, vectors_of: Callable[[Lists], list[Tensor]]) -> None:
        self._norm, self._lists, self._vectors_of = norm, lists, vectors_of
        self._factors = norm.factors_of(lists[0])
        self._divisors: list[Tensor] = []  # of each piece
        self._few = sum(map(Tensor.numel, lists[0])) <= _FEW
        self._vectors: list[Tensor] | None = None  # these two of all weights, if they are few
        self._units: list[Tensor] | None = None

    def dual(self) -> Tensor | None:
        """Σ ‖v‖*, 0-d float64; None if squares leave float32's range. Asked once, before anything else."""
        if self._norm.by_entry:
            return torch.stack([inner(vectors, units) for _, vectors, units in self.units()]).sum()
        over = self._norm.reduced or ()
        places: list[int] = []
        measured: list[Tensor] = []
        for batch, vectors in self._batches():
            found_here = lengths(_wide(vectors), over)
            if found_here is None:
                return None
            places += batch.indices
            measured += found_here
        if -2 not in over:
            found = divisors(measured, [self._factors[place] for place in places])
            self._divisors = found.each if found else []
        else:  # a piece has a part of what a length is of
            found = divisors(_joined(measured, places), self._factors)
            self._divisors = [found.each[place] for place in places] if found else []
        return found.dual if found else None

    def units(self) -> Iterator[tuple[Lists, list[Tensor], list[Tensor]]]:
        """The lists, the vectors and their unit steps, batch by batch."""
        if self._norm.by_entry:
            for batch, vectors in self._batches():
                units = self._units or self._entries(batch, vectors)
                if self._few:
                    self._units = units
                yield batch.lists, vectors, units
            return
        for lists, vectors, each in self.quotients():
            yield lists, vectors, list(torch._foreach_div(_wide(vectors), each))

    def quotients(self) -> Iterator[tuple[Lists, list[Tensor], list[Tensor]]]:
        """Of a norm with ``reduced`` dimensions: the lists, and vectors and divisors whose quotients are unit steps."""
        start = 0
        for batch, vectors in self._batches():
            yield batch.lists, vectors, self._divisors[start : start + len(vectors)]
            start += len(vectors)

    def _entries(self, batch: Batch, vectors: list[Tensor]) -> list[Tensor]:
        return self._norm.unit_entries(_wide(vectors), [self._factors[place] for place in batch.indices])

    def _batches(self) -> Iterator[tuple[Batch, list[Tensor]]]:
        if self._few:
            self._vectors = self._vectors or self._vectors_of(self._lists)
            yield Batch([*range(len(self._lists[0]))], self._lists), self._vectors
            return
        for batch in in_batches(*self._lists, cut=cut_by_rows):
            yield batch, self._vectors_of(batch.lists)


def _joined(measured: list[Tensor], places: list[int]) -> list[Tensor]:
    """The length of each place, in order, from those of its pieces."""
    pieces: dict[int, list[Tensor]] = {}
    for place, length in zip(places, measured, strict=True):
        pieces.setdefault(place, []).append(length)
    return list(map(joined, pieces.values()))


def _wide(vectors: list[Tensor]) -> list[Tensor]:
    """In float32 or wider; they have one dtype."""
    return vectors if vectors[0].dtype in ROOM else times_power_of_two(vectors, 0)
