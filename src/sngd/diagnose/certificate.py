"""Certificates: a theorem's bound, the measured value, and the status of each assumption of the theorem.

The functions here take numbers from the caller and make a `Certificate`. Each assumption is

* **given**: stated by the user, by the problem or by the run's settings; no measurement contradicts it;
* **measured**: it holds at the points where it was measured, which proves nothing elsewhere;
* **violated**, or **unchecked**: either makes the certificate "not certified", whatever the numbers are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from math import exp, fsum, hypot, isfinite, sqrt
from statistics import NormalDist, fmean
from typing import Any, Literal, NamedTuple

from sngd.diagnose.interval import Interval, mean_margin, student_t
from sngd.stages import StagePlan
from sngd.theory import (
    Bound,
    Inexact,
    RelaxedSmooth,
    Smooth,
    Smoothness,
    momentum_bound,
    sgd_bound,
    sngd_bound,
    spider_sfo_bound,
    stagewise_bound,
    stagewise_momentum_bound,
)
from sngd.theory.inexact import EXACT

Status = Literal["given", "measured", "violated", "unchecked"]
Rule = Literal["normalized", "momentum", "gradient", "spider"]
Curve = Sequence[tuple[int, float]]  # (step, value) in the order of steps

_ROUNDING = 1e-5  # relative; sums in float32 are no contradiction


class Assumption(NamedTuple):
    """An assumption of a theorem, its status, and the reason in one line."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Certificate:
    """A theorem's guarantee for the runs of one method, and their measurements.

    Attributes:
        label: what tables call the method's arm.
        seeds: of the runs.
        steps: N, of each run.
        theorem: the source of the bound; None if no theorem covers the method.
        smoothness, sigma, gap: the constants that the bound is made of, None where unknown.
        bound: on E‖∇F(w̄)‖, w̄ drawn at random from the N iterates that a step was taken from; None where a constant
            is unknown or the theorem does not allow such steps.
        measured: the same for these runs: the weighted mean of ‖∇F(w_t)‖ with its 95 % interval, see `mean_norm`.
        first: ‖∇F(w_0)‖, the mean over the runs.
        assumptions: all that the theorem assumes.
        norm: of the steps, in words; None for ‖·‖₂. Of another norm are L, and ‖∇F‖* in place of ‖∇F‖.
        kappa: κ of this norm, ‖v‖* ≤ κ‖v‖₂.
    """

    label: str
    seeds: tuple[int, ...]
    steps: int
    theorem: str | None
    smoothness: Smoothness | None
    sigma: float | None
    gap: float | None
    bound: Bound | None
    measured: Interval | None
    first: float | None
    assumptions: tuple[Assumption, ...]
    norm: str | None = None
    kappa: float = 1.0

    @property
    def verdict(self) -> Literal["holds", "inconclusive", "exceeded", "not certified"]:
        """Whether the interval is below, around or above the bound, provided that all assumptions stand."""
        if self.bound is None or self.measured is None or self.failing:
            return "not certified"
        if self.measured.high <= self.bound.total:
            return "holds"
        return "exceeded" if self.measured.low > self.bound.total else "inconclusive"

    @property
    def failing(self) -> list[Assumption]:
        """The assumptions that are violated or unchecked."""
        return [assumption for assumption in self.assumptions if assumption.status in ("violated", "unchecked")]

    @property
    def vacuous(self) -> bool:
        """Whether the bound is vacuous: ‖∇F(w_0)‖, the norm of the first gradient, is not above it."""
        return self.bound is not None and self.first is not None and self.first <= self.bound.total

    @property
    def statement(self) -> str:
        """The verdict in a few sentences."""
        sentences = [self._outcome()]
        if self.verdict != "not certified" and self._one_of_many:
            sentences.append("The theorem speaks of the mean over all seeds.")
        if self.vacuous:
            sentences.append(f"The bound is vacuous: even the first gradient norm, {self.first:.4g}, is not above it.")
        return " ".join(sentences)

    @property
    def _one_of_many(self) -> bool:
        """Whether these numbers are those of one run where chance could have made others."""
        return len(self.seeds) == 1 and bool(self.sigma)

    def _outcome(self) -> str:
        if self.theorem is None:
            return f"Not certified: {self.assumptions[0].detail}."
        numbers = ""
        if self.bound is not None and self.measured is not None:
            size = "‖∇F(w_t)‖" if self.norm is None else "‖∇F(w_t)‖*"
            numbers = f": the mean of {size} is {self.measured}, the bound {self.bound.total:.4g}"
        measured = any(
            assumption.status == "measured" for assumption in self.assumptions if assumption.name in _CONSTANTS
        )
        caution = "as far as its constants were measured, " if measured else ""
        match self.verdict:
            case "holds":
                return _sentence(f"{caution}{self.theorem} holds{' for this run' * self._one_of_many}{numbers}")
            case "inconclusive":
                return f"Inconclusive, as {self.theorem}'s bound lies within the interval{numbers}."
            case "exceeded":
                blame = " by this run" if self._one_of_many else ", so a constant must be wrong, or the code"
                return _sentence(f"{caution}{self.theorem}'s bound is exceeded{blame}{numbers}")
        reasons = ", ".join(f"{assumption.name} {assumption.status}" for assumption in self.failing)
        return f"Not certified by {self.theorem} ({reasons}){numbers}."

    def as_json(self) -> dict[str, Any]:
        """Plain strings, finite numbers, lists and None; ``bound`` is the total, ``terms`` as in a plan's JSON."""
        constants = (
            {name: getattr(self.smoothness, name) for name in self.smoothness.__slots__} if self.smoothness else {}
        )
        terms = ("progress", "curvature", "noise", "squared")
        return {
            "label": self.label,
            "theorem": self.theorem,
            **({} if self.norm is None else {"norm": self.norm, "kappa": self.kappa}),
            "verdict": self.verdict,
            "statement": self.statement,
            "seeds": list(self.seeds),
            "steps": self.steps,
            "measured": self.measured and self.measured._asdict(),
            "bound": self.bound and self.bound.total,
            "terms": self.bound and {name: getattr(self.bound, name) for name in terms},
            "vacuous": self.vacuous,
            "first_grad_norm": self.first,
            "constants": {**constants, "sigma": self.sigma, "gap": self.gap},
            "assumptions": [assumption._asdict() for assumption in self.assumptions],
        }


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


