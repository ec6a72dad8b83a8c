"""Planners: from (smoothness, σ, Δ) and an accuracy to a run, and what the run guarantees.

| method              | bound                                   | ε means          |
|---------------------|-----------------------------------------|------------------|
| `sngd`              | Theorem 1, or 2 for (L0, L1)            | target = 4ε, 8ε  |
| `s-sngd:harmonic`   | Corollary 1 of Theorem 3, or 4          | target = 4ε, 8ε  |
| `s-sngd:harmonic-even` | Remark 1 to Theorem 3, or 4          | target = 4ε, 8ε  |
| `s-sngd:geometric`  | Corollary 2 of Theorem 3, or 4          | target = 4ε, 8ε  |
| `sgd`               | Ghadimi and Lan 2013, Theorem 2.1       | target = ε       |
| `spider-sfo`        | Fang et al. 2018, Theorem 1, n_0 = 1    | target = 5ε      |
| `nsgd-momentum`     | `momentum_bound`, b = 1                 | target = 4ε      |

So methods are compared at the same *target*, a bound on E‖∇F(w̄)‖*: with the same ε they have different guarantees.
‖·‖* is the dual of the norm of the steps, as in `sngd.theory.bounds`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, exp, inf, isclose, log, sqrt
from typing import Any

from sngd.checks import non_negative, positive, shown
from sngd.cost import differences
from sngd.stages import StagePlan, constant, geometric, harmonic, harmonic_even
from sngd.theory.bounds import (
    Bound,
    mean_of_noise,
    momentum_bound,
    sgd_bound,
    sngd_bound,
    spider_sfo_bound,
    stagewise_bound,
)
from sngd.theory.smoothness import Smooth, Smoothness, check_lr

MAX_STAGES = 1_000_000
MAX_STEPS = 2**100  # of a plan with momentum; beyond them floating point cannot tell N from N + 1 anyway
_SMALLEST_A = 1e-9  # below it, 1 − a in floating point is too coarse


@dataclass(frozen=True)
class Plan:
    """A run, and what it guarantees.

    Attributes:
        method: one of `PLANNED`; up to the colon it is the name that `sngd train --method` knows.
        theorem: the source of the bound.
        smoothness: L, or L0 and L1, as given.
        sigma: σ, as given.
        gap: Δ, as given.
        target: the bound asked for.
        lr: α; of the first stage, for a stage plan.
        batch_size: b.
        steps: number of gradient steps (T + 1 in Theorem 1), of all stages together.
        oracle_calls: evaluations of ∇f(w; a) for one sample at one point.
        bound: the bound at these very numbers, term by term.
        lr_limited: whether αL1 ≤ ½ binds, that is, kept the learning rate below what it would have been.
        stages: the stage plan, for `s-sngd`, else None.
        options: further parameters of the method: `anchor_batch_size`, `period`, `max_scale` for `spider-sfo`,
            `momentum` for `nsgd-momentum`.
        kappa: κ, with ‖v‖* ≤ κ‖v‖₂ for all v; 1 for the Euclidean norm.
    """

    method: str
    theorem: str
    smoothness: Smoothness
    sigma: float
    gap: float
    target: float
    lr: float
    batch_size: int
    steps: int
    oracle_calls: int
    bound: Bound
    lr_limited: bool = False
    stages: StagePlan | None = None
    options: dict[str, float] = field(default_factory=dict)
    kappa: float = 1.0

    @property
    def guarantee(self) -> float:
        """The bound on E‖∇F(w̄)‖* at the planned integers, at most `target`.

        A difference from the target of 1e-9 (relative) or less is a rounding error, and not shown.
        """
        return self.target if isclose(self.bound.total, self.target, rel_tol=1e-9) else self.bound.total

    @property
    def stage_plan(self) -> StagePlan:
        """The learning rates as a `StagePlan` for `StagewiseLR`; one stage if the method has no stages."""
        return self.stages or constant(self.lr, self.steps)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; `stages`, `[[lr, steps, weight], …]`, only if the method has stages."""
        smoothness = {name: getattr(self.smoothness, name) for name in self.smoothness.__slots__}
        shown: dict[str, Any] = {
            "method": self.method,
            "theorem": self.theorem,
            **smoothness,
            "sigma": self.sigma,
            "kappa": self.kappa,
            "gap": self.gap,
            "target": self.target,
            "lr": self.lr,
            "batch_size": self.batch_size,
            **self.options,
            "steps": self.steps,
            "oracle_calls": self.oracle_calls,
            "guarantee": self.guarantee,
            "terms": {
                "progress": self.bound.progress,
                "curvature": self.bound.curvature,
                "noise": self.bound.noise,
                "squared": self.bound.squared,
            },
            "lr_limited": self.lr_limited,
        }
        return shown if self.stages is None else {**shown, "stages": self.stages.as_list()}


