"""Where a run's rows go beside metrics.jsonl, as far as it is installed: TensorBoard, Weights & Biases, MLflow."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sngd.checks import shown, suggestion
from sngd.training.tensorboard import EventFiles, scalars

Row = Mapping[str, Any]


class Observer(Protocol):
    """Is given every row once, whatever happened to the run."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> None: ...

    def begin(self, rows: Iterable[Row]) -> None:
        """``rows`` are all that there are so far; of a resumed run it may know a part of them."""

    def add(self, row: Row) -> None:
        """One more."""


class WandbRun:
    """Rows as a run of Weights & Biases; its step is ``oracle_calls``. Where they go, and whether at all (offline
    mode), is decided by its own environment variables.

    Raises:
        ValueError: the package wandb is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._wandb = _package("wandb")
        self._folder = folder
        self._run: Any = None

    def __enter__(self) -> "WandbRun":
        return self

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            self._run.finish()

    def begin(self, rows: Iterable[Row]) -> None:
        self._run = self._wandb.init(
            id=_identity(self._folder),
            name=self._folder.name,
            dir=str(self._folder),
            config=_settings(self._folder),
            resume="allow",
        )
        known = self._run.step  # 0 for a new run, or the next step of one that is gone on with
        for row in rows:
            if row["oracle_calls"] >= known:
                self.add(row)

    def add(self, row: Row) -> None:
        self._run.log(scalars(row), step=row["oracle_calls"])


class MlflowRun:
    """Rows as a run of MLflow; its step is ``oracle_calls``. Where they go is decided by MLflow's own settings.

    Raises:
        ValueError: the package mlflow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._mlflow = _package("mlflow")
        self._folder = folder
        self._run: Any = None

    def __enter__(self) -> "MlflowRun":
        return self

    def __exit__(self, *error: object) -> None:
        if self._run is not None:
            self._mlflow.end_run("FINISHED" if error[0] is None else "KILLED")

    def begin(self, rows: Iterable[Row]) -> None:
        identity, client = _identity(self._folder), self._mlflow.MlflowClient()
        same = self._mlflow.search_runs(filter_string=f"tags.sngd = '{identity}'", output_format="list")
        known = -1
        if same:
            self._run = self._mlflow.start_run(run_id=same[0].info.run_id)
            known = max((m.step for m in client.get_metric_history(same[0].info.run_id, "train/loss")), default=-1)
        else:
            self._run = self._mlflow.start_run(run_name=self._folder.name, tags={"sngd": identity})
            self._mlflow.log_params({key: str(value) for key, value in _settings(self._folder).items()})
        for row in rows:
            if row["oracle_calls"] > known:
                self.add(row)

    def add(self, row: Row) -> None:
        self._mlflow.log_metrics(scalars(row), step=row["oracle_calls"])


OBSERVERS: dict[str, Any] = {"tensorboard": EventFiles, "wandb": WandbRun, "mlflow": MlflowRun}


class Observers:
    """Several, by their names, as one.

    Raises:
        ValueError: a name is unknown, or its package is not installed.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        for name in names:
            if name not in OBSERVERS:
                meant = suggestion(name, OBSERVERS) or ";"
                raise ValueError(f"log: unknown {shown(name)}{meant} must be some of {', '.join(OBSERVERS)}")
        self._all: list[Observer] = [OBSERVERS[name](folder) for name in dict.fromkeys(names)]
        self._stack = ExitStack()

    def __enter__(self) -> "Observers":
        for observer in self._all:
            self._stack.enter_context(observer)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def begin(self, rows: Sequence[Row]) -> None:
        for observer in self._all:
            observer.begin(rows)

    def add(self, row: Row) -> None:
        for observer in self._all:
            observer.add(row)


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ValueError(f"log: {name} needs the package {name}: pip install {name}") from None


def _settings(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _identity(folder: Path) -> str:
    """Of the run that began in the folder: another one that overwrites it has another."""
    began = (folder / "environment.json").stat().st_mtime_ns  # written once, when a run begins
    return hashlib.sha256(f"{folder.resolve()} {began}".encode()).hexdigest()[:16]