# ---- the mean that the theorems bound ------------------------------------------------------------------------


def played(plan: StagePlan, steps: int) -> StagePlan:
    """The plan that a run of ``steps`` steps followed: cut, or its last stage prolonged; iterates keep their weights.

    Examples:
        >>> played(StagePlan([(0.5, 10, 1.0), (0.1, 20, 4.0)]), 15).as_list()
        [[0.5, 10, 1.0], [0.1, 5, 1.0]]
    """
    stages, left = [], steps
    for index, stage in enumerate(plan):
        taken = left if index == len(plan) - 1 else min(stage.steps, left)
        if taken:
            stages.append(replace(stage, steps=taken, weight=stage.weight * taken / stage.steps))
        left -= taken
    return StagePlan(stages)


def mean_norm(curves: Sequence[Curve], plan: StagePlan) -> Interval:
    """Σ_t p_t ‖∇F(w_t)‖ over the N iterates that a step was taken from, Σ_t p_t = 1, with a 95 % interval.

    The weights p_t are the plan's (Algorithm 2). Between evaluations the norm is interpolated linearly, so the mean is
    Σ_i a_i y_i over the m evaluations y_i, with a_i = p_i where every iterate was evaluated.

    * One run: its mean, ± the error of not having evaluated every iterate, Student's t times the root of
      Σ_t (a_t − p_t)² · Σ_i (y_{i+1} − y_i)²/(2(m − 1)), by successive differences as for a systematic sample (Wolter,
      *Introduction to Variance Estimation*, ch. 8: (1 − m/N)/m times the second factor for equal weights). A trend
      makes it larger than necessary. It does not include the variation between seeds.
    * Several runs: the mean of their means, ± Student's t times its standard error, and with it (the root of the sum of
      squares) the mean of the runs' own errors, which a trend may well give them in common.

    Args:
        curves: of each run (step, ‖∇F(w_step)‖), the steps increasing from 0 to N, at least two.
        plan: as it was played, of N steps.
    """
    total = sum(stage.weight for stage in plan)
    weights = list(chain.from_iterable([stage.weight / stage.steps / total] * stage.steps for stage in plan))
    runs = [_of_one_run(curve, weights) for curve in curves]
    if len(runs) == 1:
        return runs[0]
    means = [run.value for run in runs]
    return _above_zero(fmean(means), hypot(mean_margin(means), fmean(run.high - run.value for run in runs)))


