"""The evidence on claims C7 and C8; the studies of C9 and C10 have their own ``judge``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from math import exp, log, log10
from statistics import linear_regression
from typing import Any

from sngd.diagnose.interval import Interval
from sngd.studies import conformance, scaling
from sngd.studies.escape import LIMIT
from sngd.studies.verdicts import (
    Evidence,
    Quantity,
    above,
    at_least,
    at_most,
    error_rate,
    every,
    mean_interval,
    never,
    reported,
    share_interval,
)

SHARP = (3.0, 0.0)  # the sharp minimum of ``sharp_and_flat``

# ---- C7: the bounds hold -------------------------------------------------------------------------------------


def judge_bounds(checked: Mapping[str, Any], scaled: Mapping[str, Any]) -> Evidence:
    """C7 from the measurements of ``conformance``, with the exponents of ``scaling`` as context."""
    found = conformance.summary(checked)
    tight = [checked["families"][name] for name in conformance.TIGHT]
    caught = share_interval(sum(f["caught"] for f in tight), sum(f["instances"] for f in tight))
    quantities = (
        never("steps at which Lemma 1 or 2 fails", found["lemma_violations"], found["steps"], essential=True),
        never(
            "comparisons in which E‖∇F(w̄)‖ is above the bound of its theorem",
            found["theorem_violations"],
            found["comparisons"],
            essential=True,
        ),
        never("iterates where the constants need not hold", found["outside"], found["steps"]),
        at_least("share of the instances with tight constants in which a lemma catches L/4", caught, 0.5),
        reported("instances of all families in which a lemma catches it", found["caught"], found["instances"]),
        reported(
            "instances of all families in which a theorem catches it", found["caught_by_theorem"], found["instances"]
        ),
        reported("largest E‖∇F(w̄)‖ over its bound", found["largest_ratio"]),
        *_exponents(scaled),
    )
    return Evidence(
        profile=checked["profile"],
        quantities=quantities,
        test=f"{found['instances']:,} random instances of {found['families']} families with known constants; lemmas at "
        f"every step; theorems by a one-sided t-test of the mean of {checked['seeds']} runs (Bonferroni)",
        error_rate=min(1.0, found["error_rate"] + error_rate(0.5)),
        departures=(
            "the theorems as re-derived in docs/theory.md, with the misprints corrected and whole numbers of steps",
        ),
    )


def _exponents(scaled: Mapping[str, Any]) -> Iterator[Quantity]:
    for problem, methods in scaling.summary(scaled).items():
        for method, found in methods.items():
            if found["slope"] is None:
                continue
            name = f"exponent of the target in oracle calls, {method}, {problem}"
            notes = f"theory: {found['theory']:.3g}, the plans': {found['planned_slope']:.3g}"
            slope = Interval(found["slope"], found["low"], found["high"])
            yield reported(f"{name} ({notes}; {100 * scaled['level']:g} % interval)", slope)


# ---- C8: leaving saddles and sharp minima --------------------------------------------------------------------


def judge_escape(measured: Mapping[str, Any]) -> Evidence:
    """C8 from the measurements of ``escape``."""
    places = {"from_saddle": "from random points near a saddle", "from_manifold": "from near its stable manifold"}
    seeds = len(measured["dimension"]["steps"]["Saddle-NGD, lr 0.1"][0])
    quantities = [quantity for key, place in places.items() for quantity in _distances(measured[key], place)]
    quantities += [
        every(
            "runs of NGD and SNGD from a sharp minimum that end in the flat one",
            *_ended_flat(measured, "NGD", "SNGD"),
            essential=True,
        ),
        never("runs of GD and SGD that do", *_ended_flat(measured, "GD", "SGD")),
        every(
            "runs from a saddle that Saddle-NGD leaves before Noisy-GD, both with lr 0.1, over all dimensions",
            *_earlier(measured["dimension"]["steps"], "Saddle-NGD, lr 0.1", "Noisy-GD, lr 0.1"),
        ),
        every("runs of tensor decomposition in which Saddle-NGD halves F before Noisy-GD", *_halved_first(measured)),
        reported("final F of Saddle-NGD over that of Noisy-GD", _final_ratio(measured)),
    ]
    return Evidence(
        profile=measured["profile"],
        quantities=tuple(quantities),
        test=f"counts of runs paired over {seeds} seeds; Student's t over seeds for growths",
        error_rate=error_rate(2),
        departures=(
            "full gradients, and closed-form landscapes: the paper's Figure 1 is a drawing",
            "GD and NGD both with lr 0.1, where GD's first step is at most as long; GD's largest safe rate 1/L stands "
            "beside it, and on tensor decomposition each method has its best rate",
            "one run of each method from the sharp minimum",
        ),
    )


def _distances(measured: Mapping[str, Any], place: str) -> Iterator[Quantity]:
    steps, distances = measured["steps"], measured["distances"]
    slow, quick = "GD, lr 0.1", "NGD, lr 0.1"
    yield every(
        f"runs {place} in which NGD leaves before GD, both with lr 0.1", *_earlier(steps, quick, slow), essential=True
    )
    yield reported(f"runs {place} in which it leaves before GD with lr 1/L", *_earlier(steps, quick, "GD, lr 1"))
    within = [
        t <= bound
        for seeds, bound in zip(steps[quick], measured["theory"][quick], strict=True)
        for t in map(_count, seeds)
    ]
    yield every(f"runs of NGD {place} within Murray et al.'s 5√κ r/α steps", sum(within), len(within))
    growth = mean_interval([-_slope(distances, column) for column in _columns(steps[slow])])
    yield above(f"steps that GD needs more {place} for every decade nearer", growth, 0)
    middle = (len(distances) - 1) // 2
    late = mean_interval([log(column[-1] / column[middle]) for column in _columns(steps[quick])])
    name = f"NGD's steps {place} at δ = {distances[-1]:g} over those at {distances[middle]:g} (levels off)"
    yield at_most(name, Interval(*map(exp, late)), 1.1)


def _earlier(steps: Mapping[str, Any], first: str, second: str) -> tuple[int, int]:
    """In how many of the pairs (same place, same seed) ``first`` takes fewer steps; and how many pairs there are."""
    pairs = [
        (_count(a), _count(b))
        for ours, theirs in zip(steps[first], steps[second], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return sum(a < b for a, b in pairs), len(pairs)


def _count(steps: int | None) -> int:
    return LIMIT + 1 if steps is None else steps


def _columns(steps: Sequence[Sequence[int | None]]) -> list[list[int]]:
    """A seed's steps at each distance."""
    return [[max(1, _count(t)) for t in column] for column in zip(*steps, strict=True)]


