"""Claim C7: Lemmas 1 and 2 and Theorems 1–4, checked on random instances of families with known constants.

Every instance is run five times, with learning rates, batch sizes and plans drawn at random within the theorems'
conditions: NGD (full gradients, σ = 0), SNGD, and S-SNGD with a harmonic plan, a geometric one, and Remark 1's. The
steps are the library's own (`SNGD`, `StagewiseLR`); mini-batches are drawn with replacement, as the theorems assume.

* A lemma holds at every single step and for any gradient estimate, not only on the average. So one step at which it
  fails beyond rounding refutes the lemma or the constants.
* A theorem bounds E‖∇F(w̄)‖, where w̄ is a random iterate. The expectation over w̄ is computed exactly, with
  `RandomIterate`'s weights; the expectation over the samples is estimated by the mean of several runs. A bound counts
  as violated if Student's one-sided t-test rejects E‖∇F(w̄)‖ ≤ bound at the error rate divided by the number of
  comparisons (Bonferroni).
* Theorems 3 and 4 need a δ that bounds the gap at the start of every stage. Their proof is a sum along each path, so
  the greatest gap of any run at the start of any stage is enough. This δ is measured.

To see that the checks can fail, they are repeated with wrong constants, a quarter of the right ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Generator, Tensor, nn

from sngd.checks import check_one_of
from sngd.optim.sngd import SNGD
from sngd.optim.stagewise import StagewiseLR
from sngd.paper.closed_form.families import FAMILIES, Instance, log_uniform
from sngd.paper.closed_form.scaling import Scaling, slope_interval
from sngd.paper.closed_form.scaling import summary as scaling_summary
from sngd.paper.closed_form.share_done import steps as each
from sngd.paper.verdicts import (
    Evidence,
    Quantity,
    at_least,
    error_rate,
    never,
    reach_of_share,
    reported,
    share_interval,
)
from sngd.stages import StagePlan, constant, geometric, harmonic, harmonic_even
from sngd.studies.figures import plain_style, save, styles
from sngd.theory import Bound, RelaxedSmooth, Smooth, Smoothness, lemma1, lemma2, sngd_bound, stagewise_bound
from sngd.training.schema import Count, NonNegative, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSTANCES = {"quick": 20, "small": 200}  # of each family, by profile
SEEDS = 8  # runs averaged for a comparison with a theorem
ERROR_RATE = 1e-3  # family-wise
TOLERANCE = 1e-9  # of ‖∇F‖ + |F|/α, for rounding
WRONG = 4  # L/4 is to be caught
TIGHT = ("quadratic", "saddle", "exponential")  # families whose constants are attained near the minimum

_EDGES = np.linspace(0, 1, 41)  # of the histogram of slacks


class Slack(TypedDict):
    """A histogram: one more edge than counts."""

    edges: list[float]
    counts: list[Count]


class AgainstBound(NamedTuple):
    """What a plan's runs on one instance measured, against the bound of their theorem."""

    theorem: str
    lr: float
    batch_size: int | None
    steps: int
    gap: float
    mean: float
    standard_error: float
    bound: float
    violated: bool


class Compared(TypedDict):
    """A plan's comparisons with the bound of its theorem, in lists with an entry an instance, see ``measure``."""

    theorem: str
    lr: list[Positive]
    batch_size: list[Count | None]
    steps: list[Count]
    gap: list[NonNegative]
    mean: list[NonNegative]
    standard_error: list[NonNegative]
    bound: list[NonNegative]
    violated: list[Count]


class Family(TypedDict):
    """The instances of one family, see ``measure``."""

    instances: Count
    lemma: str
    steps: Count
    lemma_violations: Count
    outside: Count
    caught: Count
    caught_by_theorem: Count
    largest_lemma_ratio: NonNegative
    slack: Slack
    runs: dict[str, Compared]


class Conformance(TypedDict):
    """What ``measure`` returns."""

    profile: str
    seeds: Count
    tolerance: NonNegative
    error_rate: NonNegative
    comparisons: Count
    families: dict[str, Family]