def _of_one_run(curve: Curve, weights: Sequence[float]) -> Interval:
    steps, norms = zip(*curve, strict=True)
    shares = _shares(steps, weights)
    mean = fsum(share * norm for share, norm in zip(shares, norms, strict=True))
    at = dict(zip(steps, shares, strict=True))
    missed = sum((at.get(step, 0.0) - weight) ** 2 for step, weight in enumerate(chain(weights, [0.0])))
    variance = fmean((after - before) ** 2 for before, after in pairwise(norms)) / 2
    return _above_zero(mean, student_t(len(norms) - 1) * sqrt(missed * variance))


def _shares(steps: Sequence[int], weights: Sequence[float]) -> list[float]:
    """a_i: what each evaluation weighs when the iterates between two of them are interpolated linearly."""
    shares = [0.0] * len(steps)
    for index, (start, end) in enumerate(pairwise(steps)):
        for step in range(start, end):
            late = (step - start) / (end - start)
            shares[index] += (1 - late) * weights[step]
            shares[index + 1] += late * weights[step]
    return shares


def _above_zero(mean: float, half: float) -> Interval:
    return Interval(mean, max(0.0, mean - half), mean + half)


# ---- the constants -------------------------------------------------------------------------------------------

_CONSTANTS = ("smoothness", "noise", "gap")


class Curvature(NamedTuple):
    """A curvature measured at an iterate: a Hessian eigenvalue, or ‖∇F(w + s) − ∇F(w)‖/‖s‖ with ‖s‖ ≤ ``reach``."""

    step: int
    value: float
    error: float
    grad_norm: float  # ‖∇F(w)‖
    reach: float = 0.0


def judge_smoothness(
    given: Smoothness | None, seen: Sequence[Curvature], source: str = "as given"
) -> tuple[Smoothness | None, Assumption]:
    """The smoothness to compute with: ``given``, unless None, else the largest curvature ``seen``.

    Up to its error, a measured curvature never exceeds L. For (L0, L1)-smooth F it never exceeds the greatest value of
    L0 + L1‖∇F‖ within its reach h, L0 + L1(‖∇F(w)‖ + hL0) e^{hL1} (by Grönwall, as in Lemma 2). If one does, the
    assumption is violated.
    """
    if given is None:
        largest = max((abs(curvature.value) + curvature.error for curvature in seen), default=0.0)
        if largest <= 0:
            return None, Assumption("smoothness", "unchecked", "no constant was given, and none measured")
        detail = (
            f"L = {largest:.4g}, the largest of {_count(len(seen), 'measurement')} along the way: a lower bound of the "
            "true L, which may be larger elsewhere"
        )
        return Smooth(largest), Assumption("smoothness", "measured", detail)
    name = ", ".join(f"{constant} = {getattr(given, constant):.4g}" for constant in given.__slots__)
    worst = max(seen, key=lambda curvature: _excess(given, curvature), default=None)
    if worst is None:
        return given, Assumption("smoothness", "given", f"{name} {source}; nothing was measured to compare it with")
    if _excess(given, worst) > 1 + _ROUNDING:
        allowed = _allowed(given, worst)
        detail = f"{name} {source}, but at step {worst.step} a curvature of {worst.value:.4g} was measured" + (
            "" if isinstance(given, Smooth) else f", where {allowed:.4g} is allowed"
        )
        return given, Assumption("smoothness", "violated", detail)
    largest = max(abs(curvature.value) for curvature in seen)
    detail = f"{name} {source}; not contradicted by the curvatures measured, at most {largest:.4g}"
    return given, Assumption("smoothness", "given", detail)


def _excess(given: Smoothness, curvature: Curvature) -> float:
    return (abs(curvature.value) - curvature.error) / _allowed(given, curvature)


