"""Where the paper is ambiguous: the same experiments under other readings, so that the verdicts can be compared.

Most readings need runs of their own, see ``ALTERNATIVES`` in the table. One does not: how SPIDER's gradients are
counted changes the axis only, so it is ``recounted`` from the measurements of the runs that there are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

import numpy as np

from sngd.cost import differences
from sngd.paper.trained.experiments import ALTERNATIVES, alternatives
from sngd.paper.trained.pictures import page_of
from sngd.paper.trained.runs import MEASURES, FigureMeasured, measure_experiments
from sngd.studies.figures import plain_style, save, styles
from sngd.studies.runs import Environment

COUNTED_ONCE = "differences counted once"
_WHAT = (
    "the two gradients of a sample in SPIDER's difference count as one; every arm at the budget that SPIDER then has"
)


class Reading(TypedDict):
    """The figures under one reading of the paper, and what it is."""

    what: str
    figures: dict[str, FigureMeasured]


class Alternatives(TypedDict):
    """The readings by name, the figures' own first."""

    figure: str
    profile: str
    device: str
    environment: Environment
    alternatives: dict[str, Reading]


def measure(profile: str, out: Path) -> dict[str, Any]:
    """The measurements of every reading from the runs in ``out``; an arm that a reading leaves alone is the base's."""
    table = alternatives(profile)
    experiments = [e for figures in table.values() for part in figures.values() for e in part]
    measured = measure_experiments(experiments, out)
    by_name = measured.pop("experiments")
    base = next(iter(table))
    readings: dict[str, Any] = {}
    for name, figures in table.items():
        readings[name] = {"what": ALTERNATIVES[name].what, "figures": {}}
        for figure, part in figures.items():
            own = {Path(e.name).name: by_name[e.name] for e in part}
            if name != base:
                over = readings[base]["figures"][figure]["experiments"]
                own = {key: {**found, "arms": over[key]["arms"] | found["arms"]} for key, found in own.items()}
            if own:
                readings[name]["figures"][figure] = {"figure": figure, "profile": profile, "experiments": own}
    spider = {figure: recounted(found) for figure, found in readings[base]["figures"].items() if has_spider(found)}
    readings[COUNTED_ONCE] = {"what": _WHAT, "figures": spider}
    return {"figure": "alternatives", "profile": profile, **measured, "alternatives": readings}


# ---- counting ------------------------------------------------------------------------------------------------


def has_spider(measurements: Mapping[str, Any]) -> bool:
    """Whether a figure has an arm to recount."""
    return any("period" in arm["params"] for e in measurements["experiments"].values() for arm in e["arms"].values())


def recounted(measurements: Mapping[str, Any]) -> dict[str, Any]:
    """A figure's measurements if a sample of SPIDER's difference counted once, not twice.

    SPIDER's runs then spent less, so every arm is cut at the budget that the cheapest arm of its experiment ends with,
    and its final values are those of its curve there (linear between evaluations; null after divergence).
    """
    experiments = {key: _recounted(found) for key, found in measurements["experiments"].items()}
    return {**measurements, "experiments": experiments}


def _recounted(experiment: Mapping[str, Any]) -> dict[str, Any]:
    costs = {label: _costs(arm, experiment) for label, arm in experiment["arms"].items()}
    budget = min(axis[-1] for label, axis in costs.items() if not experiment["arms"][label]["diverged"])
    arms = {label: _cut(arm, costs[label], budget) for label, arm in experiment["arms"].items()}
    return {**experiment, "epochs": budget, "arms": arms}


def _costs(arm: Mapping[str, Any], experiment: Mapping[str, Any]) -> list[float]:
    costs: list[float] = arm["curves"]["grads_over_n"]
    if "period" not in arm["params"]:
        return costs
    anchor, period, b = arm["params"]["anchor_batch_size"], arm["params"]["period"], experiment["batch_size"]
    n = experiment["n"]
    return [counted_once(cost * n, anchor, period, b) / n for cost in costs]


def counted_once(calls: float, anchor: float, period: float, batch_size: int) -> float:
    """Oracle calls of SPIDER with its difference samples counted once, from the number with them counted twice.

    A period is an anchor and M − 1 differences, of which half the calls count.
    """
    twice = differences(anchor, batch_size, period)
    once = twice._replace(between=batch_size)
    periods, rest = divmod(calls, twice.of_a_period)
    return float(periods * once.of_a_period + min(rest, anchor) + max(0, rest - anchor) / 2)


def _cut(arm: Mapping[str, Any], costs: Sequence[float], budget: float) -> dict[str, Any]:
    kept = [*(cost for cost in costs if cost < budget), budget]
    curves = {key: [_at(kept, costs, seed) for seed in arm["curves"][key]] for key in MEASURES}
    final = {key: [seed[-1] for seed in curves[key]] for key in MEASURES}
    return {**arm, "final": final, "curves": {"grads_over_n": kept, **curves}}


def _at(wanted: Sequence[float], costs: Sequence[float], values: Sequence[float | None]) -> list[float | None]:
    """Linear between the costs; null beyond the last value."""
    numbers = np.interp(wanted, costs, np.array(values, dtype=np.float64), right=np.nan)  # null becomes NaN
    return [None if np.isnan(number) else float(number) for number in numbers]


# ---- drawn ---------------------------------------------------------------------------------------------------

_SCALES = {"train_loss": ("final training loss", 1), "test_accuracy": ("final test accuracy (%)", 100)}


def draw(measurements: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``alternatives.png`` and ``alternatives.svg``: every arm's final values under every reading, all seeds."""

    readings = measurements["alternatives"]
    base = next(iter(readings.values()))["figures"]
    columns = [(figure, name) for figure, found in base.items() for name in found["experiments"]]
    with plain_style():
        shown = {"experiments": {f"{f}/{name}": base[f]["experiments"][name] for f, name in columns}}
        title = "The figures under other readings of the paper"
        figure, page = page_of(4.4 * len(columns), 9.5, title, {**measurements, **shown})
        grid = page.subplots(2, len(columns), squeeze=False)
        for column, (of_figure, name) in zip(grid.T, columns, strict=True):
            found = {
                reading: content["figures"][of_figure]["experiments"][name]
                for reading, content in readings.items()
                if name in content["figures"].get(of_figure, {"experiments": {}})["experiments"]
            }
            for ax, key in zip(column, MEASURES, strict=True):
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
        return save(figure, Path(folder) / "alternatives", dpi=130)


def _draw_finals(ax: Any, found: Mapping[str, Any], key: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    title, scale = _SCALES[key]
    labels = list(next(iter(found.values()))["arms"])
    for label, (color, _) in styles(labels).items():
        spread = []
        for place, experiment in enumerate(found.values()):
            final = [scale * x for x in experiment["arms"][label]["final"][key] if x is not None]
            ax.plot([place] * len(final), final, color=color, marker="_", linestyle="none", markersize=9)
            spread.append(fmean(final) if final else float("nan"))
        ax.plot(range(len(found)), spread, color=color, linewidth=0.9, marker="o", markersize=4, label=label)
    if key == "train_loss":
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xticks(range(len(found)), list(found), rotation=35, ha="right", fontsize=8)
    ax.set_ylabel(title)
    ax.grid(True, axis="y", color="#dddddd", linewidth=0.6)
