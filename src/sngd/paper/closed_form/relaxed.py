"""Claim C9: SNGD handles (L0, L1)-smooth objectives without clipping, measured where L = ∞.

F(w) = Σ (cosh w_i − 1) has L0 = L1 = 1 and no L. Runs start in random directions from its minimum, so far out that
‖∇F(w_0)‖ is 1, 10, 100, …, and have one budget of oracle calls at each learning rate of their method's grid. There are
three methods: SGD; SNGD; and SGD with clipping, which is the capped step min{α/‖g‖, β} g with β = 1/L0.

Which of SGD's rates are comparable to SNGD's? Both methods are to reach ‖∇F‖ = τ. There SGD's step has length lr·τ and
SNGD's lr, so SGD's rates from α/τ to α′/τ give steps as long as SNGD's rates from α to α′. SGD's comparable rates are
those between α/τ and α′/τ, where α and α′ are the smallest and the largest rate of SNGD that reach τ from every start.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from math import exp, log, log10
from pathlib import Path
from statistics import fmean, linear_regression
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from sngd.checks import check_one_of
from sngd.diagnose.interval import Interval, mean_interval
from sngd.optim.sngd import SNGD
from sngd.paper.closed_form.share_done import steps as each
from sngd.paper.verdicts import (
    LEVEL,
    Evidence,
    Quantity,
    above,
    at_most,
    error_rate,
    every,
    never,
    reach_of_mean,
    reported,
)
from sngd.problems.analytic import Analytic, relaxed_smooth
from sngd.studies.figures import plain_style, save, styles
from sngd.theory import RelaxedSmooth, sngd_bound
from sngd.training.schema import Count, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIM, L0, L1 = 10, 1.0, 1.0
SIGMA, BATCH_SIZE = 0.5, 1  # a step is an oracle call
TARGET = 0.5  # τ, as large as the noise
CAP = 1 / L0  # β of the clipped method
PATIENCE = 200_000  # steps after which a run without budget is stopped

_SGD, _SNGD, _CLIPPED = METHODS = ("SGD", "SNGD", "clipped SGD")


class Size(NamedTuple):
    seeds: int
    gradients: tuple[float, ...]  # ‖∇F(w_0)‖
    steps: int
    lrs: dict[str, tuple[float, ...]]


_NORMALIZED_LRS = (0.01, 0.03, 0.1, 0.3, 1.0)
SIZES = {
    "quick": Size(
        3,
        (1.0, 1e4),
        300,
        {_SGD: (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0), _SNGD: (0.1, 0.3), _CLIPPED: (0.1, 0.3)},
    ),
    "small": Size(
        5,
        (1.0, 1e1, 1e2, 1e3, 1e4, 1e5),
        1000,
        {
            _SGD: (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
            _SNGD: _NORMALIZED_LRS,
            _CLIPPED: _NORMALIZED_LRS,
        },
    ),
}


class RunsMeasured(TypedDict):
    """A method with one learning rate from one start; lists have a value a seed, see ``measure``."""

    method: str
    lr: Positive
    gradient: Positive
    diverged: list[bool]
    calls: list[Count | None]
    final: list[float | None]
    mean: list[float | None]
    bound: list[float | None]


class Patient(TypedDict):
    """SGD without a budget; a value a seed, see ``measure``."""

    lrs: list[Positive | None]
    calls: list[Count | None]


class Relaxed(TypedDict):
    """What ``measure`` returns."""

    profile: str
    seeds: Count
    steps: Count
    target: Positive
    gradients: list[Positive]
    lrs: dict[str, list[Positive]]
    runs: list[RunsMeasured]
    patient: list[Patient]


def measure(profile: str = "quick") -> Relaxed:
    """Measure claim C9; everything in the returned dict can be written as JSON.

    Args:
        profile: ``quick`` (seconds) or ``small`` (minutes).

    Returns:
        * ``profile``, ``seeds``, ``steps`` (of every run that does not diverge; an oracle call each), ``target`` τ,
          ``gradients``: the values of ‖∇F(w_0)‖, ascending; ``lrs``: method → its grid, ascending.
        * ``runs``: a list with a dict for each ``method``, ``lr`` and ``gradient``; its lists have a value a seed:
          ``diverged``: F was no longer finite; ``calls`` until ‖∇F(w_t)‖ ≤ τ for the first time, or None;
          ``final``: mean ‖∇F(w_t)‖ over the last tenth of the steps; ``mean``: over all of them (both None if
          diverged); ``bound``: Theorem 2's, for SNGD with lr ≤ 1/(2 L1), else None.
        * ``patient``: for each gradient the lists ``lrs`` and ``calls``, a value a seed: SGD at the largest rate of
          its grid that does not diverge there (None: all diverge), and its calls until ‖∇F(w_t)‖ ≤ τ without a budget
          (None: more than 200,000).

    Raises:
        ValueError: no such profile.
    """
    check_one_of("profile", profile, SIZES)
    settings = SIZES[profile]
    runs = [
        _runs(settings, method, lr, gradient)
        for gradient in each(settings.gradients)
        for method in each(METHODS)
        for lr in each(settings.lrs[method])
    ]
    return {
        "profile": profile,
        "seeds": settings.seeds,
        "steps": settings.steps,
        "target": TARGET,
        "gradients": list(settings.gradients),
        "lrs": {method: list(lrs) for method, lrs in settings.lrs.items()},
        "runs": runs,
        "patient": [_measure_unbudgeted(settings, runs, gradient) for gradient in settings.gradients],
    }


def _runs(settings: Size, method: str, lr: float, gradient: float) -> RunsMeasured:
    outcomes = [_run(settings.steps, method, lr, gradient, seed) for seed in range(settings.seeds)]
    return {
        "method": method,
        "lr": lr,
        "gradient": gradient,
        "diverged": [outcome.diverged for outcome in outcomes],
        "calls": [outcome.calls for outcome in outcomes],
        "final": [outcome.final for outcome in outcomes],
        "mean": [outcome.mean for outcome in outcomes],
        "bound": [outcome.bound for outcome in outcomes],
    }


class _Outcome(NamedTuple):
    """What one seed gives to the lists of ``RunsMeasured``."""

    diverged: bool
    calls: int | None
    final: float | None
    mean: float | None
    bound: float | None


def _run(steps: int, method: str, lr: float, gradient: float, seed: int) -> _Outcome:
    analytic = _problem(gradient, seed)
    norms = list(islice(_gradient_norms(analytic, method, lr, seed), steps))
    diverged = len(norms) < steps
    tail = norms[-max(1, steps // 10) :]
    return _Outcome(
        diverged=diverged,
        calls=_first_reached(norms),
        final=None if diverged else fmean(tail),
        mean=None if diverged else fmean(norms),
        bound=_bound(analytic.gap, lr, steps) if method == _SNGD else None,
    )


def _problem(gradient: float, seed: int) -> Analytic:
    """The objective with a start in a random direction, at the distance where ‖∇F(w_0)‖ = ``gradient``."""
    direction = torch.randn(DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = 0.0, (1 + math.asinh(gradient * L1 / L0)) / (L1 * direction.abs().max().item())
    for _ in range(60):  # bisection: along a ray the norm grows
        middle = (low + high) / 2
        low, high = (middle, high) if _gradient_norm(middle * direction) < gradient else (low, middle)
    return relaxed_smooth(DIM, L0=L0, L1=L1, start=high * direction, sigma=SIGMA, dtype=torch.float64)


def _gradient_norm(w: Tensor) -> float:
    return float(L0 / L1 * (L1 * w).sinh().norm())


def _gradient_norms(analytic: Analytic, method: str, lr: float, seed: int) -> Iterator[float]:
    """‖∇F(w_0)‖, ‖∇F(w_1)‖, …; ends where a run diverges."""
    problem = analytic.problem
    model = problem.build_model()
    (w,) = model.parameters()
    optimizer = _optimizer(method, w, lr)
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = problem.train
    while math.isfinite(norm := _gradient_norm(w.detach())):
        yield norm
        batch = torch.randint(problem.n, (BATCH_SIZE,), generator=generator)
        optimizer.zero_grad()
        problem.loss(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()


def _optimizer(method: str, w: Tensor, lr: float) -> Optimizer:
    if method == _SGD:
        return SGD([w], lr=lr)
    return SNGD([w], lr=lr, max_scale=CAP if method == _CLIPPED else math.inf)


def _first_reached(norms: Sequence[float]) -> int | None:
    return next((t for t, norm in enumerate(norms) if norm <= TARGET), None)


def _bound(gap: float, lr: float, steps: int) -> float | None:
    smoothness = RelaxedSmooth(L0, L1)
    if lr > smoothness.max_lr:
        return None
    return sngd_bound(smoothness, sigma=SIGMA, gap=gap, lr=lr, batch_size=BATCH_SIZE, steps=steps).total


def _measure_unbudgeted(settings: Size, runs: Sequence[RunsMeasured], gradient: float) -> Patient:
    lrs = [_largest_stable(runs, _SGD, gradient, seed) for seed in range(settings.seeds)]
    calls = [_calls_without_budget(gradient, seed, lr) for seed, lr in enumerate(lrs)]
    return {"lrs": lrs, "calls": calls}


def _largest_stable(runs: Sequence[RunsMeasured], method: str, gradient: float, seed: int) -> float | None:
    """The largest rate of the grid up to which no rate diverges; None if the smallest does."""
    stable = None
    for run in _runs_of(runs, method, gradient):
        if run["diverged"][seed]:
            break
        stable = run["lr"]
    return stable


def _runs_of(runs: Sequence[RunsMeasured], method: str, gradient: float) -> list[RunsMeasured]:
    """A method's runs from one start, with ascending lr."""
    return [run for run in runs if run["method"] == method and run["gradient"] == gradient]