def plan(
    method: str,
    smoothness: Smoothness,
    sigma: float,
    gap: float,
    *,
    epsilon: float | None = None,
    target: float | None = None,
    rho: float | None = None,
    kappa: float = 1.0,
) -> Plan:
    """The run that makes E‖∇F(w̄)‖* ≤ target, by the method's theorem; integers are rounded up.

    `epsilon` gives the theorem's own choice, for SNGD α = 2ε/L, b = ⌈σ²/ε²⌉ and ⌈LΔ/(2ε²)⌉ steps (Theorem 1), or
    α = min{ε/L0, 1/(2 L1)}, b = ⌈σ²/ε²⌉ and ⌈Δ/(αε)⌉ steps (Theorem 2). `target` τ gives the cheapest run under the
    bound: for real numbers that is the theorem's choice at ε = τ/4 (τ/8 for Theorem 2, if αL1 ≤ ½ does not bind); for
    SNGD the whole numbers about it are tried. For `nsgd-momentum`, which takes one sample a step, nothing is
    published: ε means the cheapest run for the target 4ε.

    Args:
        method: one of `PLANNED`; `s-sngd` means `s-sngd:harmonic`.
        smoothness: L, or L0 and L1; only L for `sgd`, `spider-sfo` and `nsgd-momentum`: in mean square over the samples
            for `spider-sfo`, and of the gradient, as in `momentum_bound`, for `nsgd-momentum`.
        sigma: σ ≥ 0, E‖∇f(w; a) − ∇F(w)‖₂² ≤ σ².
        gap: Δ = F(w_0) − inf F > 0; for `s-sngd` δ, which must hold at the start of every stage (for
            `harmonic-even` only at the first).
        epsilon: ε > 0; what it means for the target is in the table of the methods.
        target: τ > 0, the bound on E‖∇F(w̄)‖*; either this or `epsilon`.
        rho: ρ > 0, the learning rate of the first stage, for `s-sngd`; at most 1/(2 L1), and 1/3 for `geometric`.
            Default, lowered to 1/(2 L1) where that is less: for `harmonic` √(2δ/L) or √(δ/L0), with which stage t takes
            t + 1 steps; for `harmonic-even` √(Δ/H) in place of √δ there, H = 1 + ½ + … + 1/T; for `geometric` 0.1.
        kappa: κ > 0 with ‖v‖* ≤ κ‖v‖₂ for all v, where steps are normalized in another norm than the Euclidean one; L
            (L0 and L1) are then that norm's. `sgd` and `spider-sfo` are Euclidean.

    Raises:
        ValueError: if an argument is out of its range, or the run would be longer than can be counted.

    Examples:
        >>> best = plan("sngd", Smooth(4), sigma=1, gap=2.3, epsilon=0.1)
        >>> best.lr, best.batch_size, best.steps, best.oracle_calls, best.guarantee
        (0.05, 100, 460, 46000, 0.4)
    """
    name = "s-sngd:harmonic" if method == "s-sngd" else method
    if name not in _PLANNERS:
        raise ValueError(f"method must be one of {', '.join(PLANNED)}, got {method!r}")
    if not isinstance(smoothness, Smoothness):
        raise ValueError(f"smoothness must be Smooth(L) or RelaxedSmooth(L0, L1), got {smoothness!r}")
    if not isinstance(smoothness, Smooth) and name in _EUCLIDEAN:
        raise ValueError(f"smoothness must be Smooth(L) for {name}'s published bound, got {smoothness}")
    if not isinstance(smoothness, Smooth) and name == "nsgd-momentum":
        raise ValueError(f"smoothness must be Smooth(L) for {name}, got {smoothness}")
    if kappa != 1 and name in _EUCLIDEAN:
        raise ValueError(f"kappa must be 1 for {name}, whose steps are Euclidean, got {shown(kappa)}")
    if (epsilon is None) == (target is None):
        raise ValueError(f"exactly one of epsilon and target must be given, got {epsilon!r} and {target!r}")
    if rho is not None and not name.startswith("s-sngd"):
        raise ValueError(f"rho must be left out for {name}, which has no stages; got {rho!r}")
    problem = _Problem(
        smoothness,
        non_negative("sigma", sigma),
        positive("gap", gap),
        exact=None if epsilon is None else positive("epsilon", epsilon),
        target=None if target is None else positive("target", target),
        rho=None if rho is None else check_lr(smoothness, rho, "rho"),
        kappa=positive("kappa", kappa),
    )
    try:
        return _PLANNERS[name](name, problem)
    except (OverflowError, ZeroDivisionError):
        given, value = ("epsilon", epsilon) if target is None else ("target", target)
        problem_text = f"{smoothness}, sigma = {sigma!r} and gap = {gap!r}"
        raise ValueError(f"{given} must be greater for {name} with {problem_text}, got {value!r}") from None


