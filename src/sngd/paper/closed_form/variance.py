"""Claim C10: the variance of SPIDER's estimator grows with the learning rate α, that of SNGD's mini-batch does not.

SPIDER begins a period of M steps with an anchor, the mean gradient of B samples, and adds a difference of gradients at
each later step. Eq. 15 bounds E‖μ_m − ∇F(w_m)‖² in step m of a period by (m − 1) α² L²/b + σ²/B. Here μ and ∇F are both
computed at every iterate of runs with normalized steps of length α. The growth is seen best in the *drift*,
E‖e_m − e_1‖² with e_m = μ_m − ∇F(w_m). The errors are a martingale, so the drift is E‖e_m‖² − E‖e_1‖². This is what the
steps add to the anchor's error, and its share of the bound is (m − 1) α² L²/b.

There are three problems. For *waves*, σ² and L are known and σ² is the same at every w, so that only the estimator can
change a variance. For *least squares*, L is known. For *digits*, a network, neither is known.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from math import log10
from pathlib import Path
from statistics import fmean, linear_regression
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from sngd.checks import check_one_of
from sngd.diagnose.interval import mean_interval
from sngd.estimators import Full, MiniBatch, Spider
from sngd.optim.sngd import SNGD
from sngd.paper.closed_form.share_done import steps as each
from sngd.paper.verdicts import (
    LEVEL,
    Answer,
    Evidence,
    Quantity,
    above,
    between,
    error_rate,
    never,
    reach_of_mean,
    reported,
)
from sngd.problems.problem import Problem
from sngd.problems.registry import load_problem
from sngd.studies.figures import plain_style, save
from sngd.theory import Smooth, spider_variance
from sngd.training.schema import Count, NonNegative, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Case(NamedTuple):
    """A problem, its L in mean square and its σ (None: not known), and the sizes of its batches."""

    problem: Problem
    L: float | None
    sigma: float | None
    anchor_batch_size: int  # B
    batch_size: int  # b
    period: int  # M


class Size(NamedTuple):
    seeds: int
    periods: int
    lrs: tuple[float, ...]


SIZES = {
    "quick": Size(6, 2, (0.001, 0.03, 1.0)),
    "small": Size(10, 5, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
}


def waves(dim: int = 40, n: int = 500) -> Case:
    """f(w; θ) = ‖w‖²/4 + ½ Σ_i sin(2w_i + θ_i) with phases evenly spaced on the circle: F(w) = ‖w‖²/4.

    For every w, E‖∇f − ∇F‖² = Σ_i E cos²(2w_i + θ_i) = d/2 = σ². And E‖∇f(u; θ) − ∇f(w; θ)‖² =
    ¼‖u − w‖² + Σ_i (1 − cos(2u_i − 2w_i)) ≤ (¼ + 2)‖u − w‖², so L = 3/2 in mean square, attained by short steps.
    """
    generator = torch.Generator().manual_seed(0)
    circle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    phases = torch.stack([circle[torch.randperm(n, generator=generator)] for _ in range(dim)], 1)
    problem = Problem(lambda: _Waves(dim), _mean, (phases, torch.zeros(n)), name="waves")
    return Case(problem, L=1.5, sigma=math.sqrt(dim / 2), anchor_batch_size=256, batch_size=8, period=16)


class _Waves(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((dim,), 3.0, dtype=torch.float64))

    def forward(self, phases: Tensor) -> Tensor:
        return self.w.square().sum() / 4 + (2 * self.w + phases).sin().sum(1) / 2


def _mean(outputs: Tensor, _targets: Tensor) -> Tensor:
    return outputs.mean()


def least_squares(dim: int = 10, n: int = 500) -> Case:
    """f(w; x, y) = ½(⟨x, w⟩ − y)² with normal x, y = Σ_i x_i + noise; L² = λ_max(E‖x‖² x xᵀ) in mean square."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64) / dim**0.5
    y = x.sum(1) + torch.randn(n, generator=generator, dtype=torch.float64)
    squares = (x.T * x.square().sum(1)) @ x / n
    problem = Problem(lambda: _Linear(dim), _half_squares, (x, y), name="least squares")
    L = torch.linalg.eigvalsh(squares)[-1].sqrt().item()
    return Case(problem, L=L, sigma=None, anchor_batch_size=256, batch_size=8, period=16)


