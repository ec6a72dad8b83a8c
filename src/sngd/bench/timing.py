"""Times of several pieces of code that do the same work, so that their ratios mean something on a noisy machine."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple

Call = Callable[[], object]


class Spread(NamedTuple):
    """A median, and the quartiles below and above it."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Median and quartiles; of few values, the smallest and the largest."""
    if len(values) < 4:
        return Spread(median(values), min(values), max(values))
    low, middle, high = quantiles(values, n=4)
    return Spread(middle, low, high)


def interleaved(
    calls: Mapping[str, Call], *, seconds: float, least: int = 5, most: int = 1000, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, again and again in turn, so that whatever slows the machine slows all of them.

    The order changes from round to round (``turns``), so that no call always finds what the same other one has left in
    the cache. Rounds follow each other without a pause, so the balance holds within rounds.

    Args:
        calls: what to time, by name.
        seconds: for all rounds together; a round that has begun is finished.
        least, most: bounds on the number of rounds, whatever they take.
        warm_up: rounds before, which are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    orders = turns(len(names))
    began = time.perf_counter()
    for round_ in range(warm_up + most):
        if round_ == warm_up:
            began = time.perf_counter()
        if round_ >= warm_up + least and time.perf_counter() - began > seconds:
            break
        for name in [names[place] for place in orders[round_ % len(orders)]]:
            started = time.perf_counter()
            calls[name]()
            if round_ >= warm_up:
                times[name].append(time.perf_counter() - started)
    return times


def turns(count: int) -> list[list[int]]:
    """Balanced orders of so many pieces of code: every one follows every other one equally often (Williams 1949).

    If each order only put the first of the last one behind the others, nearly all would keep their neighbours.
    """
    zigzag = [place // 2 if place % 2 == 0 else count - 1 - place // 2 for place in range(count)]
    orders = [[(place + shift) % count for place in zigzag] for shift in range(count)]
    return orders if count % 2 == 0 else orders + [order[::-1] for order in orders]


def ratio(ours: list[float], theirs: list[float]) -> Spread:
    """The spread of the ratios of each round: two measurements that are neighbours in time."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])