@dataclass(frozen=True)
class _Problem:
    smoothness: Smoothness
    sigma: float
    gap: float
    exact: float | None  # ε, to be used as it stands
    target: float | None  # τ, to be reached as cheaply as possible
    rho: float | None
    kappa: float

    @property
    def noise(self) -> float:
        """κσ, the largest mean error of one sample's gradient in the dual norm."""
        return self.kappa * self.sigma

    def accuracy(self, factor: float) -> tuple[float, float]:
        """(ε, τ) for a theorem whose guarantee is factor · ε."""
        if self.exact is not None:
            return self.exact, factor * self.exact
        assert self.target is not None
        return self.target / factor, self.target


def _sngd(name: str, problem: _Problem) -> Plan:
    """Theorems 1 and 2, both as c Δ/(αN) + kα + 2cκσ/√b."""
    smoothness, sigma, gap = problem.smoothness, problem.sigma, problem.gap
    c = smoothness.factor
    _, target = problem.accuracy(4 * c)
    free_lr, batch_size, progress = _published(problem) if problem.target is None else _cheapest(problem)
    lr = min(free_lr, smoothness.max_lr)
    steps = _ceil(c * gap / (lr * progress))
    return Plan(
        name,
        "Theorem 1" if isinstance(smoothness, Smooth) else "Theorem 2",
        smoothness,
        sigma,
        gap,
        target,
        lr,
        batch_size,
        steps,
        steps * batch_size,
        sngd_bound(smoothness, sigma=sigma, gap=gap, lr=lr, batch_size=batch_size, steps=steps, kappa=problem.kappa),
        lr_limited=lr < free_lr,
        kappa=problem.kappa,
    )


def _published(problem: _Problem) -> tuple[float, int, float]:
    """(α were it not for α L1 ≤ ½, b, progress): curvature and progress get cε each, noise 2cε."""
    c, k = problem.smoothness.factor, problem.smoothness.curvature
    epsilon, _ = problem.accuracy(4 * c)
    return c * epsilon / k, _batch_size(problem.noise / epsilon), c * epsilon


def _cheapest(problem: _Problem) -> tuple[float, int, float]:
    """The same for the fewest oracle calls, in whole numbers of samples and steps.

    docs/theory.md derives the best b of real numbers, under "The cheapest run". The best whole numbers are near it, but
    not always next to it: with few steps, or few samples a step, rounding one of them up costs much. So whole numbers
    are tried about it, of b if there are fewer of these than of steps, and otherwise of N.
    """
    c, k, max_lr = problem.smoothness.factor, problem.smoothness.curvature, problem.smoothness.max_lr
    _, target = problem.accuracy(4 * c)
    real = _batch_size(2 * c * problem.noise / ((target - min(target / 4, k * max_lr)) * 2 / 3))
    steps = _ceil(_steps_for(problem, real))
    if real <= steps:
        batch_size = _about(real, lambda b: b * _steps_for(problem, b), lambda b: b * _ceil(_steps_for(problem, b)))
    else:
        number = _about(
            steps, lambda n: n * _samples_for(problem, n), lambda n: n * _batch_size(sqrt(_samples_for(problem, n)))
        )
        batch_size = _batch_size(sqrt(_samples_for(problem, number)))
    rest = target - 2 * c * problem.noise / sqrt(batch_size)
    free_lr = rest / (2 * k)
    return free_lr, batch_size, rest - k * min(free_lr, max_lr)


