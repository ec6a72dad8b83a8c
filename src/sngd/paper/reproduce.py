"""Measure and draw the figures that reproduce the paper, with one command each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Generic, NamedTuple, NotRequired, TypedDict, TypeVar, cast

import torch

from sngd.paper.closed_form import any_norm, conformance, escape, relaxed, scaling, variance
from sngd.paper.trained import (
    alternatives,
    counting,
    large_batches,
    norms,
    pictures,
    reduced_variance,
    runs,
    sensitivity,
    spider_sizes,
    variation,
)
from sngd.paper.trained.experiments import PROFILES
from sngd.studies.execution.execution import Execution
from sngd.studies.pack import unpacked
from sngd.studies.runs import seconds_spent, study_folders
from sngd.training.environment import Environment, environment
from sngd.training.folder_lock import FolderLock, locked, make_folder
from sngd.training.run_folder import write_json
from sngd.training.schema import NonNegative, check, read

Measurements = Mapping[str, object]  # of any figure; the figure's schema says what there is
M = TypeVar("M", bound=Measurements)


class Provenance(TypedDict):
    """How measurements were made."""

    command: NotRequired[str]
    profile: str
    environment: NotRequired[Environment]
    process_seconds: NotRequired[NonNegative | None]  # of all processes, added up: of runs the time spent in steps


class Stored(Provenance):
    """measurements.json."""

    measurements: dict[str, Any]  # Any: read before it is known by which figure's schema to check it


class Figure(NamedTuple, Generic[M]):
    """A study of a claim: how it is measured (by profile) and drawn (into a folder), and the schema of measurements.

    The paper has no such experiment, so the ``paper`` profile is the same as ``small``.
    """

    claim: str
    schema: type[M]
    measure: Callable[[str], M]
    draw: Callable[[M, Path], list[Path]]


class RunFigure(NamedTuple, Generic[M]):
    """A figure made of training runs.

    ``run`` (profile, folder, command line, execution) does the runs that are missing in the folder. ``measure``
    (profile, folder) reads all runs. ``draw`` draws the measurements into a folder.
    """

    claim: str
    schema: type[M]
    run: Callable[[str, Path, str, Execution], None]
    measure: Callable[[str, Path], M]
    draw: Callable[[M, Path], list[Path]]
    profiles: Sequence[str] = PROFILES


def _curves(
    name: str,
    claim: str,
    table: runs.Table | None = None,
    draw: Callable[[runs.FigureMeasured, Path], list[Path]] = pictures.draw,
    profiles: Sequence[str] = PROFILES,
) -> RunFigure[runs.FigureMeasured]:
    run, measure = partial(runs.run, name, table=table), partial(runs.measure, name, table=table)
    return RunFigure(claim, runs.FigureMeasured, run, measure, draw, profiles)


# Any: each figure's measurements have their own type, and a dict's type cannot depend on the key.
FIGURES: dict[str, Figure[Any] | RunFigure[Any]] = {
    "fig1": Figure(
        "C8: SNGD leaves saddles and sharp minima faster than SGD", escape.Escape, escape.measure, escape.draw
    ),
    "conformance": Figure(
        "C7: the bounds of Theorems 1–4 hold", conformance.Conformance, conformance.measure, conformance.draw
    ),
    "conformance-norms": Figure(
        "beyond the paper: the lemmas and bounds hold in every norm, with momentum and with capped steps",
        any_norm.NormConformance,
        any_norm.measure,
        any_norm.draw,
    ),
    "scaling": Figure("C7: how oracle calls grow as the target falls", scaling.Scaling, scaling.measure, scaling.draw),
    "relaxed": Figure(
        "C9: SNGD handles (L0, L1)-smooth objectives without clipping", relaxed.Relaxed, relaxed.measure, relaxed.draw
    ),
    "variance": Figure(
        "C10: the variance of SPIDER's estimator grows with α, that of SNGD's does not",
        variance.Variance,
        variance.measure,
        variance.draw,
    ),
    "fig2": _curves("fig2", "C1, C2: SNGD and SPIDER-SFO on a small model, MNIST"),
    "counting": _curves(
        "counting", "C1, C2 where each step counts b samples, to the end of the axis", counting.EXPERIMENTS
    ),
    "variation": _curves("variation", "C3: how much SNGD's and SPIDER-SFO's curves vary", variation.EXPERIMENTS),
    "fig3": _curves(
        "fig3",
        "C4, C5: S-SNGD, SNGD and SPIDER-SFO on residual networks, CIFAR-10",
        profiles=(*PROFILES, "medium"),
    ),
    "fig4": _curves("fig4", "C6: S-SNGD and S-SGD with large batches, equally tuned", profiles=(*PROFILES, "medium")),
    "spider-sizes": _curves(
        "spider-sizes",
        "C11: SPIDER-SFO with other anchors and periods",
        spider_sizes.EXPERIMENTS,
        spider_sizes.draw,
    ),
    "large-batches": RunFigure(
        "C12, C13, C14: large batches on small networks, trained to the end, and the sharpness there and in C6",
        large_batches.LargeBatches,
        large_batches.run,
        large_batches.measure,
        large_batches.draw,
    ),
    "reduced-variance": _curves(
        "reduced-variance", "C15: SPIDER-SFO, SVRG, SCSG and Natasha2", reduced_variance.EXPERIMENTS
    ),
    "sensitivity": RunFigure(
        "beyond the paper: how wide each method's plateau of learning rates is",
        sensitivity.Sensitivity,
        partial(runs.run, "sensitivity"),
        sensitivity.measure,
        sensitivity.draw,
    ),
    "norms": RunFigure(
        "beyond the paper: steps in other norms, as of Signum, Muon and Scion",
        norms.Norms,
        partial(runs.run, "norms"),
        norms.measure,
        norms.draw,
    ),
    "alternatives": RunFigure(
        "C1 to C6 where the paper is ambiguous: the figures under its other readings",
        alternatives.Alternatives,
        partial(runs.run, "alternatives"),
        alternatives.measure,
        alternatives.draw,
    ),
}


def reproduce(
    figure: str,
    profile: str,
    out: Path,
    command: str = "",
    execution: Execution = Execution(),
    *,
    reuse: bool = False,
) -> list[Path]:
    """Measure and draw one figure; ``out`` gets measurements.json and the pictures, and the runs if it is made of runs.

    Runs that are already in ``out`` are not repeated, so an interrupted call can be repeated. Studies that are packed
    there are unpacked first, and packed again at the end.

    Args:
        figure: a key of ``FIGURES``.
        profile: how much is measured: ``quick``, ``small`` or ``paper``; Figures 3 and 4 have ``medium`` too.
        out: folder, made if need be.
        command: the command line, kept with the measurements.
        execution: how runs are done. Its ``overwrite`` deletes what ``out`` holds of the figure, even if the figure is
            not made of runs.
        reuse: draw the measurements that ``out`` holds, if they are of this profile, and measure only if not. Where
            their runs are there too, they are measured anew from these alone.

    Returns:
        The pictures' paths.

    Raises:
        ValueError: unknown figure or profile, another process is working in ``out``, or ``reuse`` met a file that holds
            no measurements; for runs see ``compare``.
        FileNotFoundError: ``out`` was deleted, moved or replaced meanwhile.
        Interrupted: ``execution.should_stop`` said so.
    """
    if figure not in FIGURES:
        raise ValueError(f"unknown figure {figure!r}; must be one of {', '.join(FIGURES)}")
    entry = FIGURES[figure]
    profiles = entry.profiles if isinstance(entry, RunFigure) else PROFILES
    if profile not in profiles:
        raise ValueError(f"unknown profile {profile!r}; {figure} has {', '.join(profiles)}")
    make_folder(out)
    pictures = (f"{name}.{suffix}" for name in (figure, f"{figure}-map") for suffix in ("png", "svg"))  # fig1 has two
    with locked(out, ("measurements.json", *pictures)) as lock:
        measured = _measured(figure, profile, out, command, execution, reuse, lock)
        lock.check()
        return FIGURES[figure].draw(measured, out)


def _measured(
    figure: str,
    profile: str,
    out: Path,
    command: str,
    execution: Execution,
    reuse: bool,
    lock: FolderLock,
) -> Measurements:
    """The measurements, in measurements.json too; see ``reproduce``."""
    entry = FIGURES[figure]
    kept = stored(figure, out, profile) if reuse and not execution.overwrite else None
    start, made_with = monotonic(), environment()  # before, because the checkout may be changed meanwhile
    if isinstance(entry, RunFigure):
        if kept is None:
            with unpacked(out, lock):
                entry.run(profile, out, command, execution)
        has_runs = bool(study_folders(out))
        measurements = entry.measure(profile, out) if kept is None or has_runs else kept
    elif kept is None:
        with _one_thread():
            measurements = entry.measure("small" if profile == "paper" else profile)
    else:
        measurements = kept
    if measurements != kept:
        seconds = seconds_spent(out) if isinstance(entry, RunFigure) else monotonic() - start
        about = {"command": command, "profile": profile, "environment": made_with, "process_seconds": seconds}
        lock.check()
        write_json(out / "measurements.json", {**about, "measurements": measurements}, compact=True)
    return measurements


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch uses one thread: these studies have such short vectors that several would mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stored(figure: str, folder: Path, profile: str | None = None) -> Measurements | None:
    """The figure's measurements that ``folder`` holds, or None: there are none, or not of this profile (None: any).

    Raises:
        ValueError: measurements.json does not hold such measurements.
    """
    content = _content(folder)
    if content is None or profile not in (None, content["profile"]):
        return None
    check(content["measurements"], FIGURES[figure].schema, str(folder / "measurements.json"), "measurements")
    return content["measurements"]


def provenance(folder: Path) -> Provenance | None:
    """How the measurements that ``folder`` holds were made, or None: there are none.

    Raises:
        ValueError: as ``stored``.
    """
    content = _content(folder)
    if content is None:
        return None
    return cast(Provenance, {key: entry for key, entry in content.items() if key != "measurements"})


def _content(folder: Path) -> Stored | None:
    path = folder / "measurements.json"
    return read(path, Stored) if path.exists() else None