def measure(profile: str = "quick") -> Conformance:
    """Measure claim C7; everything in the returned dict can be written as JSON.

    Args:
        profile: ``quick`` (20 instances a family, seconds) or ``small`` (200, minutes).

    Returns:
        * ``profile``, ``seeds`` (runs averaged per comparison), ``tolerance`` (relative, of rounding in the lemmas),
          ``error_rate`` (family-wise, of all comparisons with a theorem together), ``comparisons`` (their number).
        * ``families``: name → dict of
            * ``instances``; ``lemma``: "Lemma 1" or "Lemma 2"; ``steps``: at how many steps (of all instances, runs
              and seeds) it was checked; ``lemma_violations``: at how many it failed beyond rounding;
            * ``largest_lemma_ratio``: the largest ‖∇F(w)‖ over the lemma's right side;
            * ``outside``: iterates outside the ball in which the constants hold;
            * ``caught``: instances in which the lemma fails at one step at least if L (L0 and L1) is divided by 4;
              ``caught_by_theorem``: those in which a bound is then violated;
            * ``slack``: shares (right side − ‖∇F‖)/right side, counted between ``edges``: ``counts``;
            * ``runs``: by plan ("ngd", "sngd", "s-sngd:harmonic", "s-sngd:geometric", "s-sngd:harmonic-even") its
              ``theorem`` and, in lists with an entry an instance, ``lr`` (of the first step), ``batch_size`` (None: all
              samples), ``steps``, ``gap`` (Δ or δ), ``mean`` (measured E‖∇F(w̄)‖), ``standard_error`` and ``bound``;
              ``violated`` lists the instances in which the bound is. Numbers have 6 digits.

    Raises:
        ValueError: no such profile.
    """
    check_one_of("profile", profile, INSTANCES)
    comparisons = len(FAMILIES) * INSTANCES[profile] * len(_PLANS)
    quantile = student(ERROR_RATE / comparisons)
    return {
        "profile": profile,
        "seeds": SEEDS,
        "tolerance": TOLERANCE,
        "error_rate": ERROR_RATE,
        "comparisons": comparisons,
        "families": {
            name: _family(number, draw_instance, INSTANCES[profile], quantile)
            for number, (name, draw_instance) in each(enumerate(FAMILIES.items()))
        },
    }


class Summary(TypedDict):
    """The verdict's numbers, totals over the families."""

    families: int
    instances: int
    steps: int
    lemma_violations: int
    outside: int
    comparisons: int
    theorem_violations: int
    largest_ratio: float  # measured over bound, of all comparisons
    error_rate: float
    caught: int  # instances in which the lemma shows that L/4 is wrong
    caught_share: float  # of all instances
    caught_share_tight: float  # of those of the families in TIGHT
    caught_by_theorem: int  # instances in which a bound shows it


_Total = Literal["instances", "steps", "lemma_violations", "outside", "caught", "caught_by_theorem"]


def summary(measurements: Conformance) -> Summary:
    """The verdict's numbers, from what ``measure`` returned."""
    families = measurements["families"]
    runs = [run for family in families.values() for run in family["runs"].values()]
    ratios = [mean / bound for run in runs for mean, bound in zip(run["mean"], run["bound"], strict=True)]

    def total(key: _Total, names: tuple[str, ...] = tuple(families)) -> int:
        return sum(families[name][key] for name in names)

    return {
        "families": len(families),
        "instances": total("instances"),
        "steps": total("steps"),
        "lemma_violations": total("lemma_violations"),
        "outside": total("outside"),
        "comparisons": len(ratios),
        "theorem_violations": sum(len(run["violated"]) for run in runs),
        "largest_ratio": max(ratios),
        "error_rate": measurements["error_rate"],
        "caught": total("caught"),
        "caught_share": total("caught") / total("instances"),
        "caught_share_tight": total("caught", TIGHT) / total("instances", TIGHT),
        "caught_by_theorem": total("caught_by_theorem"),
    }


def student(level: float) -> float:
    from scipy.stats import t

    return float(t.isf(level, SEEDS - 1))