def _calls_without_budget(gradient: float, seed: int, lr: float | None) -> int | None:
    if lr is None:
        return None
    norms = islice(_gradient_norms(_problem(gradient, seed), _SGD, lr, seed), PATIENCE + 1)
    return next((t for t, norm in enumerate(norms) if norm <= TARGET), None)


# ---- judged --------------------------------------------------------------------------------------------------


def judge(measurements: Relaxed) -> Evidence:
    """The evidence on C9 in what ``measure`` returned."""
    runs, gradients, seeds = measurements["runs"], measurements["gradients"], measurements["seeds"]
    lr, far = _best_single_rate(measurements, _SNGD), f"from ‖∇F(w_0)‖ = {gradients[-1]:g}"
    diverging = [diverged for run in runs if run["method"] == _SNGD for diverged in run["diverged"]]
    reached = [hit for gradient in gradients for hit in _reaches_target(measurements, _SNGD, lr, gradient)]
    over_bound = [_ratio_to_bound(run) for run in runs if run["method"] == _SNGD and run["bound"][0] is not None]
    comparable = _comparable(measurements)
    thrown = [d for run in _runs_of(runs, _SGD, gradients[-1]) if run["lr"] in comparable for d in run["diverged"]]
    exponents = [_stability_exponent(measurements, seed) for seed in range(seeds)]
    ratios = _unbudgeted_ratios(measurements)
    tuned = _tuned_calls(measurements)
    quantities = [
        never("runs of SNGD that diverge, at any lr", sum(diverging), len(diverging), essential=True),
        every(
            f"runs of SNGD with lr {lr:g}, from all starts, that end with ‖∇F‖ ≤ {measurements['target']:g}",
            sum(reached),
            len(reached),
            essential=True,
        ),
        never(
            "mean ‖∇F‖ of SNGD above Theorem 2's bound",
            sum(low > 1 for low in over_bound),
            len(over_bound),
            essential=True,
        ),
        every(
            f"runs of SGD at comparable rates ({_join(comparable)}) {far} that diverge",
            sum(thrown),
            len(thrown),
            essential=True,
        ),
        at_most(
            "exponent of ‖∇F(w_0)‖ in SGD's largest stable lr (theory: −1)",
            mean_interval(exponents, LEVEL),
            -0.5,
            reach=reach_of_mean(exponents),
        ),
        above(
            f"calls of SGD without budget, at its largest stable lr, over SNGD's {far}",
            Interval(*map(exp, mean_interval(ratios, LEVEL))),
            1,
            reach=exp(reach_of_mean(ratios)) - 1,
        ),
        *_context(measurements, tuned),
    ]
    tame = [gradient for gradient, calls in zip(gradients, tuned, strict=True) if calls is not None]
    return Evidence(
        profile=measurements["profile"],
        quantities=tuple(quantities),
        test=f"counts of runs; Student's t over {seeds} seeds for means, ratios (of logarithms) and bounds",
        error_rate=error_rate(1 + len(over_bound) / 2),
        departures=(
            f"a closed-form objective in {DIM} dimensions with L0 = L1 = 1, batch size {BATCH_SIZE} and noise "
            f"σ = {SIGMA:g}; the paper names no objective",
            "SGD diverges for where it starts, not everywhere: with a rate tuned to the start it reaches the target "
            f"within the budget from ‖∇F(w_0)‖ = {_join(tame) or 'none of the starts'}",
        ),
    )