def _steps_for(problem: _Problem, batch_size: int) -> float:
    """N, a real number, at the best α for this b; infinite if noise leaves nothing."""
    c, k, max_lr = problem.smoothness.factor, problem.smoothness.curvature, problem.smoothness.max_lr
    rest = problem.accuracy(4 * c)[1] - 2 * c * problem.noise / sqrt(batch_size)
    lr = min(rest / (2 * k), max_lr)
    return c * problem.gap / (lr * (rest - k * lr)) if rest > k * lr > 0 else inf


def _samples_for(problem: _Problem, steps: int) -> float:
    """b, a real number, for so many steps with the best α; infinite if they are too few whatever b is."""
    c, k, max_lr = problem.smoothness.factor, problem.smoothness.curvature, problem.smoothness.max_lr
    free_lr = sqrt(c * problem.gap / (k * steps))  # progress and curvature are equal
    lr = min(free_lr, max_lr)
    noise = problem.accuracy(4 * c)[1] - k * lr - c * problem.gap / (lr * steps)
    return (2 * c * problem.noise / noise) ** 2 if noise > 0 else inf


_TRIED = 10_000  # whole numbers on each side; further away the loss by rounding is less than one in ten thousand


def _about(start: int, real: Callable[[int], float], whole: Callable[[int], float]) -> int:
    """The whole number near ``start`` ≥ 1 with the least ``whole``, which is at least ``real``, that has one valley."""
    best, least = start, whole(start) if real(start) < inf else inf
    for direction in (1, -1):
        for number in range(start + direction, max(0, start + direction * _TRIED), direction):
            if real(number) >= least and least < inf:
                break
            if real(number) < inf and whole(number) < least:
                best, least = number, whole(number)
    return best


def _harmonic(name: str, problem: _Problem) -> Plan:
    """Corollary 1: 2cδ/(S(T+1)) + 2kρ/(T+1) + 2cκσ/√b."""
    c, k, max_lr = problem.smoothness.factor, problem.smoothness.curvature, problem.smoothness.max_lr
    epsilon, _ = problem.accuracy(4 * c)
    free_rho = sqrt(c * problem.gap / k) if problem.rho is None else problem.rho
    rho = min(free_rho, max_lr) if problem.rho is None else problem.rho
    stages = max(1, _ceil(2 * k * rho / (c * epsilon)) - 1)
    if stages > MAX_STAGES:
        raise OverflowError
    batch_size = _batch_size(problem.noise / epsilon)
    progress = _rest(problem, batch_size, curvature=2 * k * rho / (stages + 1))
    # With S ≥ ρ, p_{t+1}/S_t never decreases although the M_t are rounded up, so progress keeps its share.
    distance = max(rho, 2 * c * problem.gap / ((stages + 1) * progress))
    plan = harmonic(rho, stages, distance)
    return _stagewise(name, "Corollary 1 of Theorem", problem, plan, batch_size, rho < free_rho)


def _harmonic_even(name: str, problem: _Problem) -> Plan:
    """Remark 1: cΔ/(ST) + kρH/T + 2cκσ/√b with H = 1 + ½ + … + 1/T, where S is a multiple of ρ: nothing is rounded.

    S = ρ = √(cΔ/(kH)) makes the first two terms equal. If ρ is given, or αL1 ≤ ½ limits it, T is the least for which
    the second term takes at most half of what noise leaves, and S is what the first term then needs.
    """
    c, k, max_lr = problem.smoothness.factor, problem.smoothness.curvature, problem.smoothness.max_lr
    epsilon, _ = problem.accuracy(4 * c)
    batch_size = _batch_size(problem.noise / epsilon)
    rest = 2 * c * epsilon if problem.exact is not None else _rest(problem, batch_size, curvature=0.0)
    stages, harmonic_number = _harmonic_stages(lambda t, h: 2 * sqrt(c * problem.gap * k * h) <= rest * t)
    free_rho = sqrt(c * problem.gap / (k * harmonic_number)) if problem.rho is None else problem.rho
    rho = min(free_rho, max_lr) if problem.rho is None else problem.rho
    times = 1
    if problem.rho is not None or rho < free_rho:
        stages, harmonic_number = _harmonic_stages(lambda t, h: k * rho * h <= rest / 2 * t)
        progress = rest - k * rho * harmonic_number / stages
        times = max(1, _ceil(c * problem.gap / (rho * stages * progress)))
    plan = harmonic_even(rho, stages, times * rho)
    return _stagewise(name, "Remark 1 to Theorem", problem, plan, batch_size, rho < free_rho)