def _family(number: int, draw_instance: Callable[[Generator], Instance], instances: int, quantile: float) -> Family:
    runs: dict[str, list[AgainstBound]] = {run: [] for run in _PLANS}
    slacks = []
    lemma_violations = outside = caught = caught_by_theorem = 0
    for index in range(instances):
        generator = torch.Generator().manual_seed(1000 * number + index)
        instance = draw_instance(generator)
        suspect = instance._replace(smoothness=wrong(instance.smoothness))
        lemma_catches = theorem_catches = False
        for run, draw_plan in _PLANS.items():
            plan = draw_plan(instance, generator)
            batch_size = None if run == "ngd" else round(log_uniform(1, 128, generator))
            path = walk(instance, plan, batch_size, 1 if batch_size is None else SEEDS, generator)
            slack, failures = _check_lemma(instance.smoothness, plan, path)
            slacks.append(slack)
            lemma_violations += failures
            outside += int((path.distances > instance.reach * (1 + TOLERANCE)).sum())
            lemma_catches |= _check_lemma(suspect.smoothness, plan, path)[1] > 0
            theorem_catches |= _compare(suspect, plan, batch_size, path, quantile).violated
            runs[run].append(_compare(instance, plan, batch_size, path, quantile))
        caught += lemma_catches
        caught_by_theorem += theorem_catches
    shares = np.concatenate(slacks)
    return {
        "instances": instances,
        "lemma": "Lemma 1" if isinstance(instance.smoothness, Smooth) else "Lemma 2",
        "steps": len(shares),
        "lemma_violations": lemma_violations,
        "outside": outside,
        "caught": caught,
        "caught_by_theorem": caught_by_theorem,
        "largest_lemma_ratio": float(1 - shares.min()),
        "slack": {"edges": _EDGES.tolist(), "counts": np.histogram(shares.clip(0, 1), _EDGES)[0].tolist()},
        "runs": {run: _as_lists(compared) for run, compared in runs.items()},
    }


def _as_lists(compared: Sequence[AgainstBound]) -> Compared:
    return {
        "theorem": compared[0].theorem,
        "lr": [_rounded(c.lr) for c in compared],
        "batch_size": [c.batch_size for c in compared],
        "steps": [c.steps for c in compared],
        "gap": [_rounded(c.gap) for c in compared],
        "mean": [_rounded(c.mean) for c in compared],
        "standard_error": [_rounded(c.standard_error) for c in compared],
        "bound": [_rounded(c.bound) for c in compared],
        "violated": [index for index, c in enumerate(compared) if c.violated],
    }


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def wrong(smoothness: Smoothness) -> Smoothness:
    """The same class with constants that are too small, to see that the checks find it."""
    if isinstance(smoothness, Smooth):
        return Smooth(smoothness.L / WRONG)
    return RelaxedSmooth(smoothness.L0 / WRONG, smoothness.L1 / WRONG)


def _best_lr(instance: Instance, steps: int) -> float:
    """√(cΔ/(kN)), for which the bound's progress and curvature terms are equal."""
    smoothness = instance.smoothness
    return sqrt(smoothness.factor * instance.gap / (smoothness.curvature * steps))


def _constant_plan(instance: Instance, generator: Generator) -> StagePlan:
    steps = round(log_uniform(8, 48, generator))
    lr = _best_lr(instance, steps) * log_uniform(0.2, 5, generator)
    return constant(min(lr, instance.smoothness.max_lr, instance.reach / steps), steps)


def _harmonic_plan(instance: Instance, generator: Generator) -> StagePlan:
    return harmonic(*_draw_harmonic(instance, generator))


def _harmonic_even_plan(instance: Instance, generator: Generator) -> StagePlan:
    return harmonic_even(*_draw_harmonic(instance, generator))


def _draw_harmonic(instance: Instance, generator: Generator) -> tuple[float, int, float]:
    """ρ, T and S."""
    stages, ratio = round(log_uniform(2, 5, generator)), log_uniform(1, 3, generator)
    travel = sum(stage.lr * stage.steps for stage in harmonic(1.0, stages, ratio))
    rho = _best_lr(instance, stages) * log_uniform(0.2, 5, generator)
    rho = min(rho, instance.smoothness.max_lr, instance.reach / travel)
    return rho, stages, ratio * rho


def _geometric_plan(instance: Instance, generator: Generator) -> StagePlan:
    """Corollary 2's plan, drawn again until it stays within reach and is not too long: its rates cannot be scaled."""
    while True:
        rho, stages = log_uniform(0.1, 0.45, generator), round(log_uniform(2, 4, generator))
        plan = geometric(rho, stages, rho * log_uniform(0.3, 3, generator))
        fits = sum(stage.lr * stage.steps for stage in plan) <= instance.reach
        if fits and rho <= instance.smoothness.max_lr and plan.steps <= 60:
            return plan


_PLANS: dict[str, Callable[[Instance, Generator], StagePlan]] = {
    "ngd": _constant_plan,
    "sngd": _constant_plan,
    "s-sngd:harmonic": _harmonic_plan,
    "s-sngd:geometric": _geometric_plan,
    "s-sngd:harmonic-even": _harmonic_even_plan,
}


