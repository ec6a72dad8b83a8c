"""How much of a study has been measured: its loops say it, and whoever listens hears it.

    with listening(print):
        for family in steps(families):       # 0.0, 0.5 of two families
            for instance in steps(range(2)):  # within the first: 0.0, 0.25
                ...

So a function that measures needs no argument for it. A loop inside another counts as a part of the other's step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _Part(NamedTuple):
    """Of the whole, from ``start`` on, of this ``width``: what the present step of all loops makes."""

    tell: Callable[[float], object]
    start: float
    width: float


_part: ContextVar[_Part | None] = ContextVar("part", default=None)


@contextmanager
def listening(tell: Callable[[float], object]) -> Iterator[None]:
    """Inside, ``tell`` hears the share that is done, in [0, 1), before each step of every loop."""
    token = _part.set(_Part(tell, 0.0, 1.0))
    try:
        yield
    finally:
        _part.reset(token)


def steps(items: Iterable[T]) -> Iterator[T]:
    """The items, one after the other, all of which take about as long."""
    part = _part.get()
    if part is None:
        yield from items
        return
    known = list(items)
    for index, item in enumerate(known):
        inner = _Part(part.tell, part.start + part.width * index / len(known), part.width / len(known))
        part.tell(inner.start)
        token = _part.set(inner)
        try:
            yield item
        finally:
            _part.reset(token)


def say(share: float) -> None:
    """Say the share that is done, in [0, 1), where no loop does: of the present step of the loops around."""
    part = _part.get()
    if part is not None:
        part.tell(part.start + part.width * share)
