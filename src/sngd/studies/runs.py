"""Read run folders, from which the table, the figures and the report of a study are made.

A run is a folder with ``config.json``, ``environment.json`` and ``metrics.jsonl``; a study is a folder with runs
anywhere below it, and a ``compare.json`` if ``sngd compare`` made it. A packed study (see ``packed``) is read as if its
run folders were there. An *arm* is a method with its settings; the runs of an arm differ only in their seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NotRequired, TypedDict, cast

import numpy as np
import numpy.typing as npt

from sngd.studies.packed import (
    STUDY,
    ascii_place,
    is_below,
    pack_folders,
    pack_of,
    read_comparisons,
    read_packed,
)
from sngd.training.config import RunConfig, StoredConfig, as_trained, read_config
from sngd.training.environment import Environment
from sngd.training.methods import recorded_parameters
from sngd.training.metrics import Row, read_rows
from sngd.training.run_folder import is_set_aside
from sngd.training.schema import Count, Line, Positive, check, read

Floats = npt.NDArray[np.float64]

_ARM_SETTINGS = ("method", "lr", "batch_size", "epochs", "weight_decay", "plan", "params", "sampling", "output")
_EARLIER = {"sampling": "shuffled"}  # values of runs that are older than the setting in config.json


class Trial(TypedDict):
    """A run of the tuning; its loss is None if it diverged."""

    label: Line
    lr: Positive
    train_loss: float | None


class Tuning(TypedDict):
    """The search for learning rates before a comparison: every arm tried with every one of the grid."""

    grid: list[Positive]
    epochs: NotRequired[Positive]  # the budget of a trial, if it is not that of the runs
    seed: Count
    outcomes: list[Trial]
    chosen: dict[str, Positive]  # by label


class Comparison(TypedDict):
    """compare.json: what ``sngd compare`` was asked to do, and the folders of its runs."""

    command: str
    problem: Line
    methods: list[Line]  # labels of the arms, in order
    seeds: list[Count]
    epochs: Positive
    runs: NotRequired[list[Line]]  # an early version did not say
    tuning: Tuning | None


@dataclass(frozen=True)
class Run:
    """One run: its folder, which a packed one had, its settings, where it ran, and its evaluations in order."""

    path: Path
    config: StoredConfig
    environment: Environment
    rows: list[Row]

    @property
    def settings(self) -> RunConfig:
        """The settings, with defaults for those that a file of an earlier version lacks."""
        return RunConfig(**as_trained(self.config))

    @property
    def label(self) -> str:
        return str(self.config.get("label") or self.config.get("method") or self.path.name)

    @property
    def seed(self) -> int:
        return int(self.config.get("seed") or 0)

    @property
    def answer(self) -> Row:
        """The last row: what the method returned, if the run has finished. Empty before the first evaluation."""
        return self.rows[-1] if self.rows else cast(Row, {})

    @property
    def curve_samples(self) -> int | None:
        """How many training samples evaluations before the last one used, if fewer than the last one."""
        return next((row["samples"] for row in self.curve if "samples" in row), None)

    @property
    def diverged(self) -> bool:
        """It stopped because the loss was no longer finite."""
        return bool(self.answer.get("diverged"))

    @property
    def finished(self) -> bool:
        """Nothing more will come: its budget is spent, or it diverged."""
        return bool(self.answer.get("final")) or self.diverged

    @property
    def curve(self) -> list[Row]:
        """The rows of the last iterate; an answer drawn at random is no point of the curve."""
        return [row for row in self.rows if row.get("iterate", "last") == "last"]


@dataclass(frozen=True)
class Study:
    """Runs by arm, in the order of ``compare.json`` and otherwise sorted; each arm's runs by seed."""

    folder: Path
    problem: str
    arms: dict[str, list[Run]]
    comparison: Comparison | None  # compare.json, if there is one

    @property
    def labels(self) -> list[str]:
        return list(self.arms)

    @property
    def runs(self) -> list[Run]:
        return [run for runs in self.arms.values() for run in runs]

    @property
    def tuning(self) -> Tuning | None:
        """The search for learning rates, if there was one."""
        return self.comparison and self.comparison["tuning"]


def value(row: Mapping[str, object], key: str) -> float | None:
    """The number under ``key``, or None if it is absent or null."""
    number = row.get(key)
    return float(number) if isinstance(number, int | float) else None


# ---- reading -------------------------------------------------------------------------------------------------


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read one run; one that is still being written is read up to its last complete row.

    Raises:
        FileNotFoundError: there is no ``config.json`` in ``path``, nor a packed study that has this run.
        ValueError: a file is not what it should be; the message names the file, the place in it and the reason.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        for run in _packed_runs(path):
            if run.path == path:
                return run
        raise FileNotFoundError(f"{path}: not a run folder, it has no config.json")
    environment = path / "environment.json"
    return Run(
        path=path,
        config=read_config(path / "config.json"),
        environment=read(environment, Environment) if environment.exists() else {},
        rows=read_rows(path / "metrics.jsonl"),
    )