class Walk(NamedTuple):
    """What the checks need of the iterates w_0 … w_N of several seeds."""

    values: Tensor  # F(w_t), (N + 1, seeds)
    norms: Tensor  # ‖∇F(w_t)‖, (N, seeds), as all below
    errors: Tensor  # ‖∇F(w_t) − g_t‖
    distances: Tensor  # ‖w_{t+1} − w_0‖


def walk(instance: Instance, plan: StagePlan, batch_size: int | None, seeds: int, generator: Generator) -> Walk:
    """Run the plan with the library's optimizer, once for each seed; gradients are evaluated for all seeds at once.

    Args:
        batch_size: b samples drawn with replacement, or None for all samples once.
    """
    weights = instance.start.repeat(seeds, 1)
    params = [nn.Parameter(row) for row in weights]  # views: the optimizers' steps are seen in `weights`
    optimizers = [SNGD([w], lr=plan[0].lr) for w in params]
    schedulers = [StagewiseLR(optimizer, plan) for optimizer in optimizers]
    values, norms, errors, distances = [], [], [], []
    for _ in range(plan.steps):
        value, gradient = _value_and_gradient(instance, weights, instance.samples)
        estimate = gradient
        if batch_size is not None:
            drawn = torch.randint(len(instance.samples), (seeds, batch_size), generator=generator)
            _, estimate = _value_and_gradient(instance, weights, instance.samples[drawn])
        for w, g in zip(params, estimate, strict=True):
            w.grad = g
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        values.append(value)
        norms.append(gradient.norm(dim=1))
        errors.append((gradient - estimate).norm(dim=1))
        distances.append((weights - instance.start).norm(dim=1))
    values.append(instance.value(weights))
    return Walk(*(torch.stack(rows) for rows in (values, norms, errors, distances)))


