"""A task of a study, that is one run to do, and how a worker does it in any process and on any machine."""

import errno
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from sngd.problems import Problem, load_problem
from sngd.studies.execution.execution import Execution
from sngd.training import Interrupted, Progress, RunConfig, train
from sngd.training.metrics import Row
from sngd.training.replicas.alike import Limit, limit
from sngd.training.replicas.train import train_together
from sngd.training.run_folder import BrokenRun, RunFolder, naming_runs


class Task(NamedTuple):
    """One run to do, and where."""

    config: RunConfig
    folder: Path


def do_task(task: Task, execution: Execution, threads: int, on_progress: Callable[[Progress], None]) -> Row:
    """Train, or go on with the run in the folder. A damaged folder is renamed with a warning, and the run starts again.

    Args:
        task: the run.
        execution: with the ``on_warning`` and ``should_stop`` of this process.
        threads: CPU threads.
        on_progress: follows this one run.

    Returns, and raises, what ``sngd.training.train`` does.
    """
    torch.set_num_threads(threads)
    if not execution.overwrite and (warning := RunFolder(task.folder).set_aside_if_broken()):
        execution.on_warning(warning)
    with naming_runs([task.folder]):
        try:
            return _train(task, execution, on_progress)
        except BrokenRun as error:  # the files are undamaged, but of another run
            execution.on_warning(RunFolder(task.folder).set_aside(error))
            return _train(task, execution, on_progress)


def do_tasks(
    tasks: Sequence[Task], execution: Execution, threads: int, on_progress: Callable[[int, Progress], None]
) -> list[Row]:
    """``do_task`` of several runs that are trained as one; ``on_progress`` gets the place of the run in ``tasks``."""
    if len(tasks) > 1:
        torch.set_num_threads(threads)
        try:
            with naming_runs([task.folder for task in tasks]):
                return _train_together(tasks, execution, on_progress)
        except BrokenRun:
            pass  # each run by itself finds out whether it is meant
    return [do_task(task, execution, threads, partial(on_progress, place)) for place, task in enumerate(tasks)]


def _train_together(
    tasks: Sequence[Task], execution: Execution, on_progress: Callable[[int, Progress], None]
) -> list[Row]:
    for task in tasks if not execution.overwrite else []:
        if warning := RunFolder(task.folder).set_aside_if_broken():
            execution.on_warning(warning)
    return train_together(
        [task.config for task in tasks],
        [task.folder for task in tasks],
        lambda: _problem(tasks[0].config.problem, execution.data),
        resume=not execution.overwrite,
        overwrite=execution.overwrite,
        tensorboard=execution.tensorboard,
        on_progress=on_progress,
        should_stop=execution.should_stop,
    )


def examine(config: RunConfig, execution: Execution) -> Limit:
    """How many runs of this kind are trained as one, or why none are. It loads the problem.

    Raises, if the problem cannot be loaded, what ``sngd.problems.load_problem`` does.
    """
    found = limit(config, _problem(config.problem, execution.data))
    return found._replace(most=min(found.most, execution.replicas or found.most))


def _train(task: Task, execution: Execution, on_progress: Callable[[Progress], None]) -> Row:
    return train(
        task.config,
        task.folder,
        data=execution.data,
        problem=lambda: _problem(task.config.problem, execution.data),
        resume=not execution.overwrite,
        overwrite=execution.overwrite,
        tensorboard=execution.tensorboard,
        on_progress=on_progress,
        on_warning=execution.on_warning,
        should_stop=execution.should_stop,
    )


def has_ended(task: Task, execution: Execution) -> bool:
    """Whether the run is not repeated."""
    try:
        return not execution.overwrite and RunFolder(task.folder).has_ended()
    except ValueError:  # damaged files, of which more is said when the run is done anew
        return False


def stopped(tasks: Sequence[Task], ended: Collection[int], execution: Execution) -> Interrupted:
    """What is raised when these runs were asked to stop; ``ended`` are known to have ended, by index."""
    count = sum(index in ended or has_ended(task, execution) for index, task in enumerate(tasks))
    return Interrupted(f"stopped with {count} of {len(tasks)} runs finished; the same command goes on")


def threads_of(task: Task, execution: Execution, share: int) -> int:
    """CPU threads that the run takes: as it was begun, as its settings say, or its share of the cores."""
    try:
        begun = None if execution.overwrite else RunFolder(task.folder).read_config().get("threads")
    except (OSError, ValueError):
        begun = None
    return begun or task.config.threads or share


def check_there(task: Task) -> None:
    """FileNotFoundError if the parent folder that ``run_all`` made was deleted; training would make it again."""
    if not task.folder.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "not begun, the folder above was deleted or moved", str(task.folder))


@lru_cache(maxsize=1)
def _problem(spec: str, data: Path | None) -> Problem:
    return load_problem(spec, data)


def finished(row: Row) -> Progress:
    """The progress of a run that has ended with ``row``: the whole budget is spent."""
    calls = max(1, row["oracle_calls"])
    return Progress(calls, calls, row["train_loss"])
