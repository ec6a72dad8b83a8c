"""A task of a study, one run to do, and how a worker does it, in whatever process and on whatever machine it is."""

import errno
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from sngd.problems import Problem, load_problem
from sngd.training import Progress, RunConfig, train
from sngd.training.metrics import Row
from sngd.training.run_folder import BrokenRun, RunFolder


class Task(NamedTuple):
    """One run to do, and where."""

    config: RunConfig
    folder: Path


class How(NamedTuple):
    """What the tasks of a batch have in common, see ``run_all``."""

    data: Path | None
    overwrite: bool
    tensorboard: bool


OnProgress = Callable[[int, Progress], None]  # (index of the task, how far it is)
OnWarning = Callable[[str], None]


def do_task(
    task: Task,
    how: How,
    threads: int,
    on_progress: Callable[[Progress], None],
    on_warning: OnWarning,
    should_stop: Callable[[], bool],
) -> Row:
    """Train, or go on with what the folder holds; if that is damaged, set it aside, with a warning, and begin anew.

    Returns, and raises, what ``sngd.training.train`` does.
    """
    torch.set_num_threads(threads)
    if not how.overwrite and (warning := RunFolder(task.folder).set_aside_if_broken()):
        on_warning(warning)
    try:
        return _train(task, how, on_progress, should_stop)
    except BrokenRun as error:  # the files are whole, and not those of this run
        on_warning(RunFolder(task.folder).set_aside(error))
        return _train(task, how, on_progress, should_stop)


def _train(task: Task, how: How, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> Row:
    return train(
        task.config,
        task.folder,
        data=how.data,
        problem=lambda: _problem(task.config.problem, how.data),
        resume=not how.overwrite,
        overwrite=how.overwrite,
        tensorboard=how.tensorboard,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def check_there(task: Task) -> None:
    """FileNotFoundError if the folder that ``run_all`` made for the run's was deleted; to train would make it anew."""
    if not task.folder.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "not begun, the folder above was deleted or moved", str(task.folder))


@lru_cache(maxsize=1)
def _problem(spec: str, data: Path | None) -> Problem:
    return load_problem(spec, data)


def finished(row: Row) -> Progress:
    """What is told of a run that has ended with ``row``: the whole budget is spent."""
    calls = max(1, row["oracle_calls"])
    return Progress(calls, calls, row["train_loss"])
