"""Draw a figure of training runs like the paper's: training loss above test accuracy, one column per experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, cast

import numpy as np

from sngd.paper.trained.runs import ArmMeasured, CurveKey, ExperimentMeasured, FigureMeasured, machines
from sngd.studies.figures import (
    DASH_LENGTHS,
    TEST_ACCURACY,
    TRAIN_LOSS,
    Panel,
    Style,
    draw_panel,
    plain_labels,
    plain_style,
    save,
    styles,
)
from sngd.studies.runs import Band, Tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

TITLES = {
    "fig2": "Figure 2: a small non-convex model",
    "counting": "Figure 2 where SPIDER-SFO's steps count b samples each",
    "variation": "How much the curves of SNGD and SPIDER-SFO vary",
    "fig3": "Figure 3: large non-convex models",
    "fig4": "Figure 4: S-SNGD and S-SGD with large batches",
    "reduced-variance": "Methods that reduce variance, at equal calls and equal tuning",
}


def draw(measurements: FigureMeasured, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw FIGURE.png and FIGURE.svg into ``folder`` (made if absent); tuned experiments with their tuning below.

    Returns:
        The files written, in that order.
    """

    name, experiments = measurements["figure"], list(measurements["experiments"].values())
    labels = {label: arm for experiment in experiments for label, arm in experiment["arms"].items()}
    look = styles(list(labels))
    tuned = any(experiment["tuning"] for experiment in experiments)
    rows, columns = 3 if tuned else 2, len(experiments)
    with plain_style():
        figure, page = page_of(max(7.0, 5.2 * columns), 3.3 * rows + 1.4, TITLES[name], measurements)
        grid = page.subplots(rows, columns, squeeze=False)
        lines: dict[str, Line2D] = {}
        for column, experiment in zip(grid.T, experiments, strict=True):
            for ax, panel in zip(column, (TRAIN_LOSS, TEST_ACCURACY), strict=False):
                lines |= draw_panel(ax, panel, _bands(experiment, panel), look)
            column[0].set_xlabel("")
            column[0].set_title(experiment["title"], fontsize=10)
            if experiment["tuning"]:
                _draw_tuning(column[2], experiment, experiment["tuning"], look)
        some = not all(arm["beyond"] for arm in labels.values())  # of the paper: the others have a star
        names = {label: starred(label, arm) if some else label for label, arm in labels.items()}
        page.legend(
            [lines[label] for label in labels if label in lines],
            [_legend_text(names[label], arm, tuned) for label, arm in labels.items() if label in lines],
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=9,
            handlelength=3.2,
        )
        return save(figure, Path(folder) / name)


def _bands(experiment: ExperimentMeasured, panel: Panel) -> dict[str, Band]:
    """Mean, lowest and highest seed at each cost that every seed reached with a finite value."""
    bands = {}
    for label, arm in experiment["arms"].items():
        values = panel.scale * np.array(arm["curves"][cast(CurveKey, panel.key)], dtype=np.float64)  # null becomes NaN
        reached = np.isfinite(values).all(axis=0)
        if reached.any():
            values, costs = values[:, reached], np.array(arm["curves"]["grads_over_n"])[reached]
            bands[label] = Band(costs, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    return bands


def starred(label: str, arm: ArmMeasured) -> str:
    """With a star if the paper's figure has no such arm."""
    return f"{label} *" if arm["beyond"] else label


def _legend_text(name: str, arm: ArmMeasured, tuned: bool) -> str:
    notes = [f"tuned: α={arm['lr']:g}"] if tuned else []
    notes += [f"{len(arm['diverged'])} of {len(arm['seeds'])} diverged"] if arm["diverged"] else []
    return f"{name} ({', '.join(notes)})" if notes else name


def _draw_tuning(ax: Axes, experiment: ExperimentMeasured, tuning: Tuning, look: Mapping[str, Style]) -> None:
    for label in experiment["arms"]:
        points = [
            (outcome["lr"], outcome["train_loss"])
            for outcome in tuning["outcomes"]
            if outcome["label"] == label and outcome["train_loss"] is not None
        ]
        color, dash = look[label]
        (line,) = ax.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3.5, linewidth=1.2)
        if DASH_LENGTHS[dash]:
            line.set_dashes(DASH_LENGTHS[dash])
        chosen = [point for point in points if point[0] == tuning["chosen"][label]]
        ax.plot(*zip(*chosen, strict=True), color=color, marker="o", markersize=9, fillstyle="none")
    ax.set(xscale="log", yscale="log", xlabel="initial learning rate α (circle: chosen)", ylabel="loss in tuning")
    losses = [outcome["train_loss"] for outcome in tuning["outcomes"] if outcome["train_loss"] is not None]
    plain_labels(ax.xaxis, min(tuning["grid"]), max(tuning["grid"]))
    plain_labels(ax.yaxis, min(losses), max(losses))
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)


# ---- what is printed on every figure -------------------------------------------------------------------------


def page_of(
    width: float,
    height: float,
    title: str,
    measurements: FigureMeasured,
    of_seeds: str = "mean, and band from lowest to highest",
) -> tuple[Figure, SubFigure]:
    """A figure, and the part of it, width × height inches, to draw in.

    Above it stand the title, profile, device, versions and seeds, and what is drawn ``of_seeds``; below it every
    departure from the paper.
    """
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    experiments = list(measurements["experiments"].values())
    text = fill(_departures_text(experiments), int(15.5 * width))
    foot = 0.1 + 0.15 * len(text.splitlines())  # inches
    figure = Figure(figsize=(width, height + foot), layout="constrained")
    page, bottom = cast("tuple[SubFigure, SubFigure]", figure.subfigures(2, 1, height_ratios=(height, foot)))
    bottom.text(0.01, 0.5, text, fontsize=8, va="center")
    setting = fill(_setting_text(measurements, experiments, of_seeds), int(11.5 * width))
    page.suptitle(f"{title}\n{setting}", fontsize=10.5)
    return figure, page


def _setting_text(measurements: FigureMeasured, experiments: Sequence[ExperimentMeasured], of_seeds: str) -> str:
    seeds = sorted({len(arm["seeds"]) for experiment in experiments for arm in experiment["arms"].values()})
    count = " to ".join(str(number) for number in dict.fromkeys((seeds[0], seeds[-1])))
    where = " and ".join(machines(measurements))
    drawn = "one seed" if seeds == [1] else f"{count} seeds: {of_seeds}"
    return f"{measurements['profile']} profile, {where}; {drawn}"


def _departures_text(experiments: Sequence[ExperimentMeasured]) -> str:
    stated = "; ".join(departures(experiments))
    beyond = [arm["beyond"] for experiment in experiments for arm in experiment["arms"].values()]
    star = "Nothing here is in the paper." if all(beyond) else "* not in the paper's figure." if any(beyond) else ""
    return f"{star} Departures from the paper: {stated}.".strip() if stated else star


def departures(experiments: Sequence[ExperimentMeasured]) -> Iterator[str]:
    """Of all experiments, each once; those of some of several experiments with the names of their problems."""
    for phrase in dict.fromkeys(phrase for experiment in experiments for phrase in experiment["departures"]):
        having = [experiment["problem"] for experiment in experiments if phrase in experiment["departures"]]
        yield phrase if len(having) == len(experiments) else f"{phrase} ({', '.join(dict.fromkeys(having))})"
    tunings = [experiment["tuning"] for experiment in experiments if experiment["tuning"]]
    edges = [label for tuning in tunings for label in tuning["at_edge"]]
    if edges:
        yield f"tuning chose an end of its grid for {', '.join(edges)}: a better rate may lie outside"
