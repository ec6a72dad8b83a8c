"""A step in pieces, so that what it computes on the way stays in the processor's cache."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sngd.norms.norm import weight_of

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
        for pieces in zip(*[cut_flat(tensors[i]) for tensors in lists.values()], strict=True):
            yield arguments | {name: [piece] for name, piece in zip(lists, pieces, strict=True)}


class Batch(NamedTuple):
    """Tensors, and pieces of long ones, that together have at most as many entries as a piece may have.

    A tensor that cannot be cut, or a single row that is longer, is a batch of its own.

    Attributes:
        indices: of each tensor that is here, or of which a piece is; in order.
        lists: for each of the lists that were given, what is here of it.
    """

    indices: list[int]
    lists: list[list[Tensor]]


def in_batches(*lists: list[Tensor], cut: Callable[[Tensor], tuple[Tensor, ...]] | None = None) -> Iterator[Batch]:
    """The tensors of several lists, in order, together with those at the same place in the others.

    Args:
        lists: at least one, and not empty.
        cut: how long tensors are cut; flat if None.
    """
    cut = cut or cut_flat
    long = {*long_ones(lists)}
    batch: list[tuple[int, tuple[Tensor, ...]]] = []
    entries = 0
    for i, tensors in enumerate(zip(*lists, strict=True)):
        for pieces in zip(*map(cut, tensors), strict=True) if i in long else [tensors]:
            if batch and entries + pieces[0].numel() > _LENGTH:
                yield _batch(batch)
                batch, entries = [], 0
            batch.append((i, pieces))
            entries += pieces[0].numel()
    yield _batch(batch)


def _batch(pieces: list[tuple[int, tuple[Tensor, ...]]]) -> Batch:
    return Batch([i for i, _ in pieces], list(map(list, zip(*[some for _, some in pieces], strict=True))))


def long_ones(lists: Sequence[Sequence[Tensor]]) -> list[int]:
    """The indices at which tensors are long, and lie in memory without gaps in all lists, so that they can be cut."""
    return [
        i
        for i, tensor in enumerate(lists[0])
        if tensor.numel() > _LENGTH and all(tensors[i].is_contiguous() for tensors in lists)
    ]


def cut_flat(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat pieces of a tensor without gaps; all but the last have the same length."""
    pieces: tuple[Tensor, ...] = tensor.view(-1).split(_LENGTH)
    return pieces


def cut_by_rows(tensor: Tensor) -> tuple[Tensor, ...]:
    """Pieces of a weight without gaps: rows of its matrix, and as many as make a piece."""
    columns = weight_of(tensor.shape).columns
    pieces: tuple[Tensor, ...] = tensor.view(-1, columns).split(max(1, _LENGTH // columns))
    return pieces
