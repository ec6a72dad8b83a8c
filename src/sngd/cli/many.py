"""What the commands that do many runs share: where the runs are done, and the live overview of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from sngd import training
from sngd.cli.console import err, loss

if TYPE_CHECKING:
    from sngd.studies.execution.ray_runs import RayCluster

Jobs = Annotated[int | None, typer.Option(help="Runs at a time. (default: the number of cores)")]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Do the runs on a Ray cluster: HOST:PORT, or 'auto' for this machine's own."),
]
RayCpus = Annotated[float, typer.Option(help="With --ray: CPUs of a run.")]
RayGpus = Annotated[
    float | None, typer.Option(help="With --ray: GPUs of a run, may be a fraction. (default: 1 on cuda, else 0)")
]


def cluster(address: str | None, cpus: float, gpus: float | None) -> "RayCluster | None":
    """The cluster that the three options name; None if the runs are done here."""
    if address is None:
        return None
    from sngd.studies.execution.ray_runs import RayCluster

    return RayCluster(address, cpus, gpus)


def warn(text: str) -> None:
    """Something that the user should know, and that stops nothing."""
    err.print(text, style="yellow", highlight=False, soft_wrap=True)


class RunsOverview:
    """Progress of many runs: a bar for all of them together, and one for each that is running."""

    def __init__(self, bars: Progress, title: str, tasks: Sequence[Any]) -> None:
        from sngd.studies.execution.overview import Overview

        self.bars, self.title = bars, title
        self.configs = [task.config for task in tasks]
        self.overview = Overview(self.configs)
        self.all = bars.add_task("", total=1.0, loss="", seconds_left=None)
        self.running: dict[int, Any] = {}
        self._show_all()

    def __call__(self, index: int, progress: training.Progress) -> None:
        self.overview(index, progress)
        if index not in self.running:
            config = self.configs[index]
            self.running[index] = self.bars.add_task(f"  {config.label}, seed {config.seed}", total=1.0, loss="")
        share = min(1.0, progress.oracle_calls / max(1, progress.budget))
        self.bars.update(self.running[index], completed=share, loss=loss(progress), visible=share < 1)
        self._show_all()

    def _show_all(self) -> None:
        state = self.overview.state()
        text = f"{self.title}: {state.done} done, {state.running} running, {state.queued} queued"
        self.bars.update(self.all, description=text, completed=state.share, seconds_left=state.seconds_left)
