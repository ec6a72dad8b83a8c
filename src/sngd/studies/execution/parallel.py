"""Do many runs in parallel processes; each can be killed at any moment and resumed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any

from sngd.studies.execution.execution import Execution, OnProgress
from sngd.studies.execution.ray_runs import run_on_ray
from sngd.studies.execution.task import Task, check_there, do_task, finished
from sngd.training import Interrupted, Progress
from sngd.training.folder_lock import make_folder
from sngd.training.metrics import Row

POLL_SECONDS = 0.1


def run_all(tasks: Sequence[Task], execution: Execution = Execution(), title: str = "runs") -> list[Row]:
    """Do every task; a run that its folder holds finished is not repeated, unless it is to be overwritten.

    If a run's folder is damaged (a file that cannot be read, lost rows) it is renamed to NAME.broken-1, -2, … and the
    run is done again. A folder with a run of other settings is an error.

    Args:
        tasks: the runs; folders must differ.
        execution: how they are done.
        title: what ``execution.begin`` is told of them.

    Returns:
        The last row of each task, in order.

    Raises:
        ValueError: what the first task that failed raised; the others stop too.
        Interrupted: ``execution.should_stop`` said so, or a worker process was killed.
    """
    for task in tasks:  # made here, because a worker would recreate a folder that somebody deletes meanwhile
        make_folder(task.folder.parent)
    on_progress = execution.begin(title, [task.config for task in tasks])
    if execution.ray is None:
        return _run_here(tasks, execution, on_progress)
    return run_on_ray(tasks, execution, execution.ray, on_progress)


def _run_here(tasks: Sequence[Task], execution: Execution, on_progress: OnProgress) -> list[Row]:
    cores = os.cpu_count() or 1
    jobs = min(execution.jobs or cores, max(1, len(tasks)))
    context = multiprocessing.get_context("spawn")
    stop, messages = context.Event(), context.Queue()
    with _ignore_interrupts():  # Ctrl-C reaches the workers through `stop`, so that they can save
        pool = ProcessPoolExecutor(jobs, context, _start_worker, (stop, messages, max(1, cores // jobs)))
        futures = {pool.submit(_work, index, task, execution.portable()): index for index, task in enumerate(tasks)}

    ended: set[int] = set()

    def tell(done: set[Future[Row]]) -> None:
        while not messages.empty():
            index, news = messages.get()
            if isinstance(news, str):
                execution.on_warning(news)
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
            if execution.should_stop() or any(future.exception() for future in done):
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


def _work(index: int, task: Task, execution: Execution) -> Row:
    if _worker["stop"].is_set():
        raise Interrupted("not started")
    check_there(task)

    def tell(news: Progress | str) -> None:
        _worker["messages"].put((index, news))

    execution = replace(execution, on_warning=tell, should_stop=_worker["stop"].is_set)
    return do_task(task, execution, _worker["threads"], on_progress=tell)
