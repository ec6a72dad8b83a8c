"""C11: "some other B and M" (§6.1) behave alike: SNGD beats SPIDER-SFO, however large its anchors and periods are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from sngd.paper.trained.comparing import (
    FINAL,
    Criterion,
    Pair,
    evidence_of,
    final_comparisons,
    final_test_losses,
)
from sngd.paper.trained.experiments import BATCH_SIZES, FRESH, Arm, Experiment, fig2, scaled
from sngd.paper.trained.pictures import page_of
from sngd.paper.trained.runs import ExperimentMeasured, FigureMeasured
from sngd.paper.trained.variation import roughness_ratios
from sngd.paper.verdicts import Evidence
from sngd.studies.figures import plain_labels, plain_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPETITOR = "SNGD, α=0.1"
RATES = (0.1, 0.001)


def _sizes(batch_size: int, anchors: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(B, M) with M = B/4b, B/2b and B/b, if that is at least one step."""
    for anchor in anchors:
        for fraction in (4, 2, 1):
            if (period := anchor // (fraction * batch_size)) >= 1:
                yield anchor, period


def _label(anchor: int, period: int, lr: float) -> str:
    return f"SPIDER-SFO, B={anchor}, M={period}, α={lr:g}"


def _experiment(batch_size: int, anchors: Sequence[int] = (256, 1024, 4096), **changes: object) -> Experiment:
    spiders = [
        Arm(
            _label(anchor, period, lr),
            "spider-sfo",
            lr,
            beyond=True,
            params=(("anchor_batch_size", anchor), ("period", period)),
        )
        for lr in RATES
        for anchor, period in _sizes(batch_size, anchors)
    ]
    arms = (Arm(COMPETITOR, "sngd", 0.1), *spiders)
    return scaled(fig2(batch_size), arms=arms, first_seed=FRESH, eval_every=0.5, **changes)


_EVERY_SIZE = [_experiment(b) for b in BATCH_SIZES]
EXPERIMENTS = {
    "quick": [_experiment(32, (256,), problem="digits-mlp", epochs=4, seeds=2)],
    "small": _EVERY_SIZE,
    "paper": _EVERY_SIZE,
}


def judge_sizes(sizes: FigureMeasured) -> Evidence:
    """C11: SNGD with α = 0.1 against SPIDER-SFO with each B, M and α. How rough the curves are is context."""
    pairs = [
        Pair(key, experiment, COMPETITOR, label)
        for key, experiment in sizes["experiments"].items()
        for label in experiment["arms"]
        if label != COMPETITOR
    ]
    equal_rates = [pair for pair in pairs if pair.loser.endswith(f"α={RATES[0]:g}")]
    context = [*final_test_losses(pairs), *(quantity for pair in equal_rates for quantity in roughness_ratios(pair))]
    return evidence_of([sizes], final_comparisons(pairs), context)


# ---- drawn ---------------------------------------------------------------------------------------------------


def draw(measurements: FigureMeasured, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``spider-sizes.png`` and ``.svg``: what the runs end with by B and M; SNGD is a line across."""
    experiments = measurements["experiments"]
    with plain_style():
        title = "SPIDER-SFO with other anchors and periods"
        figure, page = page_of(max(7.0, 5.0 * len(experiments)), 6.6, title, measurements)
        grid = page.subplots(2, len(experiments), squeeze=False)
        for column, experiment in zip(grid.T, experiments.values(), strict=True):
            for ax, criterion in zip(column, FINAL, strict=True):
                _draw_finals(ax, experiment, criterion)
            column[0].set_title(experiment["title"], fontsize=10)
            column[0].set_xticklabels([])
            column[1].set_xlabel("B, M")
        handles, labels = grid[0][0].get_legend_handles_labels()
        page.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return save(figure, Path(folder) / "spider-sizes")


def _draw_finals(ax: Axes, experiment: ExperimentMeasured, criterion: Criterion) -> None:
    arms = experiment["arms"]
    sizes = list(dict.fromkeys(_size(arm["params"]) for label, arm in arms.items() if label != COMPETITOR))
    for lr, color, shift in zip(RATES, ("#d55e00", "#0072b2"), (-0.12, 0.12), strict=True):
        for place, size in enumerate(sizes):
            values = [value for value in criterion.values(arms[_label(*size, lr)]) if value is not None]
            ax.plot([place + shift] * len(values), values, color=color, marker="_", linestyle="none", markersize=7)
            if values:
                label = f"SPIDER-SFO, α={lr:g} *" if place == 0 else None
                ax.plot(place + shift, fmean(values), color=color, marker="o", linestyle="none", label=label)
    values = [value for value in criterion.values(arms[COMPETITOR]) if value is not None]
    if values:
        ax.axhline(fmean(values), color="#333333", linewidth=1.2, label=COMPETITOR)
        ax.axhspan(min(values), max(values), color="#333333", alpha=0.15, linewidth=0)
    finals = [value for arm in arms.values() for value in criterion.values(arm) if value is not None]
    ax.set_yscale("log")
    plain_labels(ax.yaxis, min(finals), max(finals))
    ax.set_xticks(range(len(sizes)), [f"{anchor}, {period}" for anchor, period in sizes], rotation=35, ha="right")
    ax.set_ylabel(criterion.name)
    ax.grid(True, axis="y", color="#dddddd", linewidth=0.6)


def _size(params: dict[str, float]) -> tuple[int, int]:
    return int(params["anchor_batch_size"]), int(params["period"])