def _reaches_target(measurements: Relaxed, method: str, lr: float, gradient: float) -> list[bool]:
    """For each seed: is the mean ‖∇F‖ of the last tenth at most the target?"""
    final = _runs_at(measurements, method, lr, gradient)["final"]
    return [value is not None and value <= measurements["target"] for value in final]


def _runs_at(measurements: Relaxed, method: str, lr: float, gradient: float) -> RunsMeasured:
    (run,) = (run for run in _runs_of(measurements["runs"], method, gradient) if run["lr"] == lr)
    return run


def _mean_calls(measurements: Relaxed, method: str, lr: float, gradient: float) -> float | None:
    """Mean over seeds of the calls until the target; None if a seed does not end there."""
    if not all(_reaches_target(measurements, method, lr, gradient)):
        return None
    return fmean(calls for calls in _runs_at(measurements, method, lr, gradient)["calls"] if calls is not None)


def _best_single_rate(measurements: Relaxed, method: str) -> float:
    """The method's best single rate: most runs at the target, then fewest calls from the farthest start."""
    gradients = measurements["gradients"]

    def cost(lr: float) -> tuple[int, float]:
        hits = sum(hit for gradient in gradients for hit in _reaches_target(measurements, method, lr, gradient))
        return -hits, _mean_calls(measurements, method, lr, gradients[-1]) or math.inf

    return float(min(measurements["lrs"][method], key=cost))