def _slope(distances: Sequence[float], steps: Sequence[int]) -> float:
    return linear_regression([log10(distance) for distance in distances], steps).slope


def _ended_flat(measured: Mapping[str, Any], *methods: str) -> tuple[int, int]:
    """How many of the methods' paths, which begin in the sharp minimum's hole, end nearer to the flat one at 0."""
    ends = [measured["trajectories"]["sharp_and_flat"][method][-1] for method in methods]
    return sum(math.hypot(*end) < math.dist(end, SHARP) for end in ends), len(ends)


def _halved_first(measured: Mapping[str, Any]) -> tuple[int, int]:
    losses = measured["tensor"]["losses"]
    ours, theirs = ([_halved(curve) for curve in losses[name]] for name in ("Saddle-NGD", "Noisy-GD"))
    return sum(a < b for a, b in zip(ours, theirs, strict=True)), len(ours)


def _halved(curve: Sequence[float]) -> float:
    return next((t for t, loss in enumerate(curve) if loss < curve[0] / 2), math.inf)


def _final_ratio(measured: Mapping[str, Any]) -> Interval:
    """Geometric mean over seeds of the last losses' ratio."""
    losses = measured["tensor"]["losses"]
    ratios = [log(a[-1] / b[-1]) for a, b in zip(losses["Saddle-NGD"], losses["Noisy-GD"], strict=True)]
    return Interval(*map(exp, mean_interval(ratios)))
