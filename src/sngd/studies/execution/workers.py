"""The processes that runs are done in: how they start, what each knows, and how they end."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import NamedTuple, ParamSpec, TypeVar

import torch

from sngd.studies.execution.server import THERE_IS_ONE, ignored_interrupts, start_server
from sngd.training import Progress

News = Progress | str  # how far a run is, or a warning
P = ParamSpec("P")
T = TypeVar("T")


class Worker(NamedTuple):
    """What a worker process knows: when to stop, where its news go, its threads and its environment variables."""

    stop: Event
    messages: "Queue[tuple[int, News]]"
    threads: int
    variables: Mapping[str, str]


class Workers(ProcessPoolExecutor):
    """Worker processes. They start when there is something to do, and ignore Ctrl-C: ``stop`` tells them, so they save.

    Args:
        jobs: the most processes at a time.
        threads: the CPU threads of each.
        forked: fork them from a server, if all runs are on a device that ``can_fork``; otherwise each starts anew.
    """

    def __init__(self, jobs: int, threads: int, *, forked: bool) -> None:
        context = start_server() if forked else multiprocessing.get_context("spawn")
        self._inherits = context.get_start_method() == "spawn"
        self.stop: Event = context.Event()
        self.messages: Queue[tuple[int, News]] = context.Queue()
        worker = Worker(self.stop, self.messages, threads, dict(os.environ))
        super().__init__(jobs, context, _start_worker, (worker,))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As of any executor. It may wait for the server; Ctrl-C is heard in it then."""
        if not self._inherits:
            return super().submit(fn, *args, **kwargs)
        with ignored_interrupts():
            return super().submit(fn, *args, **kwargs)


def can_fork(device: str = "cpu") -> bool:
    """Whether workers of runs on this device are forked: on Linux, on the CPU.

    An accelerator cannot be used in a forked process if the server has asked its driver for anything. Other systems'
    libraries do not allow it.
    """
    return THERE_IS_ONE and torch.device(device).type == "cpu"


_this: list[Worker] = []


def this_worker() -> Worker:
    """What this process knows, which is a worker."""
    return _this[0]


def _start_worker(worker: Worker) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # unless it did so from the beginning
    _this.append(worker)
    os.environ.clear()  # the server may have been started with others
    os.environ.update(worker.variables)
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