def _value_and_gradient(instance: Instance, weights: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    w = weights.clone().requires_grad_()
    values = instance.losses(w, samples).mean(-1)
    (gradient,) = torch.autograd.grad(values.sum(), w)
    return values.detach(), gradient


def _check_lemma(smoothness: Smoothness, plan: StagePlan, path: Walk) -> tuple[np.ndarray, int]:
    """(right side − ‖∇F(w)‖)/right side at every step, and how often the lemma fails beyond rounding."""
    slacks, failures = [], 0
    values, norms, errors = path.values.tolist(), path.norms.tolist(), path.errors.tolist()
    for t, step in enumerate(zip(values, values[1:], norms, errors, strict=False)):
        lr = plan.lr_at(t)
        for value, next_value, norm, error in zip(*step, strict=True):
            if isinstance(smoothness, Smooth):
                right = lemma1(smoothness, value, next_value, lr, error)
            else:
                right = lemma2(smoothness, value, next_value, lr, error)
            failures += norm > right + TOLERANCE * (norm + abs(value) / lr)
            slacks.append(1 - norm / right)
    return np.array(slacks), failures


def _compare(instance: Instance, plan: StagePlan, batch_size: int | None, path: Walk, quantile: float) -> AgainstBound:
    """E‖∇F(w̄)‖ over the drawn output exactly and over the seeds in the mean, against the theorem's bound."""
    weights = torch.tensor([plan.iterate_weight(t) for t in range(plan.steps)], dtype=torch.float64)
    gaps = (weights / weights.sum()) @ path.norms
    mean, error = gaps.mean().item(), 0.0
    if len(gaps) > 1:
        error = gaps.std().item() / sqrt(len(gaps))
    theorem, gap, bound = _bound(instance, plan, batch_size, path)
    violated = mean - bound.total > quantile * error + TOLERANCE * bound.total
    return AgainstBound(theorem, plan[0].lr, batch_size, plan.steps, gap, mean, error, bound.total, violated)


def _bound(instance: Instance, plan: StagePlan, batch_size: int | None, path: Walk) -> tuple[str, float, Bound]:
    smoothness, relaxed = instance.smoothness, isinstance(instance.smoothness, RelaxedSmooth)
    sigma, b = (0.0, 1) if batch_size is None else (instance.sigma, batch_size)
    if len(plan) == 1:
        bound = sngd_bound(smoothness, sigma=sigma, gap=instance.gap, lr=plan[0].lr, batch_size=b, steps=plan.steps)
        return f"Theorem {1 + relaxed}", instance.gap, bound
    if all(stage.weight == stage.steps * stage.lr for stage in plan):  # the start alone counts
        bound = stagewise_bound(smoothness, sigma=sigma, gap=instance.gap, plan=plan, batch_size=b)
        return f"Remark 1 to Theorem {3 + relaxed}", instance.gap, bound
    starts = [0, *np.cumsum([stage.steps for stage in plan])[:-1]]
    gap = instance.gap + (path.values[starts].max() - path.values[0, 0]).item()
    bound = stagewise_bound(smoothness, sigma=sigma, gap=gap, plan=plan, batch_size=b)
    return f"Theorem {3 + relaxed}", gap, bound


def draw(measurements: Conformance, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``conformance.png`` and ``.svg`` of what ``measure`` returned into ``folder`` (made if absent).

    Returns:
        The files written, in that order.
    """
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    with plain_style():
        figure = Figure(figsize=(13, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_theorems(left, measurements["families"])
        _draw_lemmas(right, measurements["families"])
        total = summary(measurements)
        figure.suptitle(
            f"{total['instances']} random instances with known constants\n{total['theorem_violations']} of "
            f"{total['comparisons']:,} comparisons violate Theorems 1–4; "
            f"{total['lemma_violations']} of {total['steps']:,} steps violate Lemmas 1 and 2",
            fontsize=11,
        )
        return save(figure, Path(folder) / "conformance")


_MARKERS = {"ngd": "x", "sngd": "o", "s-sngd:harmonic": "^", "s-sngd:geometric": "s", "s-sngd:harmonic-even": "v"}


def _draw_theorems(ax: Axes, families: Mapping[str, Family]) -> None:
    look = styles(tuple(families))
    for name, family in families.items():
        for run, marker in _MARKERS.items():
            found, color = family["runs"][run], look[name].color
            bounds, means = found["bound"], found["mean"]
            ax.scatter(bounds, means, s=6, marker=marker, color=color, alpha=0.5, linewidths=0.5, rasterized=True)
        ax.scatter([], [], color=look[name].color, s=25, label=name)
    for run, marker in _MARKERS.items():
        ax.scatter([], [], color="#555555", s=25, marker=marker, label=run)
    ax.axline((1, 1), slope=1, color="black", linewidth=0.8, label="measured = bound")
    ax.set(xscale="log", yscale="log", xlabel="bound (Theorems 1–4)", ylabel="measured E‖∇F(w̄)‖")
    ax.set_title("nothing may lie above the line", fontsize=10)
    ax.set_axisbelow(True)
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.legend(fontsize=8, ncols=2, loc="lower right")


def _draw_lemmas(ax: Axes, families: Mapping[str, Family]) -> None:
    look = styles(tuple(families))
    for name, family in families.items():
        slack, caught = family["slack"], f"{family['caught']}/{family['instances']}"
        shares = np.array(slack["counts"]) / family["steps"]
        label = f"{name}: {caught}"
        ax.stairs(shares.cumsum(), slack["edges"], color=look[name].color, linewidth=1.4, label=label, baseline=None)
    ax.set(xlabel="slack of the lemma, 1 − ‖∇F(w)‖/right side", ylabel="share of steps with at most this slack")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_title("how sharp Lemmas 1 and 2 are at single steps", fontsize=10)
    ax.set_axisbelow(True)
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.legend(fontsize=8, title=f"caught with L/{WRONG}, of instances", title_fontsize=8, loc="upper left")


def judge(checked: Conformance, scaled: Scaling) -> Evidence:
    """C7 from the measurements of ``conformance``, with the exponents of ``scaling`` as context."""
    found = summary(checked)
    tight = [checked["families"][name] for name in TIGHT]
    instances = sum(f["instances"] for f in tight)
    caught = share_interval(sum(f["caught"] for f in tight), instances)
    quantities = (
        never("steps at which Lemma 1 or 2 fails", found["lemma_violations"], found["steps"], essential=True),
        never(
            "comparisons in which E‖∇F(w̄)‖ is above the bound of its theorem",
            found["theorem_violations"],
            found["comparisons"],
            essential=True,
        ),
        never("iterates where the constants need not hold", found["outside"], found["steps"]),
        at_least(
            "share of the instances with tight constants in which a lemma catches L/4",
            caught,
            0.5,
            reach=reach_of_share(instances, 0.5),
        ),
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


def _exponents(scaled: Scaling) -> Iterator[Quantity]:
    for problem, methods in scaling_summary(scaled).items():
        for method, found in methods.items():
            slope = slope_interval(found)
            if slope is None:
                continue
            name = f"exponent of the target in oracle calls, {method}, {problem}"
            notes = f"theory: {found['theory']:.3g}, the plans': {found['planned_slope']:.3g}"
            yield reported(f"{name} ({notes}; {100 * scaled['level']:g} % interval)", slope)
