"""A step in pieces, so that what it computes on the way stays in the processor's cache."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

_LISTS = ("params", "vectors", "buffers", "new_averages", "dropped")
_LENGTH = 2**18  # entries: 1 MB of float32


def in_pieces(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of an implementation of the step, once for all short tensors, then for each piece of a long one.

    A step treats every entry alike, so that cutting changes no result. On the CPU it saves what memory takes longest
    for: temporary tensors as long as the weights, which are written to memory, read again, and given back.
    """
    lists: dict[str, list[Tensor]] = {name: arguments[name] for name in _LISTS if arguments.get(name)}
    lengths = [param.numel() for param in arguments["params"]]
    long = [i for i, length in enumerate(lengths) if length > _LENGTH and _is_flat(i, lists)]
    if not long:
        yield arguments
        return
    short = sorted({*range(len(lengths))} - {*long})
    if short:
        yield arguments | {name: [tensors[i] for i in short] for name, tensors in lists.items()}
    for i in long:
        cut = {name: tensors[i].view(-1).split(_LENGTH) for name, tensors in lists.items()}
        for pieces in zip(*cut.values(), strict=True):
            yield arguments | {name: [piece] for name, piece in zip(cut, pieces, strict=True)}


def _is_flat(i: int, lists: dict[str, list[Tensor]]) -> bool:
    return all(tensors[i].is_contiguous() for tensors in lists.values())
