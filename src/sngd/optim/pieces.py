"""A step in pieces, so that what it computes on the way stays in the processor's cache."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

_LISTS = ("params", "grads", "vectors", "buffers", "new_averages", "dropped")
_LENGTH = 2**19  # entries: 2 MB of float32. A multiple of the rows by which norms are summed


def in_pieces(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of an implementation of the step, once for all short tensors, then for each piece of a long one.

    A step treats every entry alike, so that cutting changes no result. On the CPU it saves what memory takes longest
    for: temporary tensors as long as the weights, which are written to memory, read again, and given back.
    """
    lists: dict[str, list[Tensor]] = {name: arguments[name] for name in _LISTS if arguments.get(name)}
    long = long_ones([*lists.values()])
    if not long:
        yield arguments
        return
    short = sorted({*range(len(arguments["params"]))} - {*long})
    if short:
        yield arguments | {name: [tensors[i] for i in short] for name, tensors in lists.items()}
    for i in long:
        for pieces in zip(*[cut(tensors[i]) for tensors in lists.values()], strict=True):
            yield arguments | {name: [piece] for name, piece in zip(lists, pieces, strict=True)}


def in_batches(*lists: list[Tensor]) -> Iterator[list[tuple[Tensor, ...]]]:
    """The tensors of several lists, in order, together with those at the same place in the others.

    Long ones are cut. A batch has at most as many entries as a piece has, unless a single tensor cannot be cut.
    """
    batch: list[tuple[Tensor, ...]] = []
    entries = 0
    for tensors in _cut_together(lists):
        if batch and entries + tensors[0].numel() > _LENGTH:
            yield batch
            batch, entries = [], 0
        batch.append(tensors)
        entries += tensors[0].numel()
    yield batch


def _cut_together(lists: Sequence[list[Tensor]]) -> Iterator[tuple[Tensor, ...]]:
    long = {*long_ones(lists)}
    for i, tensors in enumerate(zip(*lists, strict=True)):
        yield from zip(*map(cut, tensors), strict=True) if i in long else [tensors]


def long_ones(lists: Sequence[Sequence[Tensor]]) -> list[int]:
    """The indices at which tensors are long, and lie in memory without gaps in all lists, so that they can be cut."""
    return [
        i
        for i, tensor in enumerate(lists[0])
        if tensor.numel() > _LENGTH and all(tensors[i].is_contiguous() for tensors in lists)
    ]


def cut(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat pieces of a tensor without gaps; all but the last have the same length."""
    pieces: tuple[Tensor, ...] = tensor.view(-1).split(_LENGTH)
    return pieces
