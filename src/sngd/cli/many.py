"""Shared code of the commands that do many runs: how the runs are done, and their live overview."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.progress import Progress

from sngd import training
from sngd.cli.console import err, loss, progress_bars, stop_on_interrupt
from sngd.cli.options import Data, TensorBoard
from sngd.studies.execution.execution import Execution, RayCluster
from sngd.studies.execution.overview import Overview
from sngd.training import RunConfig


def execution_here_or_on_ray(
    jobs: Annotated[
        int | None, typer.Option(help="Processes at a time. (default: the number of cores, at most one a run)")
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(help="Runs that a process may train as one; 1: none. (default: as many as gain by it)"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Do the runs on a Ray cluster: HOST:PORT, or 'auto' for this machine's own."
        ),
    ] = None,
    ray_cpus: Annotated[
        float | None, typer.Option(help=f"With --ray: CPUs of a run. (default: {RayCluster.cpus:g})")
    ] = None,
    ray_gpus: Annotated[
        float | None, typer.Option(help="With --ray: GPUs of a run, may be a fraction. (default: 1 on cuda, else 0)")
    ] = None,
    data: Data = None,
    tensorboard: TensorBoard = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--resume", help="Throw away what the output folder holds, or go on from there.")
    ] = False,
) -> Execution:
    """For ``made_from_options``."""
    if ray is None and (ray_cpus, ray_gpus) != (None, None):
        raise ValueError("--ray-cpus and --ray-gpus are shares of a cluster: give --ray too")
    cpus = RayCluster.cpus if ray_cpus is None else ray_cpus
    cluster = None if ray is None else RayCluster(ray, cpus, ray_gpus)
    return Execution(jobs=jobs, replicas=replicas, ray=cluster, data=data, overwrite=overwrite, tensorboard=tensorboard)


@contextmanager
def watched(execution: Execution) -> Iterator[tuple[Execution, Progress]]:
    """The same with progress bars (which others may use, too) and warnings at the terminal, stopped by Ctrl-C."""
    with stop_on_interrupt() as should_stop, progress_bars() as bars:

        def begin(title: str, configs: Sequence[RunConfig]) -> RunsOverview:
            return RunsOverview(bars, title, configs)

        yield replace(execution, begin=begin, on_warning=_each_once(warn), on_plan=say, should_stop=should_stop), bars


def _each_once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but silent about what it has told: many runs may have one reason for a warning."""
    told: set[str] = set()

    def tell_once(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    return tell_once


def warn(text: str) -> None:
    """Print a warning; the command goes on."""
    err.print(text, style="yellow", highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print what a command does, beside its results."""
    err.print(text, style="dim", highlight=False, soft_wrap=True)


class RunsOverview:
    """Progress of many runs: a bar for all of them together, and one for each that is running."""

    def __init__(self, bars: Progress, title: str, configs: Sequence[RunConfig]) -> None:
        self.bars, self.title, self.configs = bars, title, configs
        self.overview = Overview(configs)
        self.all = bars.add_task("", total=1.0, loss="", seconds_left=None)
        self.running: dict[int, Any] = {}
        self._show_all()

    def __call__(self, index: int, progress: training.Progress) -> None:
        self.overview(index, progress)
        if index not in self.running:
            config = self.configs[index]
            rate = "" if config.lr is None else f", lr {config.lr:g}"
            described = f"  {config.label}{rate}, seed {config.seed}"
            self.running[index] = self.bars.add_task(described, total=1.0, loss="")
        share = min(1.0, progress.oracle_calls / max(1, progress.budget))
        self.bars.update(self.running[index], completed=share, loss=loss(progress), visible=share < 1)
        self._show_all()

    def _show_all(self) -> None:
        state = self.overview.state()
        text = f"{self.title}: {state.done} done, {state.running} running, {state.queued} queued"
        self.bars.update(self.all, description=text, completed=state.share, seconds_left=state.seconds_left)
