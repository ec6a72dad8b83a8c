"""Where the paper is ambiguous: the same experiments under other readings, so that the verdicts can be compared.

The readings, which need separate runs, are ``READINGS`` in ``experiments``. The way in which SPIDER's gradients are
counted changes only the axis and needs none, see ``counting``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypedDict

from sngd.paper.trained.experiments import READINGS, experiments_by_reading
from sngd.paper.trained.pictures import page_of
from sngd.paper.trained.runs import (
    CURVE_KEYS,
    ArmMeasured,
    CurveKey,
    ExperimentMeasured,
    FigureMeasured,
    measure_experiments,
)
from sngd.studies.figures import plain_style, save, styles
from sngd.training.environment import Environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ReadingMeasured(TypedDict):
    """The figures under one reading of the paper, and what it is."""

    what: str
    figures: dict[str, FigureMeasured]  # those that the reading touches


class Alternatives(TypedDict):
    """The readings by name. The first is the figures' own at this study's size: what the others are compared with."""

    figure: str
    profile: str
    device: str
    environment: Environment
    alternatives: dict[str, ReadingMeasured]


def measure(profile: str, out: Path) -> Alternatives:
    """The measurements of every reading from the runs in ``out``; arms that a reading leaves as they are come from the
    first reading.
    """
    table = experiments_by_reading(profile)
    experiments = [e for figures in table.values() for part in figures.values() for e in part]
    measured = measure_experiments(experiments, out)
    base = next(iter(table))
    readings: dict[str, ReadingMeasured] = {}
    for name, figures in table.items():
        readings[name] = {"what": READINGS[name].what, "figures": {}}
        for figure, part in figures.items():
            own = {Path(e.name).name: measured["experiments"][e.name] for e in part}
            if name != base:
                over = readings[base]["figures"][figure]["experiments"]
                own = {key: _with_arms(found, over[key]["arms"] | found["arms"]) for key, found in own.items()}
            if own:
                readings[name]["figures"][figure] = {"figure": figure, "profile": profile, "experiments": own}
    return {
        "figure": "alternatives",
        "profile": profile,
        "device": measured["device"],
        "environment": measured["environment"],
        "alternatives": readings,
    }


def _with_arms(experiment: ExperimentMeasured, arms: dict[str, ArmMeasured]) -> ExperimentMeasured:
    return {**experiment, "arms": arms}


# ---- drawn ---------------------------------------------------------------------------------------------------

_SCALES: dict[CurveKey, tuple[str, float]] = {
    "train_loss": ("final training loss", 1),
    "test_accuracy": ("final test accuracy (%)", 100),
}


def draw(measurements: Alternatives, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``alternatives.png`` and ``alternatives.svg``: every arm's final values under every reading, all seeds."""

    readings = measurements["alternatives"]
    base = next(iter(readings.values()))["figures"]
    columns = [(figure, name) for figure, found in base.items() for name in found["experiments"]]
    with plain_style():
        shown: FigureMeasured = {
            "figure": measurements["figure"],
            "profile": measurements["profile"],
            "device": measurements["device"],
            "environment": measurements["environment"],
            "experiments": {f"{f}/{name}": base[f]["experiments"][name] for f, name in columns},
        }
        figure, page = page_of(4.4 * len(columns), 9.5, "The figures under other readings of the paper", shown)
        grid = page.subplots(2, len(columns), squeeze=False)
        for column, (of_figure, name) in zip(grid.T, columns, strict=True):
            found = {
                reading: content["figures"][of_figure]["experiments"][name]
                for reading, content in readings.items()
                if of_figure in content["figures"] and name in content["figures"][of_figure]["experiments"]
            }
            for ax, key in zip(column, CURVE_KEYS, strict=True):
                _draw_finals(ax, found, key)
            column[0].set_title(f"{of_figure}, {base[of_figure]['experiments'][name]['title']}", fontsize=9)
            column[0].set_xticklabels([])
            column[1].legend(
                *column[0].get_legend_handles_labels(),
                loc="upper center",
                bbox_to_anchor=(0.5, -0.36),
                frameon=False,
                fontsize=8,
            )
        return save(figure, Path(folder) / "alternatives")


def _draw_finals(ax: Axes, found: Mapping[str, ExperimentMeasured], key: CurveKey) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    title, scale = _SCALES[key]
    labels = list(next(iter(found.values()))["arms"])
    for index, (label, (color, _)) in enumerate(styles(labels).items()):
        aside = 0.7 * ((index + 0.5) / len(labels) - 0.5)  # the arms of a reading stand side by side
        places, means = [], []
        for place, experiment in enumerate(found.values(), 1):
            final = [scale * x for x in experiment["arms"][label]["final"][key] if x is not None]
            if final:
                places.append(place + aside)
                means.append(fmean(final))
                ax.plot([place + aside] * len(final), final, color=color, marker="_", markersize=7, linewidth=1)
        ax.plot(places, means, color=color, linestyle="none", marker="o", markersize=5, label=label)
    if key == "train_loss":
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xticks(range(1, len(found) + 1), list(found), rotation=35, ha="right", fontsize=8)
    ax.set_xlim(0.5, len(found) + 0.5)
    ax.set_ylabel(title)
    ax.grid(True, axis="y", color="#dddddd", linewidth=0.6)
