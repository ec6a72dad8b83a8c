"""How much the learning rate matters: final training loss against it, and the width of each method's plateau.

A method's *plateau* is the range of learning rates about its best one in which the final training loss is at most
``FACTOR`` times the best. Its width is in decades, because methods need rates of different sizes. A method with a lower
best loss has a lower threshold, so the range with at most ``FACTOR`` times *SGD's* best loss is given too. Between two
rates of the grid the logarithm of the loss is taken to be linear in the logarithm of α. A range ends before a rate that
diverges.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import inf, log10
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from sngd.paper.trained.pictures import page_of
from sngd.paper.trained.runs import ArmMeasured, FigureMeasured
from sngd.paper.trained.runs import measure as measure_runs
from sngd.studies.figures import plain_style, save
from sngd.training.schema import NonNegative, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FACTOR = 1.5


class Plateau(NamedTuple):
    """From ``low`` to ``high`` (both α); ``clipped``: the grid ends there, so that the width is a lower bound."""

    low: float
    high: float
    clipped: bool

    @property
    def decades(self) -> float:
        return log10(self.high / self.low)


def plateau(lrs: Sequence[float], losses: Sequence[float | None], limit: float | None = None) -> Plateau | None:
    """Where the loss is at most ``limit``, about the best of increasing ``lrs``; None if it is so nowhere.

    Args:
        losses: final ones, one a learning rate; None for a run that diverged.
        limit: default: ``FACTOR`` times the lowest loss.

    Example:
        >>> plateau([0.01, 0.1, 1.0], [10.0, 1.0, None], limit=10**0.5)
        Plateau(low=0.0316..., high=0.1, clipped=False)
    """
    values = [inf if loss is None else loss for loss in losses]
    best = min(range(len(values)), key=values.__getitem__)
    limit = FACTOR * values[best] if limit is None else limit
    if values[best] == inf or values[best] > limit:
        return None
    low, low_clipped = _edge(lrs[best::-1], values[best::-1], limit)
    high, high_clipped = _edge(lrs[best:], values[best:], limit)
    return Plateau(low, high, low_clipped or high_clipped)


def _edge(lrs: Sequence[float], losses: Sequence[float], limit: float) -> tuple[float, bool]:
    """Where the loss crosses ``limit`` on the way from the best α, and whether the grid ends before it does."""
    beyond = next((i for i, loss in enumerate(losses) if loss > limit), None)
    if beyond is None:
        return lrs[-1], True
    inside = beyond - 1
    if losses[beyond] == inf or losses[inside] <= 0:
        return lrs[inside], False
    share = log10(limit / losses[inside]) / log10(losses[beyond] / losses[inside])
    return lrs[inside] * (lrs[beyond] / lrs[inside]) ** share, False


# ---- measured ------------------------------------------------------------------------------------------------


class PlateauMeasured(TypedDict):
    """A method's losses over its learning rates and seeds, and how wide the plateau is, with each seed."""

    lrs: list[Positive]
    train_loss: list[list[float | None]]  # a list an α, in it a value a seed; None if it diverged
    decades: list[NonNegative]  # with each seed: the width of the range within factor × the method's best
    clipped: bool  # the grid ends first, with some seed
    low: float | None  # the ends, in α, of the mean loss's range; None if at every α a seed diverged
    high: float | None
    sgd_decades: list[NonNegative]  # as ``decades``, within factor × SGD's best
    sgd_clipped: bool


class Sensitivity(FigureMeasured):
    """The runs, and the plateaus that follow from them, by method."""

    factor: Positive
    plateaus: dict[str, PlateauMeasured]


def measure(profile: str, out: Path) -> Sensitivity:
    """Measurements of the runs in ``out``, with the "plateaus" that follow from them."""
    measured = measure_runs("sensitivity", profile, out)
    return {**measured, "factor": FACTOR, "plateaus": plateaus(measured)}


