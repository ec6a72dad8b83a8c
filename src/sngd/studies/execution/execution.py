"""How the runs of a study are done. A command builds one ``Execution`` and passes it on to the code that does runs."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sngd.training import Progress, RunConfig
from sngd.training.config import PRECISIONS

OnProgress = Callable[[int, Progress], None]  # (index of the run, how far it is)
OnWarning = Callable[[str], None]
OnPlan = Callable[[str], None]
Begin = Callable[[str, Sequence[RunConfig]], OnProgress]


@dataclass(frozen=True)
class RayCluster:
    """Which cluster, and a run's share of one of its machines.

    Args:
        address: "auto" (the cluster that this machine belongs to) or HOST:PORT.
        cpus: CPUs that a run takes, > 0; its threads are the whole ones, at least one.
        gpus: GPUs that a run takes, ≥ 0: 0.25 puts four runs on one. Default: 1 for a run on "cuda", otherwise none.
    """

    address: str = "auto"
    cpus: float = 1.0
    gpus: float | None = None


def _unwatched(_title: str, _configs: Sequence[RunConfig]) -> OnProgress:
    return _untold


def _untold(_index: int, _progress: Progress) -> None:
    pass


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def _unsaid(_text: str) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Execution:
    """How runs are done: where, with which data, what happens to earlier runs, and which functions follow progress.

    The result of a run depends on its ``RunConfig`` alone, not on this object.

    Args:
        jobs: runs at a time on this machine, ≥ 1, each in a process with its share of the cores. Default: as many as
            there are cores, at most one a run.
        replicas: the most runs that a process trains as one, ≥ 1, see ``sngd.training.replicas``; 1: each by itself.
            Default: as many as gain by it. On a cluster each run is trained by itself.
        ray: do the runs on a Ray cluster instead, as many at a time as their shares allow, see ``ray_runs``.
        device: where ``sngd reproduce`` trains, such as "cuda": it becomes part of the settings of its runs, and so do
            ``precision`` and ``compile``. The runs of other studies have settings of their own. Default of all three:
            as the study in the folder has been begun. Of a new one: on a GPU in the paper's profile, if there is one,
            and on the CPU otherwise; in float32; not compiled.
        precision: of the products in training steps, see ``RunConfig``.
        compile: train through ``torch.compile``.
        data: folder of data sets. Default: see ``sngd.problems.load_problem``.
        overwrite: throw away what the folders hold; otherwise finished runs are kept, and the others gone on with.
        tensorboard: write event files too, see ``sngd.training.tensorboard``.
        begin: called with a title and the settings of the runs before each batch of them. What it returns follows their
            progress: it is called with a run's index in the batch, in this process, about ten times a second for each
            that is running; lastly, for every one that is finished, with the whole budget spent.
        on_warning: told, in a line, what a user should know and what stops nothing, such as a damaged folder that was
            set aside. Default: a Python warning.
        on_plan: told, in a line each, how many runs are done at a time, and which of them cannot be trained as one.
        should_stop: called repeatedly. Once it is true, running runs save a checkpoint, and ``Interrupted`` is raised.

    Raises:
        ValueError: ``jobs``, ``replicas`` or a share of ``ray``'s is out of range, ``precision`` is none, or ``ray`` is
            given with one of the others.
    """

    jobs: int | None = None
    replicas: int | None = None
    ray: RayCluster | None = None
    device: str | None = None
    precision: str | None = None
    compile: bool | None = None
    data: Path | None = None
    overwrite: bool = False
    tensorboard: bool = False
    begin: Begin = _unwatched
    on_warning: OnWarning = _warn
    on_plan: OnPlan = _unsaid
    should_stop: Callable[[], bool] = _never

    def __post_init__(self) -> None:
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(f"precision must be {' or '.join(map(repr, PRECISIONS))}, got {self.precision!r}")
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}")
        if self.replicas is not None and self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {self.replicas}")
        if self.ray is None:
            return
        if not self.ray.cpus > 0:
            raise ValueError(f"cpus must be greater than 0, got {self.ray.cpus}")
        if self.ray.gpus is not None and not self.ray.gpus >= 0:
            raise ValueError(f"gpus must be at least 0, got {self.ray.gpus}")
        if self.jobs is not None:
            raise ValueError(
                "jobs and ray exclude each other: a cluster does as many runs at a time as their shares allow"
            )
        if self.replicas is not None and self.replicas > 1:
            raise ValueError(f"replicas must be 1 with ray, which trains each run by itself, got {self.replicas}")

    def titled(self, prefix: str) -> "Execution":
        """The same, but titles of batches begin with ``prefix``."""
        return replace(self, begin=lambda title, configs: self.begin(f"{prefix}, {title}", configs))

    def also_stopping(self, when: Callable[[], bool]) -> "Execution":
        """The same, but it stops ``when`` that is true, too."""
        return replace(self, should_stop=lambda: self.should_stop() or when())

    def portable(self) -> "Execution":
        """The same without this process's functions, which cannot be sent to another process."""
        return replace(self, begin=_unwatched, on_warning=_warn, on_plan=_unsaid, should_stop=_never)
