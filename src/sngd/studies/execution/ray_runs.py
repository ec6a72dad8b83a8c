"""Many runs on the machines of a Ray cluster; a run whose machine dies goes on, on another, from its checkpoint.

Every machine must have sngd installed and see the run folders, the data and the working directory under the same paths
(a shared file system with locks). The folder's lock ends with its process and keeps two workers out of one run; its
checkpoint is all that the next worker needs. Only this module imports Ray (``pip install 'sngd[ray]'``).
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from sngd.studies.execution.execution import Execution, OnProgress, RayCluster
from sngd.studies.execution.task import Task, check_there, do_task, finished, stopped
from sngd.training import Interrupted, Progress
from sngd.training.metrics import Row
from sngd.training.run_folder import RunFolder

_Ray = Any  # Any: the module, which carries no types and need not be installed
_Actor = Any  # Any: ray's handle on an actor
_Ref = Any  # Any: ray's reference to a result to come

POLL_SECONDS = 0.2
RETRIES = 4  # of a run whose worker died: after 1, 4, 9 and 16 seconds, as Ray takes its time to notice a dead machine


def run_on_ray(tasks: Sequence[Task], execution: Execution, cluster: RayCluster, on_progress: OnProgress) -> list[Row]:
    """``sngd.studies.execution.parallel.run_all`` on a Ray cluster.

    Raises:
        ValueError: ray is not installed, there is no such cluster, or what the first task that failed raised; the
            others stop too.
        Interrupted: ``execution.should_stop`` said so, or one run's workers died again and again.
    """
    execution = replace(execution, data=execution.data or _data_from_environment())
    with _connect(cluster.address) as ray:
        return _Batch(ray, tasks, execution, cluster, on_progress).run()


def _data_from_environment() -> Path | None:
    """The folder of data sets that SNGD_DATA names here, because other machines have other environment variables."""
    data = os.environ.get("SNGD_DATA")
    return Path(data) if data else None


@contextmanager
def _connect(address: str) -> Iterator[_Ray]:
    try:
        import ray
    except ImportError:
        raise ValueError("ray: a cluster needs the package ray: pip install 'sngd[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        _check_address(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"ray: cannot join a cluster at {address!r}: {reason}") from error
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # ray.init takes it
    try:
        with redirect_stdout(sys.stderr):  # ray prints the cluster's errors there, where others want results
            yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """OSError or ValueError at once for an address to which Ray would try to connect for many minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("the address must be 'auto' or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=10).close()


class _Batch:
    """The tasks under way: one Ray task for each that has not ended, given out again if its worker dies."""

    def __init__(
        self,
        ray: _Ray,
        tasks: Sequence[Task],
        execution: Execution,
        cluster: RayCluster,
        on_progress: OnProgress,
    ) -> None:
        self.ray, self.tasks, self.execution, self.cluster = ray, tasks, execution, cluster
        self.on_progress = on_progress
        self.rows: dict[int, Row] = {}
        self.begun: set[int] = set()
        self.deaths = [0] * len(tasks)
        self.restarts: dict[int, float] = {}  # runs to be given out again, and when
        self.error: Exception | None = None
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )  # the machine whose death ends this process too
        mailbox = ray.remote(_Mailbox).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        )
        self.mailbox = mailbox.remote()
        self._warn_of_shares_too_large()
        self.pending = {self._submit(index): index for index in range(len(tasks))}

    def _warn_of_shares_too_large(self) -> None:
        """Warn of runs whose share no machine has now. It is no error, because the cluster may grow."""
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        cpus, gpus = self.cluster.cpus, max(map(self._gpus, self.tasks), default=0.0)
        if not any(cpus <= machine.get("CPU", 0) and gpus <= machine.get("GPU", 0) for machine in machines):
            self.execution.on_warning(
                f"ray: no machine of the cluster has {cpus:g} CPUs and {gpus:g} GPUs; waiting for one"
            )

    def _gpus(self, task: Task) -> float:
        if self.cluster.gpus is not None:
            return self.cluster.gpus
        return float(task.config.device.startswith("cuda"))

    def _submit(self, index: int) -> _Ref:
        task = self.tasks[index]
        again = self.deaths[index] > 0
        execution = self.execution.portable()
        if index in self.begun:
            execution = replace(execution, overwrite=False)
        work = self.ray.remote(_work).options(
            num_cpus=self.cluster.cpus,
            num_gpus=self._gpus(task),
            max_retries=0,  # see _end
            name=f"{task.config.label or task.config.method}, seed {task.config.seed}",
        )
        return work.remote(index, task, execution, max(1, int(self.cluster.cpus)), self.mailbox, os.getcwd(), again)

    def run(self) -> list[Row]:
        stopping = False
        while self.pending or self.restarts:
            if not stopping and (self.error is not None or self.execution.should_stop()):
                stopping = True
                self._stop()
            if stopping:
                self.restarts.clear()
            if self.pending:
                done, _ = self.ray.wait(list(self.pending), timeout=POLL_SECONDS)
            else:
                done = []
                time.sleep(POLL_SECONDS)
            self._read(stopping)
            for ref in done:
                self._end(ref)
            for index in [index for index, due in self.restarts.items() if due <= time.monotonic()]:
                del self.restarts[index]
                self.pending[self._submit(index)] = index
        if self.error is not None:
            raise self.error
        if len(self.rows) < len(self.tasks):
            raise stopped(self.tasks, self.rows, self.execution)
        return [self.rows[index] for index in range(len(self.tasks))]

    def _read(self, stopping: bool) -> None:
        for index, news in self.ray.get(self.mailbox.collect.remote(stopping)):
            if isinstance(news, str):
                self.execution.on_warning(news)
            elif news is not None and index not in self.rows:
                self.begun.add(index)
                self.on_progress(index, news)

    def _stop(self) -> None:
        """Ask running tasks to save, and cancel those that wait for a machine."""
        self._read(stopping=True)
        for ref, index in self.pending.items():
            if index not in self.begun:
                self.ray.cancel(ref)

    def _end(self, ref: _Ref) -> None:
        errors = self.ray.exceptions
        index = self.pending.pop(ref)
        try:
            row = self.ray.get(ref)
        except errors.TaskCancelledError:
            return
        except errors.RayTaskError as error:
            if not isinstance(error.cause, Interrupted):
                self.error = self.error or (error.cause if isinstance(error.cause, Exception) else error)
        except errors.RayError as error:  # the worker is gone, its machine perhaps too
            self._restart_or_give_up(index, str(error) or type(error).__name__)
        else:
            self.rows[index] = row
            self.on_progress(index, finished(row))

    def _restart_or_give_up(self, index: int, reason: str) -> None:
        self.deaths[index] += 1
        what = f"{self.tasks[index].folder}: its worker died ({_first_sentence(reason)})"
        if self.deaths[index] > RETRIES:
            self.error = self.error or Interrupted(f"{what}, {self.deaths[index]} times; the same command goes on")
        else:
            self.restarts[index] = time.monotonic() + self.deaths[index] ** 2
            self.execution.on_warning(f"{what}; the run goes on in another one")