def _allowed(given: Smoothness, curvature: Curvature) -> float:
    if isinstance(given, Smooth):
        return given.L
    nearby = (curvature.grad_norm + curvature.reach * given.L0) * exp(min(curvature.reach * given.L1, 700.0))
    return given.L0 + given.L1 * nearby


def judge_noise(
    given: float | None, seen: Sequence[Interval], source: str = "as given"
) -> tuple[float | None, Assumption]:
    """σ to compute with: ``given``, unless None, else the largest upper end of the measurements.

    Args:
        given: σ ≥ 0 or None.
        seen: 95 % intervals of σ² at iterates. They are widened for their number (Bonferroni). Otherwise a correct σ
            would look wrong if it is measured often enough.
        source: of ``given``, for the text.
    """
    if given is None and not seen:
        return None, Assumption("noise", "unchecked", "σ was neither given nor measured")
    widened = [_widened(interval, len(seen)) for interval in seen]
    at = f"at {_count(len(seen), 'iterate')}"
    if given is None:
        sigma = sqrt(max(interval.high for interval in widened))
        return sigma, Assumption("noise", "measured", f"σ = {sigma:.4g}, the largest upper end measured {at}")
    if not widened:
        return given, Assumption("noise", "given", f"σ = {given:.4g} {source}; nothing was measured to compare it with")
    least = sqrt(max(0.0, *(interval.low for interval in widened)))
    if least > given * (1 + _ROUNDING):
        detail = f"σ = {given:.4g} {source}, but at least {least:.4g} was measured"
        return given, Assumption("noise", "violated", detail)
    return given, Assumption("noise", "given", f"σ = {given:.4g} {source}; not contradicted by measurements {at}")


def _widened(interval: Interval, count: int) -> Interval:
    """A 95 % interval made one of 1 − 5 %/count, taking its error for normal."""
    normal = NormalDist()
    factor = normal.inv_cdf(1 - 0.025 / count) / normal.inv_cdf(0.975)
    value, low, high = interval
    return Interval(value, value - factor * (value - low), value + factor * (high - value))


def judge_gap(
    given: float | None,
    losses: Sequence[Curve],
    plan: StagePlan,
    *,
    infimum: float | None = None,
    source: str = "as given",
) -> tuple[float | None, Assumption]:
    """Δ, or δ, to compute with: ``given``, unless None, else F(w_0) with inf F ≥ 0.

    The theorems for stages need F(w̃_t) − inf F ≤ δ at the start of every stage, unless p_{t+1}/(M_t α_t) never
    increases. If they need it, the evaluations at all steps are used in place of the stages' starts.

    Args:
        given: Δ ≥ 0 or None.
        losses: of each run (step, F(w_step)) from step 0 on, at least one.
        plan: as it was played.
        infimum: inf F if it is known; then ``given`` is F(w_0) − inf F, and δ is raised to what was measured.
        source: of ``given``, for the text.
    """
    q = [stage.weight / (stage.steps * stage.lr) for stage in plan]
    every_stage = any(after > before * (1 + 1e-12) for before, after in pairwise(q))
    if not all(losses):
        return given, Assumption("gap", "unchecked", "not every run has evaluated F on all samples")
    values = [(loss, step) for curve in losses for step, loss in (curve if every_stage else curve[:1])]
    highest, step = max(values)
    lowest = min(loss for curve in losses for _, loss in curve)
    where = "at any evaluation (the start of every stage counts)" if every_stage else "at the start"
    if given is None:
        if lowest < 0:
            return None, Assumption("gap", "violated", f"inf F ≥ 0 was taken for granted, but F = {lowest:.4g} was met")
        detail = f"Δ = {highest:.4g}, the largest F {where}, taking inf F ≥ 0, which no row contradicts"
        return highest, Assumption("gap", "measured", detail)
    gap = highest - (lowest if infimum is None else infimum)
    if gap <= given * (1 + _ROUNDING):
        return given, Assumption("gap", "given", f"Δ = {given:.4g} {source}; not contradicted {where}")
    if every_stage and infimum is not None:
        detail = f"δ = {gap:.4g}, the largest F − inf F {where}; {given:.4g} at the start"
        return gap, Assumption("gap", "measured", detail)
    return given, Assumption(
        "gap", "violated", f"Δ = {given:.4g} {source}, but it is at least {gap:.4g} at step {step}"
    )