def _comparable(measurements: Relaxed) -> list[float]:
    """SGD's rates from α/τ to α′/τ, see the module's docstring; empty if no rate of SNGD reaches τ from everywhere."""
    lrs, target = measurements["lrs"], measurements["target"]
    good = [
        lr / target
        for lr in lrs[_SNGD]
        if all(all(_reaches_target(measurements, _SNGD, lr, gradient)) for gradient in measurements["gradients"])
    ]
    return [lr for lr in lrs[_SGD] if good and min(good) <= lr <= max(good)]


def _ratio_to_bound(run: RunsMeasured) -> float:
    """Lower end of the interval of measured mean over bound; infinite if a run diverged."""
    pairs = zip(run["mean"], run["bound"], strict=True)
    ratios = [mean / bound for mean, bound in pairs if mean is not None and bound is not None]
    return mean_interval(ratios, LEVEL).low if len(ratios) == len(run["mean"]) else math.inf


def _stability_exponent(measurements: Relaxed, seed: int) -> float:
    """Least-squares slope of log lr against log ‖∇F(w_0)‖; where every rate diverges, the smallest counts."""
    smallest, patient = measurements["lrs"][_SGD][0], measurements["patient"]
    stable = [log10(at_start["lrs"][seed] or smallest) for at_start in patient]
    return linear_regression([log10(gradient) for gradient in measurements["gradients"]], stable).slope


