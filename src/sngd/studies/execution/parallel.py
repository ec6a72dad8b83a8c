"""Do many runs in parallel processes; each can be killed at any moment and resumed."""

import os
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from functools import partial

import torch

from sngd.studies.execution.execution import Execution, OnProgress
from sngd.studies.execution.grouping import alike, in_groups, plan_in_words
from sngd.studies.execution.ray_runs import run_on_ray
from sngd.studies.execution.task import Task, check_there, do_tasks, examine, finished, has_ended, stopped, threads_of
from sngd.studies.execution.workers import POLL_SECONDS, Workers, can_fork, raise_first_error, this_worker
from sngd.training import Interrupted, Progress, RunConfig
from sngd.training.folder_lock import make_folder
from sngd.training.metrics import Row
from sngd.training.replicas.alike import Limit


def run_all(tasks: Sequence[Task], execution: Execution = Execution(), title: str = "runs") -> list[Row]:
    """Do every task; a run that its folder holds finished is not repeated, unless it is to be overwritten.

    If a run's folder is damaged (a file that cannot be read, lost rows) it is renamed to NAME.broken-1, -2, … and the
    run is done again. A folder with a run of other settings is an error.

    Args:
        tasks: the runs, each in a folder of its own.
        execution: how they are done.
        title: what ``execution.begin`` is told of them.

    Returns:
        The last row of each task, in order.

    Raises:
        ValueError: two tasks have one folder; or what the first task that failed raised, with a note of its folder; the
            others stop too.
        Interrupted: ``execution.should_stop`` said so, or a worker process was killed.
    """
    folder, times = Counter(task.folder for task in tasks).most_common(1)[0] if tasks else (None, 0)
    if times > 1:
        raise ValueError(f"{folder}: two runs are to be trained in this folder")
    for task in tasks:  # made here, because a worker would recreate a folder that somebody deletes meanwhile
        make_folder(task.folder.parent)
    on_progress = execution.begin(title, [task.config for task in tasks])
    if execution.ray is None:
        return _run_here(tasks, execution, on_progress)
    return run_on_ray(tasks, execution, execution.ray, on_progress)


def _run_here(tasks: Sequence[Task], execution: Execution, on_progress: OnProgress) -> list[Row]:
    cores = os.cpu_count() or 1
    jobs = min(execution.jobs or cores, max(1, len(tasks)))
    threads = max(1, cores // jobs)
    futures: dict[Future[list[Row]], list[int]] = {}
    told: set[int] = set()  # that they have ended

    def tell(done: set[Future[list[Row]]]) -> None:
        while not workers.messages.empty():
            index, news = workers.messages.get()
            if isinstance(news, str):
                execution.on_warning(news)
            elif index not in told:
                on_progress(index, news)
        for future in done:
            if not future.cancelled() and not future.exception():
                for index, row in zip(futures[future], future.result(), strict=True):
                    told.add(index)
                    on_progress(index, finished(row))

    ended = {index for index, task in enumerate(tasks) if has_ended(task, execution)}
    with Workers(jobs, threads, forked=all(can_fork(task.config.device) for task in tasks)) as workers:
        for group in _grouped(workers, tasks, ended, execution, jobs, threads):
            own = {index: tasks[index] for index in group}
            futures[workers.submit(_work, own, execution.portable())] = group
        pending = workers.follow(futures, execution.should_stop, tell)
    tell(pending)  # those that ended while the others were stopping
    return _results(futures, tasks, ended, execution)


def _grouped(
    workers: Workers, tasks: Sequence[Task], ended: Collection[int], execution: Execution, jobs: int, threads: int
) -> list[list[int]]:
    """The tasks that a worker trains as one, by index. Says what is done, unless all runs have ended."""
    kinds = alike(tasks)
    open_kinds = {key: indices for key, indices in kinds.items() if len(indices) > 1 and not set(indices) <= set(ended)}
    limits: dict[Hashable, Limit] = {}
    if open_kinds and execution.replicas != 1:
        configs = [tasks[indices[0]].config for indices in open_kinds.values()]
        answers = _examined(workers, configs, execution, jobs)
        if answers is None:
            raise stopped(tasks, ended, execution)
        limits = dict(zip(open_kinds, answers, strict=True))
    found = in_groups(tasks, limits, jobs)
    if len(ended) < len(tasks):
        counts = {threads_of(task, execution, threads) for index, task in enumerate(tasks) if index not in ended}
        for line in plan_in_words(tasks, found, limits, jobs, counts, ended):
            execution.on_plan(line)
    return found


def _examined(workers: Workers, configs: Sequence[RunConfig], execution: Execution, jobs: int) -> list[Limit] | None:
    """The limits of runs of these kinds; None: asked to stop. Each worker loads the problem, as it must anyway."""
    futures = {workers.submit(_examine, configs, execution.portable()) for _ in range(jobs)}
    done: set[Future[list[Limit]]] = set()
    while not done:
        done, _ = wait(futures, POLL_SECONDS, FIRST_COMPLETED)
        if execution.should_stop():
            return None
    raise_first_error(done)
    return next(iter(done)).result()


def _results(
    futures: Mapping[Future[list[Row]], Sequence[int]],
    tasks: Sequence[Task],
    ended: Collection[int],
    execution: Execution,
) -> list[Row]:
    raise_first_error(futures)
    done = [future for future in futures if not future.cancelled() and not future.exception()]
    rows = {i: row for future in done for i, row in zip(futures[future], future.result(), strict=True)}
    if len(rows) < len(tasks):
        raise stopped(tasks, {*ended, *rows}, execution)
    return [rows[index] for index in range(len(tasks))]


def _examine(configs: Sequence[RunConfig], execution: Execution) -> list[Limit]:
    torch.set_num_threads(this_worker().threads)
    return [examine(config, execution) for config in configs]


def _work(tasks: Mapping[int, Task], execution: Execution) -> list[Row]:
    worker = this_worker()
    if worker.stop.is_set():
        raise Interrupted("not started")
    for task in tasks.values():
        check_there(task)
    indices = list(tasks)

    def tell(place: int, news: Progress | str) -> None:
        worker.messages.put((indices[place], news))

    execution = replace(execution, on_warning=partial(tell, 0), should_stop=worker.stop.is_set)
    return do_tasks(list(tasks.values()), execution, worker.threads, tell)
