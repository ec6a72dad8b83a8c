"""The processes that runs are done in: how they start, what each knows, and how they end."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import NamedTuple

from sngd.training import Progress

News = Progress | str  # how far a run is, or a warning


class Worker(NamedTuple):
    """What a worker process knows: when to stop, where its news go, and how many threads it has."""

    stop: Event
    messages: "Queue[tuple[int, News]]"
    threads: int


_worker: list[Worker] = []  # this process, if it is a worker


def this_worker() -> Worker:
    """What ``start_worker`` was given in this process."""
    return _worker[0]


def start_worker(worker: Worker) -> None:
    """Make this process a worker."""
    _worker.append(worker)
    atexit.register(_leave, worker.messages)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _leave(messages: "Queue[tuple[int, News]]") -> None:
    """End the process when all is sent. Python and torch would take most of a second to clear up their memory."""
    messages.close()
    messages.join_thread()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a checkpoint is enough to go on from


@contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Processes that are started inside ignore Ctrl-C: it reaches them through ``stop``, so that they can save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
