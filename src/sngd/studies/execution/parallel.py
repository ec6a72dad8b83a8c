"""Many runs in parallel processes; each can be killed at any moment and taken up again."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from sngd.studies.execution.ray_runs import RayCluster, run_on_ray
from sngd.studies.execution.task import How, OnProgress, OnWarning, Task, check_there, do_task, finished
from sngd.training import Interrupted, Progress
from sngd.training.folder_lock import make_folder
from sngd.training.metrics import Row

__all__ = ["OnProgress", "RayCluster", "Task", "run_all"]

POLL_SECONDS = 0.1


def run_all(
    tasks: Sequence[Task],
    *,
    jobs: int | None = None,
    ray: RayCluster | None = None,
    data: Path | None = None,
    overwrite: bool = False,
    tensorboard: bool = False,
    on_progress: OnProgress = lambda _index, _progress: None,
    on_warning: OnWarning = lambda text: warnings.warn(text, stacklevel=2),
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Row]:
    """Do every task, ``jobs`` at a time, each in a process with its share of the cores; finished runs are not repeated.

    A run whose folder is damaged (a file that cannot be read, rows that are lost) is set aside as NAME.broken-1, -2, …
    and done anew; one of other settings is an error.

    Args:
        tasks: the runs; folders must differ.
        jobs: processes, ≥ 1. Default: as many as there are cores, at most one a task.
        ray: do them on a Ray cluster instead, as many at a time as its shares allow, see ``ray_runs``.
        data: folder of data sets.
        overwrite: throw away what the folders hold; otherwise it is gone on with.
        tensorboard: write event files too, see ``sngd.training.tensorboard``.
        on_progress: called in this process, about ten times a second for each running task; lastly, for every task that
            is finished, with the whole budget spent.
        on_warning: told in one line of each folder that is set aside. Default: a Python warning.
        should_stop: once true, running tasks save a checkpoint and Interrupted is raised.

    Returns:
        The last row of each task, in order.

    Raises:
        ValueError: jobs is out of range, or what the first task that failed raised; the others stop too.
        Interrupted: ``should_stop`` said so, or a worker process was killed.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    for task in tasks:  # now: a worker would make anew what somebody has deleted meanwhile
        make_folder(task.folder.parent)
    how = How(data, overwrite, tensorboard)
    if ray is None:
        return _run_here(tasks, how, jobs, on_progress, on_warning, should_stop)
    if jobs is not None:
        raise ValueError("jobs and ray exclude each other: a cluster does as many runs at a time as their shares allow")
    return run_on_ray(tasks, how, ray, on_progress, on_warning, should_stop)


def _run_here(
    tasks: Sequence[Task],
    how: How,
    jobs: int | None,
    on_progress: OnProgress,
    on_warning: OnWarning,
    should_stop: Callable[[], bool],
) -> list[Row]:
    cores = os.cpu_count() or 1
    jobs = min(jobs or cores, max(1, len(tasks)))
    context = multiprocessing.get_context("spawn")
    stop, messages = context.Event(), context.Queue()
    with _ignore_interrupts():  # Ctrl-C reaches the workers through `stop`, so that they can save
        pool = ProcessPoolExecutor(jobs, context, _start_worker, (stop, messages, max(1, cores // jobs)))
        futures = {pool.submit(_work, index, task, how): index for index, task in enumerate(tasks)}

    ended: set[int] = set()

    def tell(done: set[Future[Row]]) -> None:
        while not messages.empty():
            index, news = messages.get()
            if isinstance(news, str):
                on_warning(news)
            elif index not in ended:
                on_progress(index, news)
        for future in done:
            if not future.cancelled() and not future.exception():
                ended.add(futures[future])
                on_progress(futures[future], finished(future.result()))

    try:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
            tell(done)
            if should_stop() or any(future.exception() for future in done):
                break
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    tell(pending)  # those that ended while the others were stopping
    return _results(list(futures), tasks)


def _results(futures: Sequence[Future[Row]], tasks: Sequence[Task]) -> list[Row]:
    errors = [error for f in futures if not f.cancelled() and (error := f.exception())]
    for error in errors:
        if isinstance(error, BrokenProcessPool):
            raise Interrupted("a worker process was killed; the same command goes on from the last checkpoints")
        if not isinstance(error, Interrupted):
            raise error
    if errors or any(future.cancelled() for future in futures):
        finished = sum(not f.cancelled() and not f.exception() for f in futures)
        raise Interrupted(f"stopped with {finished} of {len(tasks)} runs finished; the same command goes on")
    return [future.result() for future in futures]


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # processes started now inherit it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: dict[str, Any] = {}  # Any: the arguments of _start_worker, which a spawned process has no other place for


def _start_worker(stop: Event, messages: "Queue[tuple[int, Progress | str]]", threads: int) -> None:
    _worker.update(stop=stop, messages=messages, threads=threads)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a checkpoint is enough to go on from


def _work(index: int, task: Task, how: How) -> Row:
    if _worker["stop"].is_set():
        raise Interrupted("not started")
    check_there(task)
    return do_task(
        task,
        how,
        _worker["threads"],
        on_progress=lambda progress: _worker["messages"].put((index, progress)),
        on_warning=lambda warning: _worker["messages"].put((index, warning)),
        should_stop=_worker["stop"].is_set,
    )