def _first_sentence(text: str) -> str:
    return text.strip().splitlines()[0].split(". ")[0]


class _Mailbox:
    """An actor between driver and workers: it passes progress to the driver, and the request to stop to the workers."""

    def __init__(self) -> None:
        self.news: list[tuple[int, Progress | str | None]] = []
        self.stop = False

    def tell(self, index: int, news: Progress | str | None) -> bool:
        self.news.append((index, news))
        return self.stop

    def collect(self, stop: bool) -> list[tuple[int, Progress | str | None]]:
        self.stop = stop
        news, self.news = self.news, []
        return news


def _work(index: int, task: Task, execution: Execution, threads: int, mailbox: _Actor, cwd: str, again: bool) -> Row:
    """A worker's task; ``again`` is true if an earlier worker died at the same task."""
    import ray

    os.chdir(cwd)
    if ray.get(mailbox.tell.remote(index, None)):
        raise Interrupted("not started")
    check_there(task)
    messenger = _Messenger(ray, mailbox, index)
    if again:
        _await_lock(task.folder, messenger)
    execution = replace(
        execution,
        on_warning=lambda text: ray.get(mailbox.tell.remote(index, text)),
        should_stop=lambda: messenger.stop,
    )
    return do_task(task, execution, threads, on_progress=messenger.tell)


class _Messenger:
    """A worker's messenger to the mailbox: one message is under way at a time, so that training never waits for it."""

    def __init__(self, ray: _Ray, mailbox: _Actor, index: int) -> None:
        self.ray, self.mailbox, self.index = ray, mailbox, index
        self.answer: _Ref = None
        self.stop = False

    def tell(self, progress: Progress | None) -> None:
        if self.answer is not None:
            if not self.ray.wait([self.answer], timeout=0)[0]:
                return
            self.stop = self.ray.get(self.answer)
        self.answer = self.mailbox.tell.remote(self.index, progress)


def _await_lock(folder: Path, messenger: _Messenger) -> None:
    """Wait until the earlier worker has ended: Ray may lose contact with a machine whose worker still runs."""
    while True:
        try:
            with RunFolder(folder).locked():
                return
        except ValueError:
            messenger.tell(None)
            if messenger.stop:
                raise Interrupted(f"{folder}: its worker was given up and still runs") from None
            time.sleep(1)
