"""The processes that runs are done in: how they start, what each knows, and how they end."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch

from sngd.studies.execution.server import deaf_children, start_server
from sngd.training import Interrupted

POLL_SECONDS = 0.1
P = ParamSpec("P")
T = TypeVar("T")


class Worker(NamedTuple):
    """What a worker process knows: when to stop, where its news go, its threads and its environment variables."""

    stop: Event
    messages: "Queue[tuple[int, Any]]"  # Any: whatever the work tells, with the index of what it is about
    threads: int
    variables: Mapping[str, str]


class Workers(ProcessPoolExecutor):
    """Worker processes. They start when there is something to do, and ignore Ctrl-C: ``stop`` tells them, so they save.

    As a context manager: at its end they are told to stop, and waited for.

    Args:
        jobs: the most processes at a time.
        threads: the CPU threads of each.
        forked: fork them from a server, where there can be one; otherwise each starts anew.
    """

    def __init__(self, jobs: int, threads: int, *, forked: bool) -> None:
        context = (start_server() if forked else None) or multiprocessing.get_context("spawn")
        self._begin = nullcontext if context.get_start_method() == "forkserver" else deaf_children
        self.stop: Event = context.Event()
        self.messages: Queue[tuple[int, Any]] = context.Queue()  # Any: see Worker
        worker = Worker(self.stop, self.messages, threads, dict(os.environ))
        super().__init__(jobs, context, _start_worker, (worker,))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As of any executor. It may wait for the server; Ctrl-C is heard in it then.

        Raises:
            Interrupted: a worker process was killed.
        """
        try:
            with self._begin():
                return super().submit(fn, *args, **kwargs)
        except BrokenProcessPool:
            raise Interrupted(_KILLED) from None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Tell the workers to stop, too."""
        self.stop.set()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def follow(
        self,
        futures: Collection[Future[T]],
        should_stop: Callable[[], bool],
        tell: Callable[[set[Future[T]]], None],
    ) -> set[Future[T]]:
        """Wait until all are done, one has failed, or ``should_stop`` says so. Returns those that are not done.

        ``tell`` is called ten times a second with those that are done since it was called.
        """
        pending = set(futures)
        while pending and not should_stop():
            done, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
            tell(done)
            if any(future.exception() for future in done):
                break
        return pending


def raise_first_error(futures: Collection[Future[T]]) -> None:
    """An error of futures that are done, if there is one: rather what stopped others than ``Interrupted``.

    Raises:
        Interrupted: a worker process was killed.
    """
    for error in [error for f in futures if not f.cancelled() and (error := f.exception())]:
        if isinstance(error, BrokenProcessPool):
            raise Interrupted(_KILLED)
        if not isinstance(error, Interrupted):
            raise error


_KILLED = "a worker process was killed; the same command goes on from the last checkpoints"


def can_fork(device: str) -> bool:
    """Whether workers of runs on this device may be forked from a server: those on the CPU.

    An accelerator cannot be used in a forked process if the server has asked its driver for anything.
    """
    return torch.device(device).type == "cpu"


_this: list[Worker] = []


def this_worker() -> Worker:
    """What this process knows, which is a worker."""
    return _this[0]


def _start_worker(worker: Worker) -> None:
    warnings.filterwarnings("ignore", "There is a performance drop because")  # of an operation that vmap does in a loop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # in case the server was started by other code
    _this.append(worker)
    os.environ.clear()  # the server may have been started with others
    os.environ.update(worker.variables)
    atexit.register(_leave, worker.messages)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _leave(messages: "Queue[tuple[int, Any]]") -> None:
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