def _harmonic_stages(fits: Callable[[int, float], bool]) -> tuple[int, float]:
    """The smallest T that fits, and H = 1 + ½ + … + 1/T, which ``fits`` is told too."""
    harmonic_number = 0.0
    for stages in range(1, MAX_STAGES + 1):
        harmonic_number += 1 / stages
        if fits(stages, harmonic_number * (1 - 1e-12)):
            return stages, harmonic_number
    raise OverflowError


def _geometric(name: str, problem: _Problem) -> Plan:
    """Corollary 2: with x = (2ρ)^T, cδ(1 − 2ρ)/(S(1 − x)) + k(1 − 2^−T)(1 − 2ρ)x/(1 − x) + 2cκσ/√b."""
    c, k, max_lr = problem.smoothness.factor, problem.smoothness.curvature, problem.smoothness.max_lr
    epsilon, _ = problem.accuracy(4 * c)
    rho = min(0.1, max_lr) if problem.rho is None else problem.rho
    if rho > 1 / 3:  # beyond (√3 − 1)/2 = 0.366, rounding M_t up can make p_{t+1}/S_t decrease
        raise ValueError(f"rho must be in (0, 1/3] for {name}, got {rho!r}")

    def curvature(stages: int) -> float:
        x = (2 * rho) ** stages
        return k * (1 - 2.0**-stages) * (1 - 2 * rho) * x / (1 - x)

    stages = 1
    while curvature(stages) > c * epsilon * (1 + 1e-12):
        stages += 1
    batch_size = _batch_size(problem.noise / epsilon)
    progress = _rest(problem, batch_size, curvature(stages))
    distance = c * problem.gap * (1 - 2 * rho) / ((1 - (2 * rho) ** stages) * progress)
    plan = geometric(rho, stages, distance)
    limited = problem.rho is None and rho < 0.1
    return _stagewise(name, "Corollary 2 of Theorem", problem, plan, batch_size, limited)


def _rest(problem: _Problem, batch_size: int, curvature: float) -> float:
    """What is left for progress: cε, or all that a target leaves."""
    c = problem.smoothness.factor
    if problem.exact is not None:
        return c * problem.exact
    _, target = problem.accuracy(4 * c)
    return target - 2 * c * problem.noise / sqrt(batch_size) - curvature


def _stagewise(name: str, source: str, problem: _Problem, plan: StagePlan, batch_size: int, lr_limited: bool) -> Plan:
    smoothness = problem.smoothness
    theorem = f"{source} {3 if isinstance(smoothness, Smooth) else 4}"
    return Plan(
        name,
        theorem,
        smoothness,
        problem.sigma,
        problem.gap,
        problem.accuracy(4 * smoothness.factor)[1],
        plan[0].lr,
        batch_size,
        plan.steps,
        plan.steps * batch_size,
        stagewise_bound(
            smoothness, sigma=problem.sigma, gap=problem.gap, plan=plan, batch_size=batch_size, kappa=problem.kappa
        ),
        lr_limited,
        plan,
        kappa=problem.kappa,
    )


def _sgd(name: str, problem: _Problem) -> Plan:
    """b = 1, α = τ²/(L(τ² + σ²)), N = 2LΔ(τ² + σ²)/τ⁴: the cheapest under Theorem 2.1 for any target."""
    smoothness, sigma, gap = _smooth(problem), problem.sigma, problem.gap
    _, target = problem.accuracy(1)
    spread = 1 + (sigma / target) ** 2
    lr = 1 / (smoothness.L * spread)
    steps = _ceil(2 * smoothness.L * gap * spread / target**2)
    bound = sgd_bound(smoothness, sigma=sigma, gap=gap, lr=lr, batch_size=1, steps=steps)
    return Plan(name, "Ghadimi and Lan 2013, Theorem 2.1", smoothness, sigma, gap, target, lr, 1, steps, steps, bound)