def read_study(folder: str | os.PathLike[str]) -> Study:
    """Read the runs that ``folder``'s compare.json lists, or else every run at or below ``folder`` but trial runs.

    Runs that share a label but not their settings (two learning rates, say) are told apart: each setting that
    differs is added to the label. Finished and unfinished runs are both read.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
        ValueError: a broken file, runs of several problems, or two runs of one arm with the same seed.
    """
    folder = Path(folder)
    found = _found(folder)
    if not found and not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    comparison = comparison_of(folder)
    runs = [found[path]() for path in _chosen(found, folder, comparison)]
    if not runs:
        raise FileNotFoundError(f"{folder}: no runs in it, no folder has a config.json")
    problems = sorted({str(run.config.get("problem", "?")) for run in runs})
    if len(problems) > 1:
        several = f"runs of several problems ({', '.join(problems)})"
        raise ValueError(f"{folder}: {several}, a study is about one: name a folder inside")
    return Study(folder, problems[0], _arms(runs, comparison["methods"] if comparison else []), comparison)


def all_runs(folder: str | os.PathLike[str]) -> list[Run]:
    """Every run at or below ``folder``, trial runs too, but none that was set aside as damaged.

    Raises:
        ValueError: a broken file.
    """
    return [read_it() for path, read_it in _found(Path(folder)).items() if not any(map(is_set_aside, _upwards(path)))]


def seconds_spent(folder: str | os.PathLike[str]) -> float:
    """Seconds that all runs at or below ``folder``, trial runs too, spent in steps, added up.

    Raises:
        ValueError: a broken file.
    """
    return sum(value(run.answer, "seconds") or 0.0 for run in all_runs(folder))