def plateaus(measured: FigureMeasured) -> dict[str, PlateauMeasured]:
    """By method, in order; ``low`` and ``high`` are those of the mean loss over seeds."""
    (experiment,) = measured["experiments"].values()
    by_method: dict[str, list[ArmMeasured]] = {}
    for arm in experiment["arms"].values():
        by_method.setdefault(arm["method"], []).append(arm)
    limit = FACTOR * min(filter(None, map(_mean, by_method["sgd"])))
    return {method: _plateaus_of(arms, limit) for method, arms in by_method.items()}


def _plateaus_of(arms: Sequence[ArmMeasured], sgd_limit: float) -> PlateauMeasured:
    lrs = [float(arm["lr"]) for arm in arms]
    losses = [arm["final"]["train_loss"] for arm in arms]
    seeds = list(zip(*losses, strict=True))
    own = [plateau(lrs, seed) for seed in seeds]
    as_sgd = [plateau(lrs, seed, sgd_limit) for seed in seeds]
    overall = plateau(lrs, [_mean(arm) for arm in arms])
    return {
        "lrs": lrs,
        "train_loss": losses,
        "decades": [found.decades if found else 0.0 for found in own],
        "clipped": any(found.clipped for found in own if found),
        "low": overall.low if overall else None,
        "high": overall.high if overall else None,
        "sgd_decades": [found.decades if found else 0.0 for found in as_sgd],
        "sgd_clipped": any(found.clipped for found in as_sgd if found),
    }


def _mean(arm: ArmMeasured) -> float | None:
    """Of the final training losses; None if a seed diverged."""
    final = arm["final"]["train_loss"]
    losses = [loss for loss in final if loss is not None]
    return fmean(losses) if len(losses) == len(final) else None


# ---- drawn ---------------------------------------------------------------------------------------------------

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def draw(measurements: Sensitivity, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``sensitivity.png`` and ``sensitivity.svg`` into ``folder`` (made if absent); a plateau is a thick line."""

    (experiment,) = measurements["experiments"].values()
    title = f"Final training loss against the learning rate: {experiment['title']}, {experiment['epochs']:g} #grad/n"
    with plain_style():
        figure, page = page_of(8, 6, title, measurements)
        ax = page.subplots()
        for (method, found), color in zip(measurements["plateaus"].items(), _COLORS, strict=True):
            _draw_method(ax, method, found, color)
        ax.set(xscale="log", yscale="log", xlabel="learning rate α", ylabel="final training loss")
        ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
        factor = measurements["factor"]
        page.legend(
            loc="outside lower center",
            frameon=False,
            fontsize=9,
            title=f"decades of α with a loss of at most {factor:g} × the method's best (thick line); "
            f"at most {factor:g} × SGD's best",
            title_fontsize=9,
        )
        return save(figure, Path(folder) / "sensitivity")


def _draw_method(ax: Axes, method: str, found: PlateauMeasured, color: str) -> None:
    points = [
        (lr, [loss for loss in losses if loss is not None])
        for lr, losses in zip(found["lrs"], found["train_loss"], strict=True)
    ]
    points = [(lr, losses) for lr, losses in points if losses]
    lrs, means = [lr for lr, _ in points], [fmean(losses) for _, losses in points]
    label = f"{method}: {_width(found['decades'], found['clipped'])}; " + _width(
        found["sgd_decades"], found["sgd_clipped"]
    )
    ax.plot(lrs, means, color=color, marker="o", markersize=3.5, label=label)
    low, high = [min(losses) for _, losses in points], [max(losses) for _, losses in points]
    ax.fill_between(lrs, low, high, color=color, alpha=0.18, linewidth=0)
    if found["low"] is not None and found["high"] is not None:
        ax.plot([found["low"], found["high"]], 2 * [FACTOR * min(means)], color=color, linewidth=4, alpha=0.45)


def _width(decades: Sequence[float], clipped: bool) -> str:
    return ("≥ " if clipped else "") + f"{fmean(decades):.2f}"