def _tuned_calls(measurements: Relaxed) -> list[float | None]:
    """For each start the fewest mean calls of SGD at any of its rates, within the budget."""
    at_starts = (
        [_mean_calls(measurements, _SGD, lr, gradient) for lr in measurements["lrs"][_SGD]]
        for gradient in measurements["gradients"]
    )
    return [min((calls for calls in at_start if calls is not None), default=None) for at_start in at_starts]


def _unbudgeted_ratios(measurements: Relaxed) -> list[float]:
    """Logarithms, one a seed; a run that was given up, or has no stable rate, counts as ``PATIENCE``."""
    lr, farthest = _best_single_rate(measurements, _SNGD), measurements["gradients"][-1]
    slow = [calls or PATIENCE for calls in measurements["patient"][-1]["calls"]]
    quick = [calls or measurements["steps"] for calls in _runs_at(measurements, _SNGD, lr, farthest)["calls"]]
    return [log(a / b) for a, b in zip(slow, quick, strict=True)]


def _context(measurements: Relaxed, tuned: Sequence[float | None]) -> Iterator[Quantity]:
    """What SGD tuned to each start, and SGD with clipping, do: nothing is required of it."""
    gradients = measurements["gradients"]
    lr, clipped = (_best_single_rate(measurements, method) for method in (_SNGD, _CLIPPED))
    own = [_mean_calls(measurements, _SNGD, lr, gradient) for gradient in gradients]
    pairs = [(theirs, ours) for theirs, ours in zip(tuned, own, strict=True) if theirs is not None]
    yield reported(
        "starts from which a rate of SGD, tuned to the start, ends at the target", len(pairs), len(gradients)
    )
    yield reported(
        "of these, starts with fewer calls than SNGD's", sum(o is None or t < o for t, o in pairs), len(pairs)
    )
    theirs = _mean_calls(measurements, _CLIPPED, clipped, gradients[-1])
    if theirs and own[-1]:
        far = f"from ‖∇F(w_0)‖ = {gradients[-1]:g}"
        yield reported(f"calls of SNGD over those of clipped SGD (lr {clipped:g}) {far}", own[-1] / theirs)