def study_folders(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders of the studies at or below ``folder``, in order; those of packed studies need not exist.

    Raises:
        ValueError: a study.json is damaged.
    """
    folder = Path(folder)
    found = {_plain(path, folder): path for pack in _packs(folder) for path in _packed_studies(pack)}
    found |= {_plain(path.parent, folder): path.parent for path in folder.rglob("compare.json")}
    return sorted(path for path in found.values() if not any(map(is_set_aside, _upwards(path))))


def _found(folder: Path) -> dict[Path, Callable[[], Run]]:
    """The runs at or below ``folder``, by path and in its order, not read yet; a folder is read rather than a pack.

    Paths below ``folder`` are plain ASCII, as packing makes them: a folder that is being packed is no second run.
    """
    found: dict[Path, Callable[[], Run]] = {}
    for pack in _packs(folder):
        found |= {_plain(run.path, folder): partial(_itself, run) for run in _packed_runs(pack)}
    for config in folder.rglob("config.json"):
        found[_plain(config.parent, folder)] = partial(read_run, config.parent)
    return dict(sorted(found.items()))


def _itself(run: Run) -> Run:
    return run


def _packs(folder: Path) -> list[Path]:
    """``folder``, of which something may be packed above, and the folders of packed files below it."""
    return [folder, *(path for path in pack_folders(folder) if path != folder)]


def _packed_studies(folder: Path) -> Iterator[Path]:
    """The folders of the studies at or below ``folder`` that the nearest packed files at or above it hold."""
    if pack := pack_of(folder):
        places = read_comparisons(pack.folder)
        yield from (_path(place, pack.place, folder) for place in places if is_below(place, pack.place))


def _packed_runs(folder: Path) -> Iterator[Run]:
    """The runs at or below ``folder`` that the nearest packed files at or above it hold."""
    if pack := pack_of(folder):
        for run in read_packed(pack.folder).runs:
            if is_below(run.place, pack.place):
                yield Run(_path(run.place, pack.place, folder), run.config, run.environment, run.rows)


def _path(place: str, above: str, folder: Path) -> Path:
    """The path of ``place``, where ``folder`` is that of the place ``above``."""
    return folder / PurePosixPath(place).relative_to(above)


def _upwards(path: Path) -> tuple[Path, ...]:
    return (path, *path.parents)


def _plain(path: Path, folder: Path) -> Path:
    return folder / ascii_place(path.relative_to(folder).as_posix())


def _chosen(found: Mapping[Path, object], folder: Path, comparison: Comparison | None) -> Iterator[Path]:
    if comparison and "runs" in comparison:  # what an earlier comparison left beside them is none of this one's
        yield from (path for run in comparison["runs"] if (path := folder / ascii_place(run)) in found)
        return
    studies = {folder, *(_plain(study, folder) for study in study_folders(folder))}
    for path in found:
        above = [parent for parent in _upwards(path) if parent != folder and parent.is_relative_to(folder)]
        if not any(is_set_aside(parent) or (parent.name == "tuning" and parent.parent in studies) for parent in above):
            yield path


def comparison_of(folder: Path) -> Comparison | None:
    """What compare.json holds of the study in ``folder``, packed or not, or None: it has none.

    Raises:
        ValueError: it is not what ``sngd compare`` writes.
    """
    own, pack = read_comparison(folder / "compare.json"), pack_of(folder)
    if own is not None or pack is None:
        return own
    content = read_comparisons(pack.folder).get(pack.place)
    place = f"comparisons[{pack.place!r}]"
    return None if content is None else check(cast(Comparison, content), Comparison, str(pack.folder / STUDY), place)


def read_comparison(path: Path) -> Comparison | None:
    """What compare.json holds, or None: there is no such file.

    Raises:
        ValueError: it is not what ``sngd compare`` writes.
    """
    return read(path, Comparison) if path.exists() else None


def _source(run: Run) -> Path:
    """What holds the run: its folder, or the packed file."""
    pack = pack_of(run.path)
    return run.path if pack is None or (run.path / "config.json").exists() else pack.folder / STUDY


def _arms(runs: list[Run], order: Sequence[str]) -> dict[str, list[Run]]:
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    rank = {label: position for position, label in enumerate(order)}
    arms: dict[str, list[Run]] = {}
    for label in sorted(by_label, key=lambda label: (rank.get(label, len(rank)), label)):
        for name, members in _split(label, by_label[label]).items():
            arms[name] = sorted(members, key=lambda run: run.seed)
            for one, other in zip(arms[name], arms[name][1:], strict=False):
                if one.seed == other.seed:
                    message = f"same method and seed as {one.path} ({name!r}, seed {one.seed})"
                    raise ValueError(f"{_source(other)}: {message}")
    return arms


def _split(label: str, runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that share a label by the settings in which they differ: {'sngd lr=0.1': […], 'sngd lr=0.5': […]}."""

    def setting(run: Run, key: str) -> str:
        if key == "params":
            params = recorded_parameters(str(run.config.get("method")), run.config.get("params") or {})
            return json.dumps(params, sort_keys=True)
        return json.dumps(run.config.get(key, _EARLIER.get(key)), sort_keys=True)

    differing = [key for key in _ARM_SETTINGS if len({setting(run, key) for run in runs}) > 1]
    arms: dict[str, list[Run]] = {}
    for run in runs:
        suffix = "".join(f" {key}={setting(run, key)}" for key in differing)
        arms.setdefault(label + suffix, []).append(run)
    return dict(sorted(arms.items()))


# ---- curves --------------------------------------------------------------------------------------------------


def interpolate(rows: Sequence[Row], key: str, grid: Floats) -> Floats:
    """Values of ``key`` at the costs ``grid`` (in ``grads_over_n``), linear between evaluations.

    Methods and batch sizes evaluate at different costs; this brings them onto one axis. Rows in which ``key`` is
    null are left out, and nothing is extrapolated: outside the measured range the result is NaN.

    Example:
        >>> rows = [{"grads_over_n": 0, "lr": 1.0}, {"grads_over_n": 2, "lr": 0.0}]
        >>> interpolate(rows, "lr", np.array([0.0, 1.0, 3.0]))
        array([1. , 0.5, nan])
    """
    points = dict(_points(rows, key))  # a dict: of two rows at one cost, the later counts
    if not points:
        return np.full(len(grid), np.nan)
    costs = sorted(points)
    return np.interp(grid, costs, [points[cost] for cost in costs], left=np.nan, right=np.nan)


def _points(rows: Sequence[Row], key: str) -> Iterator[tuple[float, float]]:
    for row in rows:
        cost, measured = value(row, "grads_over_n"), value(row, key)
        if cost is not None and measured is not None:
            yield cost, measured


class Band(NamedTuple):
    """An arm's curve over its seeds, each field of shape (points,): mean, lowest and highest seed at each cost."""

    cost: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(runs: Sequence[Run], key: str) -> Band | None:
    """The arm's curve of ``key``, or None where nothing was measured.

    It covers the costs that every seed reached. Some runs of a method may diverge, and a mean over the others would
    make the method look better than it is. Runs still under way are left out as soon as one run has finished.
    """
    chosen = [run for run in runs if run.finished] or runs
    points = [dict(_points(run.curve, key)) for run in chosen]
    points = [curve for curve in points if curve]
    if not points:
        return None
    start, end = max(map(min, points)), min(map(max, points))
    cost = np.array(sorted({c for curve in points for c in curve if start <= c <= end}), dtype=np.float64)
    if not len(cost):
        return None
    curves = np.stack([interpolate(run.curve, key, cost) for run in chosen if any(_points(run.curve, key))])
    return Band(cost, curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0))
