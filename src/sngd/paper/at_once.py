"""Studies without training runs, as many at once as there are processes: each is the work of one thread."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from sngd.paper.closed_form.share_done import listening
from sngd.paper.reproduce import reproduce
from sngd.studies.execution.execution import Execution
from sngd.studies.execution.workers import Workers, raise_first_error, this_worker
from sngd.training import Interrupted

_SECONDS = 0.1  # between what a worker tells


def reproduce_at_once(
    figures: Sequence[str],
    profile: str,
    out: Path,
    command: str = "",
    execution: Execution = Execution(),
    *,
    on_progress: Callable[[Sequence[str], float], object] = lambda *_: None,
) -> None:
    """``reproduce`` several figures that are not made of runs, each in its folder ``out``/FIGURE.

    Args:
        figures: keys of ``FIGURES``.
        profile, out, command: as for ``reproduce``.
        execution: its number of jobs, and whether it overwrites and is to stop.
        on_progress: told, ten times a second, which figures are being measured, and how many are done, with fractions.

    Raises:
        ValueError, FileNotFoundError: as ``reproduce``; the other studies are stopped.
        Interrupted: ``execution.should_stop`` said so. Studies that were not done begin anew next time.
    """
    shares = dict.fromkeys(range(len(figures)), 0.0)
    futures: dict[Future[None], int] = {}

    def tell(done: set[Future[None]]) -> None:
        while not workers.messages.empty():
            index, share = workers.messages.get()
            shares[index] = max(shares[index], share)
        shares.update((futures[future], 1.0) for future in done)
        left = [figures[index] for index, share in shares.items() if share < 1]
        on_progress(left[:jobs], sum(shares.values()))

    jobs = min(execution.jobs or os.cpu_count() or 1, len(figures))
    with Workers(jobs, 1, forked=True) as workers:
        for index, figure in enumerate(figures):
            given = (profile, out / figure, command, execution.portable())
            futures[workers.submit(_study, index, figure, *given)] = index
        pending = workers.follow(futures, execution.should_stop, tell)
    raise_first_error(futures)
    if pending:
        raise Interrupted("stopped; the same command goes on, and begins the present studies anew")


def _study(index: int, figure: str, profile: str, out: Path, command: str, execution: Execution) -> None:
    worker, told = this_worker(), -_SECONDS

    def tell(share: float) -> None:
        nonlocal told
        if worker.stop.is_set():
            raise Interrupted(f"{figure} was stopped")
        if time.monotonic() - told >= _SECONDS:
            told = time.monotonic()
            worker.messages.put((index, share))

    with listening(tell):
        reproduce(figure, profile, out, command, execution, reuse=True)