def _join(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


# ---- drawn ---------------------------------------------------------------------------------------------------


def draw(measurements: Relaxed, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``relaxed.png`` and ``relaxed.svg`` of what ``measure`` returned into ``folder`` (made if absent).

    Returns:
        The files written, in that order.
    """
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    with plain_style():
        figure = Figure(figsize=(15, 5.2), layout="constrained")
        stable, calls, final = figure.subplots(1, 3)
        _draw_stable(stable, measurements)
        _draw_calls(calls, measurements)
        _draw_final(final, measurements)
        figure.suptitle(
            f"Where L = ∞: F(w) = Σ (cosh w_i − 1), L0 = L1 = 1 ({measurements['profile']} profile)\n"
            f"mean of {measurements['seeds']} seeds; {measurements['steps']} oracle calls a run",
            fontsize=11,
        )
        return save(figure, Path(folder) / "relaxed")


_MARKERS: dict[str, dict[str, Any]] = {  # Any: arguments of matplotlib's, of several types
    _SGD: {"marker": "o"},
    _SNGD: {"marker": "^", "markersize": 5},
    _CLIPPED: {"marker": "s", "markersize": 10, "markerfacecolor": "white"},  # mostly hidden under SNGD's
}


def _draw_stable(ax: Axes, measurements: Relaxed) -> None:
    gradients, seeds, look = measurements["gradients"], range(measurements["seeds"]), styles(METHODS)
    for method in (_SGD, _SNGD):
        lrs = measurements["lrs"][method]
        stable = [[_largest_stable(measurements["runs"], method, g, s) or lrs[0] for s in seeds] for g in gradients]
        means = [exp(fmean(map(log, at_start))) for at_start in stable]
        label = f"{method}; largest tried: {lrs[-1]:g}"
        ax.plot(gradients, means, color=look[method].color, label=label, **_MARKERS[method])
    theory = [2 / (L0 + L1 * gradient) for gradient in gradients]
    ax.plot(gradients, theory, color="black", linewidth=0.9, dashes=(1, 2), label="2/(L0 + L1‖∇F(w_0)‖)")
    _axes(ax, "‖∇F(w_0)‖", "lr", "largest learning rate that does not diverge")


def _draw_calls(ax: Axes, measurements: Relaxed) -> None:
    gradients, look = measurements["gradients"], styles(METHODS)
    for method in (_CLIPPED, _SNGD):
        lr = _best_single_rate(measurements, method)
        calls = [_mean_calls(measurements, method, lr, gradient) or math.nan for gradient in gradients]
        label = f"{method}, lr {lr:g} from every start"
        ax.plot(gradients, calls, color=look[method].color, label=label, **_MARKERS[method])
    tuned = [calls or math.nan for calls in _tuned_calls(measurements)]
    ax.plot(gradients, tuned, color=look[_SGD].color, marker="o", label="SGD, best lr for each start")
    slow = [fmean(calls or PATIENCE for calls in at_start["calls"]) for at_start in measurements["patient"]]
    label = "SGD, largest stable lr, no budget"
    ax.plot(gradients, slow, color=look[_SGD].color, marker="o", markerfacecolor="white", dashes=(5, 2), label=label)
    ax.axhline(measurements["steps"], color="#999999", linewidth=0.8)
    ax.annotate("budget", (gradients[0], measurements["steps"]), (0, 3), textcoords="offset points", fontsize=8)
    _axes(ax, "‖∇F(w_0)‖", "oracle calls", f"oracle calls until ‖∇F(w)‖ ≤ {measurements['target']:g}")


def _draw_final(ax: Axes, measurements: Relaxed) -> None:
    farthest, look = measurements["gradients"][-1], styles(METHODS)
    roof = 10 * farthest
    for method in (_SGD, _CLIPPED, _SNGD):
        runs = _runs_of(measurements["runs"], method, farthest)
        kept = [(run["lr"], mean) for run in runs if (mean := _mean_final(run)) is not None]
        lost = [run["lr"] for run in runs if None in run["final"]]
        if kept:
            ax.plot(*zip(*kept, strict=True), color=look[method].color, label=method, **_MARKERS[method])
        if lost:
            label = f"{method}: diverges"
            ax.plot(lost, [roof] * len(lost), color=look[method].color, marker="x", linestyle="", label=label)
    if comparable := _comparable(measurements):
        ax.axvspan(
            min(comparable) / 1.2, max(comparable) * 1.2, color="#dddddd", alpha=0.6, label="comparable lr of SGD"
        )
    ax.axhline(measurements["target"], color="#999999", linewidth=0.8)
    ax.annotate(
        "target", (measurements["lrs"][_SGD][0], measurements["target"]), (0, 3), textcoords="offset points", fontsize=8
    )
    _axes(ax, "lr", "mean ‖∇F‖ over the last tenth", f"from ‖∇F(w_0)‖ = {farthest:g}")


def _mean_final(run: RunsMeasured) -> float | None:
    """Mean over the seeds; None if one diverged."""
    final = [norm for norm in run["final"] if norm is not None]
    return fmean(final) if len(final) == len(run["final"]) else None


def _axes(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    ax.set_title(title, fontsize=10)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
    ax.legend(fontsize=8)