# ---- the theorem ---------------------------------------------------------------------------------------------


def find_theorem(rule: Rule, smoothness: Smoothness | None, plan: StagePlan) -> str | None:
    """The theorem for such steps in such stages, or None: SGD's and SPIDER-SFO's are for a constant learning rate."""
    if rule == "normalized":
        numbers = (1, 2) if len(plan) == 1 else (3, 4)
        if smoothness is None:
            return f"Theorem {numbers[0]} or {numbers[1]}"
        return f"Theorem {numbers[isinstance(smoothness, RelaxedSmooth)]}"
    if rule == "momentum":
        return "the momentum theorem"
    if len(plan) > 1:
        return None
    return "Ghadimi and Lan 2013, Theorem 2.1" if rule == "gradient" else "Fang et al. 2018, Theorem 1"


def bound_of(
    rule: Rule,
    smoothness: Smoothness,
    *,
    sigma: float,
    gap: float,
    plan: StagePlan,
    batch_size: int,
    options: Mapping[str, float],
    kappa: float = 1.0,
    step: Inexact = EXACT,
) -> tuple[Bound | None, Assumption]:
    """The theorem's bound, and the assumption that the steps are as short as it requires. The bound is None if not.

    Args:
        rule: which `find_theorem` has a theorem for.
        smoothness, sigma, gap, batch_size: as in `sngd.theory`.
        plan: as it was played.
        options: ``anchor_batch_size``, ``period`` and ``max_scale`` of SPIDER-SFO; ``momentum``, which is that of
            stages that do not set it.
        kappa, step: of normalized steps in another norm than ‖·‖₂.
    """
    constants: dict[str, Any] = {"sigma": sigma, "gap": gap, "batch_size": batch_size}
    steps: dict[str, Any] = {"lr": plan[0].lr, "steps": plan.steps}
    try:
        if rule == "normalized" and len(plan) > 1:
            bound = stagewise_bound(smoothness, **constants, plan=plan, kappa=kappa, step=step)
        elif rule == "normalized":
            bound = sngd_bound(smoothness, **constants, **steps, kappa=kappa, step=step)
        elif not isinstance(smoothness, Smooth):
            return None, Assumption("condition", "violated", f"the theorem is for L-smooth F, not for {smoothness}")
        elif rule == "momentum" and len(plan) > 1:
            bound = stagewise_momentum_bound(
                smoothness, **constants, plan=_with_momentum(plan, options), kappa=kappa, step=step
            )
        elif rule == "momentum":
            momentum = options["momentum"] if plan[0].momentum is None else plan[0].momentum
            bound = momentum_bound(smoothness, **constants, **steps, momentum=momentum, kappa=kappa, step=step)
        elif rule == "gradient":
            bound = sgd_bound(smoothness, **constants, **steps)
        else:
            spider: dict[str, Any] = {name: int(options[name]) for name in ("anchor_batch_size", "period")}
            bound = spider_sfo_bound(smoothness, **constants, **steps, **spider, max_scale=options["max_scale"])
        if not isfinite(bound.total):
            raise ValueError("the bound is too large to be computed")
    except ValueError as error:  # the constants are in range, so it is the theorem's condition
        return None, Assumption("condition", "violated", str(error))
    return bound, Assumption("condition", "given", _condition(rule, smoothness, plan, options))


def _with_momentum(plan: StagePlan, options: Mapping[str, float]) -> StagePlan:
    """The plan with the method's momentum, unless it sets its own."""
    return plan if plan.sets_momentum else StagePlan(replace(stage, momentum=options["momentum"]) for stage in plan)


def _condition(rule: Rule, smoothness: Smoothness, plan: StagePlan, options: Mapping[str, float]) -> str:
    longest = max(stage.lr for stage in plan)
    if isinstance(smoothness, RelaxedSmooth):
        return f"α L1 = {longest * smoothness.L1:.4g} is at most ½"
    if rule == "spider":
        return f"β L = {options['max_scale'] * smoothness.L:.4g} is at most ½"
    if rule == "gradient":
        return f"α L = {longest * smoothness.L:.4g} is below 2"
    return "the theorem allows steps of any length"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
