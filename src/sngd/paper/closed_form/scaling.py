"""Claim C7, scaling: how the oracle calls to reach a target grow as the target falls, measured and in theory.

For each target τ every method runs the planner's plan for τ, and the calls are counted until the running mean of
‖∇F(w_t)‖, weighted as the output is drawn, is at most τ: the expected norm at the output of a run stopped there. Two
objectives, both with L = 1, σ = 1 and Δ = 1, in d = 4 dimensions:

* ``quadratic``: F(w) = ½ Σ λ_i w_i², the same for all τ, and far easier than the worst case;
* ``hard``: F(w) = (s²/L)(√(1 + ‖Lw/s‖²) − 1) with slope s = 2τ away from the minimum, chosen for each τ as lower bounds
  choose theirs: a gradient barely above the target over as long a way as Δ allows.

A sample is a pair of Gaussian vectors A, B ~ N(0, I), and with ω = √(3d) L/σ

    f(w; A, B) = F(w) + (σ/(ω√d)) Σ_i (A_i sin ωw_i − B_i cos ωw_i),
    ∇f(w; A, B) − ∇F(w) = (σ/√d) (A_i cos ωw_i + B_i sin ωw_i)_i,

so E‖∇f − ∇F‖² = σ² exactly, at every w, and E‖∇f(u) − ∇f(w)‖² ≤ (L² + σ²ω²/d)‖u − w‖² = (2L)²‖u − w‖²: SPIDER-SFO,
whose theorem speaks of the samples' smoothness, is planned with 2L. A mini-batch is the sample whose A and B are
the means over it, N(0, I/b). So b oracle calls are counted but only one is computed.

Two slopes differ from theory's for known reasons. On the quadratic, SGD's gradient falls geometrically. Its short steps
have to cover the path, not the gap, which saves one power of τ. The geometric plan is long because of its last stage,
and these runs reach the target before that stage begins, or soon after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from sngd.checks import check_one_of
from sngd.diagnose.interval import Interval, mean_interval
from sngd.paper.closed_form.share_done import steps as each
from sngd.stages import StagePlan
from sngd.studies.figures import plain_style, save, styles
from sngd.theory import Plan, Smooth, plan
from sngd.training.schema import Count, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

METHODS = ("sngd", "s-sngd:harmonic", "s-sngd:geometric", "sgd", "spider-sfo")
L, SIGMA, GAP, DIM = 1.0, 1.0, 1.0, 4
OMEGA = sqrt(3 * DIM) * L / SIGMA
LEVEL = 0.95  # of the intervals
RHO = 0.1  # of the geometric plan
MARGIN = 0.2  # of a slope, for rounding and lower-order terms at targets that are not yet small

THEORY = {
    "sgd": -4.0,
    "sngd": -4.0,
    "s-sngd:harmonic": -4.0,
    "s-sngd:geometric": -3 - log(RHO) / log(2 * RHO),  # Corollary 2's steps, and two powers for the batch
    "spider-sfo": -3.0,
}


class Size(NamedTuple):
    seeds: int
    targets: tuple[float, ...]


SIZES = {
    "quick": Size(6, (0.28, 0.2, 0.14, 0.1, 0.07)),
    "small": Size(20, (0.2, 0.14, 0.1, 0.07, 0.05, 0.035)),
}


class Objective(NamedTuple):
    """F by its gradient, (seeds, d) to (seeds, d), and w_0, (d,)."""

    gradient: Callable[[Array], Array]
    start: Array


def quadratic(_target: float) -> Objective:
    """λ from L to L/10; F(w_0) = Δ, in equal parts from all coordinates."""
    curvatures = L * np.geomspace(1, 0.1, DIM)
    return Objective(lambda w: curvatures * w, np.sqrt(2 * GAP / DIM / curvatures))


def hard(target: float) -> Objective:
    """‖∇F‖ < s = 2τ, and F(w_0) = Δ: √(1 + ‖Lw_0/s‖²) = 1 + LΔ/s²."""
    slope = 2 * target
    distance = slope / L * sqrt((1 + L * GAP / slope**2) ** 2 - 1)

    def gradient(w: Array) -> Array:
        squares = np.einsum("ij,ij->i", w, w) * (L / slope) ** 2
        scaled: Array = w * (L / np.sqrt(1 + squares))[:, None]
        return scaled

    return Objective(gradient, np.full(DIM, distance / sqrt(DIM)))


OBJECTIVES: dict[str, Callable[[float], Objective]] = {"quadratic": quadratic, "hard": hard}


class Slope(TypedDict):
    """Of log calls against log τ, with its interval; None where a run did not arrive."""

    slope: float | None
    low: float | None
    high: float | None


class MethodMeasured(Slope):
    """A method on an objective, see ``measure``."""

    calls: list[list[Count | None]]
    planned: list[Count]
    planned_slope: float
    theory: float


class Scaling(TypedDict):
    """What ``measure`` returns."""

    profile: str
    seeds: Count
    level: Positive
    targets: list[Positive]
    problems: dict[str, dict[str, MethodMeasured]]


def measure(profile: str = "quick") -> Scaling:
    """Measure how many oracle calls each method needs for a target τ; the returned dict can be written as JSON.

    Args:
        profile: ``quick`` (seconds) or ``small`` (minutes).

    Returns:
        * ``profile``, ``seeds``, ``level`` (of the intervals), ``targets`` (τ, falling).
        * ``problems``: "quadratic" and "hard" → method ("sgd", "sngd", "s-sngd:harmonic", "s-sngd:geometric",
          "spider-sfo") → dict of
            * ``calls``: for each target those of each seed until the running mean of ‖∇F(w_t)‖ was at most τ (None:
              not within the plan's steps and as many again);
            * ``planned``: for each target the planner's oracle calls, ``planned_slope``: their least-squares slope;
            * ``slope``, ``low``, ``high``: mean over the seeds of the least-squares slope of log calls against log τ,
              and its Student interval; None if any seed did not arrive;
            * ``theory``: the exponent.

    Raises:
        ValueError: no such profile.
    """
    check_one_of("profile", profile, SIZES)
    seeds, targets = SIZES[profile]
    return {
        "profile": profile,
        "seeds": seeds,
        "level": LEVEL,
        "targets": list(targets),
        "problems": {
            name: {method: _measure(method, objective, targets, seeds) for method in each(METHODS)}
            for name, objective in each(OBJECTIVES.items())
        },
    }


def _measure(
    method: str, objective: Callable[[float], Objective], targets: Sequence[float], seeds: int
) -> MethodMeasured:
    rng = np.random.default_rng(0)
    plans = [planned(method, target) for target in targets]
    calls = [_arrivals(p, objective(p.target), seeds, rng) for p in each(plans)]
    return {
        "calls": calls,
        "planned": [p.oracle_calls for p in plans],
        "planned_slope": float(_slopes(targets, [[p.oracle_calls] for p in plans])[0]),
        **_interval(targets, calls),
        "theory": THEORY[method],
    }


def planned(method: str, target: float) -> Plan:
    """The planner's plan for the target. δ of the stagewise methods is Δ: no stage begins above w_0 (it is tested)."""
    smoothness = Smooth(2 * L if method == "spider-sfo" else L)
    return plan(method, smoothness, SIGMA, GAP, target=target, rho=RHO if method == "s-sngd:geometric" else None)


def _arrivals(plan: Plan, objective: Objective, seeds: int, rng: np.random.Generator) -> list[int | None]:
    def draw(batch_size: int) -> Array:
        return rng.standard_normal((2, seeds, DIM)) / sqrt(batch_size)

    start = np.tile(objective.start, (seeds, 1))
    total, sums = 0.0, np.zeros(seeds)
    arrived: list[int | None] = [None] * seeds
    waiting = np.ones(seeds, dtype=bool)
    for point in walk(plan, objective, start, draw):
        total += point.weight
        sums += point.weight * np.sqrt(np.einsum("ij,ij->i", point.gradient, point.gradient))
        there = waiting & (sums <= plan.target * total)
        if there.any():
            for seed in np.flatnonzero(there):
                arrived[seed] = point.calls
            waiting &= ~there
            if not waiting.any():
                break
    return arrived


class Point(NamedTuple):
    w: Array  # w_t, (seeds, d)
    gradient: Array  # ∇F(w_t)
    calls: int  # oracle calls of one seed so far, those of the estimate at w_t included
    weight: float  # of w_t in the output


def walk(plan: Plan, objective: Objective, start: Array, draw: Callable[[int], Array]) -> Iterator[Point]:
    """Run the plan and as many steps again, for all seeds at once; it equals the library's optimizers and estimators.

    Args:
        start: (seeds, d).
        draw: maps a batch size to the means of A and B over a batch, (2, seeds, d).
    """
    w, previous, estimate, calls = start, start, start, 0
    period = int(plan.options.get("period", 1))
    for t, (lr, weight) in enumerate(_schedule(plan.stage_plan)):
        gradient = objective.gradient(w)
        if t % period == 0:
            size = int(plan.options.get("anchor_batch_size", plan.batch_size))
            estimate = gradient + _noise(w, draw(size))
            calls += size
        else:
            batch = draw(plan.batch_size)
            change = gradient + _noise(w, batch) - objective.gradient(previous) - _noise(previous, batch)
            estimate = estimate + change
            calls += 2 * plan.batch_size
        yield Point(w, gradient, calls, weight)
        previous = w
        w = w - _scale(plan, lr, estimate) * estimate


def _noise(w: Array, means: Array) -> Array:
    a, b = means
    noise: Array = SIGMA / sqrt(DIM) * (a * np.cos(OMEGA * w) + b * np.sin(OMEGA * w))
    return noise


def _scale(plan: Plan, lr: float, estimate: Array) -> Array | float:
    if plan.method == "sgd":
        return lr
    scale: Array = lr / np.sqrt(np.einsum("ij,ij->i", estimate, estimate))
    return np.minimum(scale, plan.options.get("max_scale", np.inf))[:, None]


def _schedule(stages: StagePlan) -> Iterator[tuple[float, float]]:
    """(lr, weight of the iterate) of each step; the last stage goes on for as many steps as the plan has."""
    each = [((stage.lr, stage.weight / stage.steps), stage.steps) for stage in stages]
    return chain.from_iterable(repeat(*run) for run in [*each, (each[-1][0], stages.steps)])


def _slopes(targets: Sequence[float], calls: Sequence[Sequence[int]]) -> Array:
    """Least-squares slope of log calls, (targets, seeds), against log τ, for each seed."""
    slopes: Array = np.polyfit(np.log(targets), np.log(np.array(calls, dtype=float)), 1)[0]
    return slopes


def _interval(targets: Sequence[float], calls: Sequence[Sequence[int | None]]) -> Slope:
    arrived = [[count for count in counts if count is not None] for counts in calls]
    if arrived != calls:
        return {"slope": None, "low": None, "high": None}
    slope, low, high = mean_interval(_slopes(targets, arrived).tolist(), LEVEL)
    return {"slope": slope, "low": low, "high": high}


class Exponents(Slope):
    """A method's exponents: measured, in theory, and that of its plans."""

    theory: float
    planned_slope: float
    agrees: bool  # theory's lies in the interval or within MARGIN of it


def summary(measurements: Scaling) -> dict[str, dict[str, Exponents]]:
    """The verdict's numbers: problem → method → exponents."""
    return {
        problem: {method: _exponents(measured) for method, measured in methods.items()}
        for problem, methods in measurements["problems"].items()
    }


def _exponents(measured: MethodMeasured) -> Exponents:
    slope, theory = slope_interval(measured), measured["theory"]
    return {
        "slope": measured["slope"],
        "low": measured["low"],
        "high": measured["high"],
        "theory": theory,
        "planned_slope": measured["planned_slope"],
        "agrees": slope is not None and slope.low - MARGIN <= theory <= slope.high + MARGIN,
    }


def slope_interval(found: Slope) -> Interval | None:
    """The slope with its interval, or None where a run did not arrive."""
    slope, low, high = found["slope"], found["low"], found["high"]
    return None if slope is None or low is None or high is None else Interval(slope, low, high)


def draw(measurements: Scaling, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``scaling.png`` and ``.svg`` of what ``measure`` returned into ``folder`` (made if absent).

    Returns:
        The files written, in that order.
    """
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    with plain_style():
        figure = Figure(figsize=(13, 5.6), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (problem, methods) in zip(axes, measurements["problems"].items(), strict=True):
            _draw_problem(ax, measurements["targets"], methods)
            ax.set_title(_TITLES[problem], fontsize=10)
        axes[0].set_ylabel("oracle calls until the running mean of ‖∇F(w_t)‖ is τ")
        figure.suptitle(
            f"Oracle calls against the target, each method with its planner's plan ({measurements['seeds']} seeds)\n"
            f"line: fit, slope with {measurements['level']:.0%} interval; dotted: theory's slope",
            fontsize=11,
        )
        return save(figure, Path(folder) / "scaling")


_TITLES = {
    "quadratic": "a quadratic, the same for all τ",
    "hard": "slope 2τ away from the minimum, as lower bounds have it",
}


def _draw_problem(ax: Axes, targets: Sequence[float], methods: Mapping[str, MethodMeasured]) -> None:
    look = styles(tuple(methods))
    for method, measured in methods.items():
        color, theory = look[method].color, measured["theory"]
        points = [(target, c) for target, calls in zip(targets, measured["calls"], strict=True) for c in calls if c]
        ax.plot(*zip(*points, strict=True), color=color, marker=".", markersize=3, alpha=0.5, linestyle="none")
        label = f"{method}: some runs did not arrive"
        if (interval := slope_interval(measured)) is not None:
            means = [fmean(log(count) for count in calls if count is not None) for calls in measured["calls"]]
            center, level = fmean(map(log, targets)), fmean(means)
            for slope, dashes in ((interval.value, ()), (theory, (1, 2))):
                heights = [exp(level + slope * (log(target) - center)) for target in targets]
                ax.plot(targets, heights, color=color, linewidth=1.2, dashes=dashes)
            label = f"{method}: {interval}"
        ax.plot([], [], color=color, label=f"{label}, theory {theory:.3g}")
    ax.set(xscale="log", yscale="log", xlabel="target τ")
    ax.set_xticks(targets, [f"{target:g}" for target in targets])
    ax.minorticks_off()
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.legend(fontsize=8, loc="upper right")
