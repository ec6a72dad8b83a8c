"""The progress of many runs: how many are done, running and queued, and the time that is left."""

import heapq
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sngd.training import Progress, RunConfig


class State(NamedTuple):
    """Numbers of runs, the share of all work that is done (0 to 1), and seconds left (None: not known yet)."""

    done: int
    running: int
    queued: int
    share: float
    seconds_left: float | None


@dataclass
class _Begun:
    """A run as far as it is known; its work is counted from where it was taken up."""

    budget: int
    first_calls: int
    first_time: float
    calls: int
    time: float
    done: bool = False


class Overview:
    """Follows a batch of runs through their progress, as ``Execution.begin``'s answer is told of it.

    A run's size is its ``epochs``. Runs of one problem, method and batch size form a group. Its pace is the mean number
    of seconds per epoch so far; a group of which no run has begun has the pace of all groups. The time left is computed
    from a schedule: running runs go on, and each queued run in turn takes the first free place. The number of places is
    the largest number of runs seen at once. Runs that were finished before are not used for the pace.

    Args:
        configs: of the runs, in the order of their indices.
        clock: seconds, for tests.
    """

    def __init__(self, configs: Sequence[RunConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self._configs, self._clock = configs, clock
        self._runs: dict[int, _Begun] = {}
        self._places = 1

    def __call__(self, index: int, progress: Progress) -> None:
        now = self._clock()
        run = self._runs.get(index)
        if run is None or progress.oracle_calls < run.calls:  # less than before: it went on from a checkpoint
            run = self._runs[index] = _Begun(progress.budget, progress.oracle_calls, now, progress.oracle_calls, now)
        run.calls, run.time = progress.oracle_calls, now
        run.done = progress.oracle_calls >= progress.budget
        self._places = max(self._places, sum(not run.done for run in self._runs.values()))

    def state(self) -> State:
        shares = [self._share(index) for index in range(len(self._configs))]
        total = sum(config.epochs for config in self._configs)
        done = sum(run.done for run in self._runs.values())
        return State(
            done=done,
            running=len(self._runs) - done,
            queued=len(self._configs) - len(self._runs),
            share=sum(s * c.epochs for s, c in zip(shares, self._configs, strict=True)) / total if total else 1.0,
            seconds_left=self._seconds_left(shares),
        )

    def _share(self, index: int) -> float:
        run = self._runs.get(index)
        if run is None:
            return 0.0
        return 1.0 if run.done else min(1.0, run.calls / max(1, run.budget))

    def _seconds_left(self, shares: Sequence[float]) -> float | None:
        if all(share == 1 for share in shares):
            return 0.0
        paces, common = self._paces()
        if common is None:
            return None
        left = [
            (1 - share) * config.epochs * paces.get(_group(config), common)
            for share, config in zip(shares, self._configs, strict=True)
        ]
        places = [left[index] for index, run in self._runs.items() if not run.done]
        places += [0.0] * (self._places - len(places))
        heapq.heapify(places)
        for index, seconds in enumerate(left):
            if index not in self._runs:
                heapq.heapreplace(places, places[0] + seconds)
        return max(places)

    def _paces(self) -> tuple[dict[Hashable, float], float | None]:
        """Seconds per epoch of each group of runs, and of all."""
        seconds: dict[Hashable, float] = {}
        epochs: dict[Hashable, float] = {}
        for index, run in self._runs.items():
            config = self._configs[index]
            group, work = _group(config), (run.calls - run.first_calls) / max(1, run.budget) * config.epochs
            if work > 0:
                seconds[group] = seconds.get(group, 0.0) + run.time - run.first_time
                epochs[group] = epochs.get(group, 0.0) + work
        paces = {group: seconds[group] / epochs[group] for group in epochs}
        return paces, sum(seconds.values()) / sum(epochs.values()) if epochs else None


def _group(config: RunConfig) -> Hashable:
    return config.problem, config.method, config.batch_size
