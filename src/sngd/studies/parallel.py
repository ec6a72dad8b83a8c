"""Many runs in parallel processes; each can be killed at any moment and taken up again."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sngd.problems import Problem, load_problem
from sngd.training import Interrupted, Progress, RunConfig, train

POLL_SECONDS = 0.1


class Task(NamedTuple):
    """One run to do, and where."""

    config: RunConfig
    folder: Path


OnProgress = Callable[[int, Progress], None]  # (index of the task, how far it is)


def run_all(
    tasks: Sequence[Task],
    *,
    jobs: int | None = None,
    data: Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = lambda _index, _progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Do every task, ``jobs`` at a time, each in a process with its share of the cores; finished runs are not repeated.

    Args:
        tasks: the runs; folders must differ.
        jobs: processes, ≥ 1. Default: as many as there are cores, at most one a task.
        data: folder of data sets.
        overwrite: throw away what the folders hold; otherwise it is gone on with.
        on_progress: called in this process, about ten times a second for each running task.
        should_stop: once true, running tasks save a checkpoint and Interrupted is raised.

    Returns:
        The last row of each task, in order.

    Raises:
        ValueError: jobs is out of range, or what the first task that failed raised; the others stop too.
        Interrupted: ``should_stop`` said so, or a worker process was killed.
    """
    cores = os.cpu_count() or 1
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    jobs = min(jobs or cores, max(1, len(tasks)))
    context = multiprocessing.get_context("spawn")
    stop, messages = context.Event(), context.Queue()
    with _deaf_to_interrupts():  # Ctrl-C reaches the workers through `stop`, so that they can save
        pool = ProcessPoolExecutor(jobs, context, _start_worker, (stop, messages, max(1, cores // jobs)))
        futures = [pool.submit(_work, index, task, data, overwrite) for index, task in enumerate(tasks)]
    try:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
            while not messages.empty():
                on_progress(*messages.get())
            if should_stop() or any(future.exception() for future in done):
                stop.set()
                break
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return _results(futures, tasks)


def _results(futures: Sequence[Any], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    errors = [f.exception() for f in futures if not f.cancelled() and f.exception()]
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
def _deaf_to_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # processes started now inherit it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: dict[str, Any] = {}


def _start_worker(stop: Any, messages: Any, threads: int) -> None:
    _worker.update(stop=stop, messages=messages, threads=threads)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a checkpoint is enough to go on from


def _work(index: int, task: Task, data: Path | None, overwrite: bool) -> dict[str, Any]:
    torch.set_num_threads(_worker["threads"])
    if _worker["stop"].is_set():
        raise Interrupted("not started")
    return train(
        task.config,
        task.folder,
        data=data,
        problem=lambda: _problem(task.config.problem, data),
        resume=not overwrite,
        overwrite=overwrite,
        on_progress=lambda progress: _worker["messages"].put((index, progress)),
        should_stop=_worker["stop"].is_set,
    )


@lru_cache(maxsize=1)
def _problem(spec: str, data: Path | None) -> Problem:
    return load_problem(spec, data)