class _Linear(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((dim,), 2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def _half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().mean()


def digits() -> Case:
    """The perceptron on handwritten digits, with the paper's B = 1024 and M = B/(2b) at b = 32."""
    problem = load_problem("digits-mlp")
    return Case(problem, L=None, sigma=None, anchor_batch_size=1024, batch_size=32, period=16)


CASES: dict[str, Callable[[], Case]] = {"waves": waves, "least squares": least_squares, "digits": digits}


Errors = list[list[NonNegative]]  # over learning rates, over seeds


class CaseMeasured(TypedDict):
    """The errors on one problem, see ``measure``."""

    L: Positive | None
    sigma: NonNegative | None
    anchor_batch_size: Count
    batch_size: Count
    period: Count
    spider: Errors
    anchor: Errors
    drift: Errors
    beside: Errors
    sngd: Errors


class Variance(TypedDict):
    """What ``measure`` returns."""

    profile: str
    seeds: Count
    periods: Count
    lrs: list[Positive]
    problems: dict[str, CaseMeasured]


def measure(profile: str = "quick") -> Variance:
    """Measure claim C10; everything in the returned dict can be written as JSON.

    Args:
        profile: ``quick`` (seconds) or ``small`` (minutes).

    Returns:
        * ``profile``, ``seeds``, ``periods`` (of a run, that of SNGD has as many steps), ``lrs``: α, ascending.
        * ``problems``: name → dict of ``L``, ``sigma`` (or None), ``anchor_batch_size`` B, ``batch_size`` b, ``period``
          M, and the mean squared errors, each a list over α of lists over seeds:
            * ``spider``: ‖μ_M − ∇F‖² in the last step of a period, ``anchor``: in the first, ``drift``: see the module;
            * ``beside``: of a mini-batch gradient of size b at all of the same iterates;
            * ``sngd``: of the mini-batch gradients that SNGD itself steps along, in a run of its own.

    Raises:
        ValueError: no such profile.
    """
    check_one_of("profile", profile, SIZES)
    settings = SIZES[profile]
    return {
        "profile": profile,
        "seeds": settings.seeds,
        "periods": settings.periods,
        "lrs": list(settings.lrs),
        "problems": {name: _measure_case(case(), settings) for name, case in each(CASES.items())},
    }


def _measure_case(case: Case, settings: Size) -> CaseMeasured:
    seeds = range(settings.seeds)
    spider = [[_spider_errors(case, lr, settings.periods, seed) for seed in seeds] for lr in each(settings.lrs)]
    return {
        "L": case.L,
        "sigma": case.sigma,
        "anchor_batch_size": case.anchor_batch_size,
        "batch_size": case.batch_size,
        "period": case.period,
        "spider": [[errors.spider for errors in at_lr] for at_lr in spider],
        "anchor": [[errors.anchor for errors in at_lr] for at_lr in spider],
        "drift": [[errors.drift for errors in at_lr] for at_lr in spider],
        "beside": [[errors.beside for errors in at_lr] for at_lr in spider],
        "sngd": [[_sngd_error(case, lr, settings.periods, seed) for seed in seeds] for lr in settings.lrs],
    }


class _SpiderErrors(NamedTuple):
    """Mean squared errors of one run, see ``measure``."""

    spider: float
    anchor: float
    drift: float
    beside: float


class _Descent:
    """A model at its start, its samples, and SNGD steps, for both estimators."""

    def __init__(self, case: Case, lr: float, seed: int) -> None:
        torch.manual_seed(seed)  # the model's weights
        self.problem = case.problem
        self.model = case.problem.build_model()
        self.optimizer = SNGD(self.model.parameters(), lr=lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.full = Full(self.model, self.problem.n, chunk_size=self.problem.n)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.problem.loss(self.model(batch[0]), batch[1])

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Independent samples, as the theory assumes."""
        indices = torch.randint(self.problem.n, (size,), generator=self.generator)
        return self.problem.train[0][indices], self.problem.train[1][indices]

    def estimate(self, estimator: Full | MiniBatch | Spider) -> Tensor:
        """The estimator's gradient at the present weights, in one vector; it is left in ``.grad``."""
        size = estimator.next_batch_size
        estimator.estimate(self.loss, self.problem.train if size is None else self.draw(size))
        return torch.cat([p.grad.reshape(-1) for p in estimator.params if p.grad is not None]).double()


def _spider_errors(case: Case, lr: float, periods: int, seed: int) -> _SpiderErrors:
    run = _Descent(case, lr, seed)
    _, _, _, anchor_batch_size, batch_size, period = case
    sizes = {"anchor_batch_size": anchor_batch_size, "batch_size": batch_size, "period": period}
    spider = Spider(run.model, **sizes, chunk_size=512)  # the sums that the committed measurements were made with
    beside = MiniBatch(run.model, batch_size)
    at_anchor = torch.zeros(())
    errors: dict[str, list[float]] = {"spider": [], "anchor": [], "drift": [], "beside": []}
    for step in range(periods * period):
        exact = run.estimate(run.full)
        errors["beside"].append(_squared_norm(run.estimate(beside) - exact))
        error = run.estimate(spider) - exact  # last: the step is along this gradient
        if step % period == 0:
            at_anchor = error
            errors["anchor"].append(_squared_norm(error))
        if step % period == period - 1:
            errors["spider"].append(_squared_norm(error))
            errors["drift"].append(_squared_norm(error - at_anchor))
        run.optimizer.step()
    return _SpiderErrors(*(fmean(errors[key]) for key in _SpiderErrors._fields))


def _sngd_error(case: Case, lr: float, periods: int, seed: int) -> float:
    run = _Descent(case, lr, seed)
    estimator = MiniBatch(run.model, case.batch_size)
    errors = []
    for _ in range(periods * case.period):
        exact = run.estimate(run.full)
        errors.append(_squared_norm(run.estimate(estimator) - exact))
        run.optimizer.step()
    return fmean(errors)


def _squared_norm(vector: Tensor) -> float:
    return float(vector.square().sum())


# ---- judged --------------------------------------------------------------------------------------------------


STEADY = (-0.1, 0.1)  # exponents of α that count as none
SQUARE = (1.75, 2.25)  # and as 2


def judge(measurements: Variance) -> Evidence:
    """The evidence on C10 in what ``measure`` returned."""
    lrs, problems = measurements["lrs"], measurements["problems"]
    quantities = [quantity for name in problems for quantity in _judge_case(name, lrs, problems[name])]
    bounded = [ratio for measured in problems.values() for ratio in _ratios_to_bound(lrs, measured)]
    exceeded = sum(mean_interval(ratio, LEVEL).low > 1 for ratio in bounded)
    quantities.append(never("drifts above eq. 15's bound, where L is known", exceeded, len(bounded), essential=True))
    ends = sum(1 if quantity.required.startswith(">") else 2 for quantity in quantities[:-1] if quantity.required)
    return Evidence(
        profile=measurements["profile"],
        quantities=tuple(quantities),
        test=f"Student's t over {measurements['seeds']} seeds, for slopes of log variance against log α in each seed",
        error_rate=error_rate((ends + len(bounded)) / 2),
        departures=(
            "SPIDER's steps all have length α, as eq. 15 lets them: SPIDER-SFO's cap β makes them shorter near a "
            "stationary point",
            "on digits SNGD's variance depends on where it goes, which depends on α: the slope is of "
            f"{measurements['periods'] * problems['digits']['period']} steps from the first weights",
        ),
        exempt=_exemptions(lrs, problems),
    )


def _exemptions(lrs: Sequence[float], problems: Mapping[str, CaseMeasured]) -> tuple[str, ...]:
    """What C10 could be taken to require, and why nothing is required of it, with the answer that it would have had."""
    tilted = _in_range(_slopes(lrs, problems["least squares"]["sngd"]), *STEADY)
    steeper = _in_range(_slopes(lrs, problems["digits"]["drift"]), *SQUARE)
    return (
        "nothing is required of the exponent of α in the variance of SNGD's gradient on least squares, because σ² "
        "itself grows there with the distance from the minimum, and so depends on where α leads. Required to be in "
        f"{list(STEADY)}, it would be {tilted}",
        "nothing is required of the exponent of α in the growth of SPIDER's variance on digits, because eq. 15 is an "
        "upper bound with a constant L, which is not known there, and the differences of gradients need not grow in "
        f"proportion to the step. Required to be in {list(SQUARE)}, it would be {steeper}",
    )


def _in_range(slopes: Sequence[float], least: float, most: float) -> Answer | None:
    return between("", mean_interval(slopes, LEVEL), least, most).answer


def _judge_case(name: str, lrs: Sequence[float], measured: CaseMeasured) -> list[Quantity]:
    sngd, drift = _slopes(lrs, measured["sngd"]), _slopes(lrs, measured["drift"])
    growth = [log10(last / first) for first, last in zip(measured["spider"][0], measured["spider"][-1], strict=True)]
    span = f"from α = {lrs[0]:g} to {lrs[-1]:g}"
    known = measured["L"] is not None
    decades = mean_interval(growth, LEVEL)
    slope = mean_interval(drift, LEVEL)
    drift_name = f"{name}: exponent of α in the growth of SPIDER's variance over a period (theory: 2)"
    drift_quantity = (
        between(drift_name, slope, *SQUARE, reach=reach_of_mean(drift)) if known else reported(drift_name, slope)
    )
    sngd_name = f"{name}: exponent of α in the variance of SNGD's gradient"
    steady = name != "least squares"  # there σ² grows with the distance from the minimum, by definition
    sngd_slope = mean_interval(sngd, LEVEL)
    return [
        above(
            f"{name}: decades that SPIDER's variance grows {span}",
            decades,
            0,
            essential=True,
            reach=reach_of_mean(growth),
        ),
        drift_quantity,
        between(sngd_name, sngd_slope, *STEADY, essential=True, reach=reach_of_mean(sngd))
        if steady
        else reported(sngd_name, sngd_slope),
        *_crossing(name, lrs, measured),
    ]


def _crossing(name: str, lrs: Sequence[float], measured: CaseMeasured) -> list[Quantity]:
    means = zip(lrs, map(fmean, measured["spider"]), map(fmean, measured["sngd"]), strict=True)
    higher = [lr for lr, spider, sngd in means if spider > sngd]
    return [reported(f"{name}: smallest α at which SPIDER's variance is above SNGD's", higher[0])] if higher else []


def _slopes(lrs: Sequence[float], errors: Sequence[Sequence[float]]) -> list[float]:
    """For each seed the least-squares slope of log error against log α."""
    return [
        linear_regression([log10(lr) for lr in lrs], [log10(error) for error in by_lr]).slope
        for by_lr in zip(*errors, strict=True)
    ]


def _ratios_to_bound(lrs: Sequence[float], measured: CaseMeasured) -> list[list[float]]:
    """For each α, drift over its bound (M − 1) α² L²/b of each seed; nothing where L is not known."""
    L = measured["L"]
    if L is None:
        return []
    return [
        [drift / _bound(measured, L, lr, sigma=0) for drift in drifts]
        for lr, drifts in zip(lrs, measured["drift"], strict=True)
    ]


def _bound(measured: CaseMeasured, L: float, lr: float, sigma: float) -> float:
    return spider_variance(
        Smooth(L),
        sigma=sigma,
        lr=lr,
        batch_size=measured["batch_size"],
        anchor_batch_size=measured["anchor_batch_size"],
        period=measured["period"],
    )


# ---- drawn ---------------------------------------------------------------------------------------------------


def draw(measurements: Variance, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``variance.png`` and ``variance.svg`` of what ``measure`` returned into ``folder`` (made if absent).

    Returns:
        The files written, in that order.
    """
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    with plain_style():
        problems = measurements["problems"]
        figure = Figure(figsize=(5 * len(problems), 5.4), layout="constrained")
        for ax, (name, measured) in zip(figure.subplots(1, len(problems)), problems.items(), strict=True):
            _draw_problem(ax, name, measurements["lrs"], measured)
        figure.suptitle(
            f"Variance of the gradient estimators against the learning rate ({measurements['profile']} profile)\n"
            f"line: mean of {measurements['seeds']} seeds; band: lowest to highest seed",
            fontsize=11,
        )
        return save(figure, Path(folder) / "variance")


_ErrorName = Literal["spider", "anchor", "drift", "sngd", "beside"]
_CURVES: tuple[tuple[_ErrorName, str, str, str], ...] = (
    ("spider", "SPIDER, end of a period", "#D55E00", "o"),
    ("anchor", "SPIDER, anchor", "#E69F00", "."),
    ("drift", "SPIDER, growth in the period", "#CC79A7", "."),
    ("sngd", "SNGD's mini-batch", "#0072B2", "^"),
    ("beside", "mini-batch at SPIDER's iterates", "#56B4E9", "v"),
)


def _draw_problem(ax: Axes, name: str, lrs: Sequence[float], measured: CaseMeasured) -> None:
    for key, label, color, marker in _CURVES:
        errors = measured[key]
        ax.plot(lrs, [fmean(seeds) for seeds in errors], color=color, marker=marker, markersize=5, label=label)
        ax.fill_between(lrs, [min(e) for e in errors], [max(e) for e in errors], color=color, alpha=0.18, lw=0)
    L, sigma = measured["L"], measured["sigma"]
    if L is not None:
        drift = [_bound(measured, L, lr, sigma=0) for lr in lrs]
        ax.plot(lrs, drift, color="black", linewidth=0.9, dashes=(1, 2), label="(M − 1) α² L²/b")
    if L is not None and sigma is not None:
        whole = [_bound(measured, L, lr, sigma) for lr in lrs]
        ax.plot(lrs, whole, color="black", linewidth=0.9, dashes=(5, 2), label="eq. 15")
        plain = sigma**2 / measured["batch_size"]
        ax.axhline(plain, color="black", linewidth=0.9, dashes=(6, 2, 1.5, 2), label="σ²/b")
    ax.set(xscale="log", yscale="log", xlabel="learning rate α", ylabel="E‖g − ∇F(w)‖²")
    sizes = f"b = {measured['batch_size']}, B = {measured['anchor_batch_size']}, M = {measured['period']}"
    ax.set_title(f"{name}: {sizes}", fontsize=10)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
    ax.legend(fontsize=8, loc="lower right")