def _spider_sfo(name: str, problem: _Problem) -> Plan:
    """The published parameters with n_0 = 1."""
    smoothness, sigma, gap = _smooth(problem), problem.sigma, problem.gap
    epsilon, target = problem.accuracy(5)
    ratio = sigma / epsilon
    lr, max_scale = epsilon / smoothness.L, 0.5 / smoothness.L
    anchor_batch_size, batch_size = _batch_size(sqrt(2) * ratio), max(1, _ceil(2 * ratio))
    period = max(1, _floor(ratio))
    steps = _ceil(4 * smoothness.L * gap / epsilon**2)
    bound = spider_sfo_bound(
        smoothness,
        sigma=sigma,
        gap=gap,
        lr=lr,
        max_scale=max_scale,
        batch_size=batch_size,
        anchor_batch_size=anchor_batch_size,
        period=period,
        steps=steps,
    )
    return Plan(
        name,
        "Fang et al. 2018, Theorem 1",
        smoothness,
        sigma,
        gap,
        target,
        lr,
        batch_size,
        steps,
        differences(anchor_batch_size, batch_size, period).of_steps(steps),
        bound,
        options={"anchor_batch_size": anchor_batch_size, "period": period, "max_scale": max_scale},
    )


def _momentum(name: str, problem: _Problem) -> Plan:
    """The fewest steps N for which some a = 1 − β makes `momentum_bound`, at its best α, at most the target; b = 1."""
    smoothness, sigma, gap = _smooth(problem), problem.sigma, problem.gap
    _, target = problem.accuracy(4)
    steps = _first(lambda n: _momentum_total(problem, _best_a(problem, n), n) <= target * (1 + 1e-12))
    momentum = 1 - _best_a(problem, steps)
    if 1 - momentum < 2 * _SMALLEST_A:
        raise OverflowError
    lr = sqrt(gap / (_momentum_curvature(smoothness, 1 - momentum) * steps))
    bound = momentum_bound(
        smoothness, sigma=sigma, gap=gap, lr=lr, momentum=momentum, batch_size=1, steps=steps, kappa=problem.kappa
    )
    return Plan(
        name,
        "momentum bound (docs/theory.md)",
        smoothness,
        sigma,
        gap,
        target,
        lr,
        1,
        steps,
        steps,
        bound,
        options={"momentum": momentum},
        kappa=problem.kappa,
    )


def _momentum_total(problem: _Problem, a: float, steps: int) -> float:
    """`momentum_bound` at the α for which progress and curvature are equal. It never grows with `steps`."""
    curvature = _momentum_curvature(_smooth(problem), a)
    return 2 * sqrt(curvature * problem.gap / steps) + 2 * problem.noise * mean_of_noise(1 - a, steps)


def _momentum_curvature(smoothness: Smooth, a: float) -> float:
    """L(½ + 2(1 − a)/a)."""
    return smoothness.L * (0.5 + 2 * (1 - a) / a)


def _best_a(problem: _Problem, steps: int) -> float:
    """The a in (0, 1] of the least `_momentum_total`, by golden-section search over log a."""
    ratio = (sqrt(5) - 1) / 2
    low, high = log(_SMALLEST_A), 0.0

    def total(log_a: float) -> float:
        return _momentum_total(problem, exp(log_a), steps)

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = total(left), total(right)
    while high - low > 1e-9:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = total(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = total(right)
    return 1.0 if total(0.0) <= min(at_left, at_right) else exp((low + high) / 2)


def _first(fits: Callable[[int], bool]) -> int:
    """The smallest whole number n ≥ 1 that fits, if all greater ones fit as well."""
    high = 1
    while not fits(high):
        high *= 2
        if high > MAX_STEPS:
            raise OverflowError
    low = high // 2  # 0, or it does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _smooth(problem: _Problem) -> Smooth:
    assert isinstance(problem.smoothness, Smooth)  # `plan` has checked it
    return problem.smoothness


def _batch_size(ratio: float) -> int:
    """The smallest b ≥ 1 with σ/√b ≤ ε, for ratio = σ/ε."""
    return max(1, _ceil(ratio**2))


def _ceil(x: float) -> int:
    """⌈x⌉, at least 1 if x > 0; x within 1e-12 (relative) of an integer is that integer: 100.00000000000001 is 100."""
    nearest = round(x)
    return nearest if isclose(x, nearest, rel_tol=1e-12) else ceil(x)


def _floor(x: float) -> int:
    return -_ceil(-x)


_PLANNERS: dict[str, Callable[[str, _Problem], Plan]] = {
    "sngd": _sngd,
    "s-sngd:harmonic": _harmonic,
    "s-sngd:harmonic-even": _harmonic_even,
    "s-sngd:geometric": _geometric,
    "sgd": _sgd,
    "spider-sfo": _spider_sfo,
    "nsgd-momentum": _momentum,
}

_EUCLIDEAN = ("sgd", "spider-sfo")

PLANNED = tuple(_PLANNERS)
"""The methods that `plan` knows."""
