"""Upper bounds on E‖∇F(w̄)‖* for any learning rate, batch size and number of steps, term by term.

w̄ is an iterate (the weights before a step) drawn at random from a run. Everywhere, the gradient noise is
E‖∇f(w; a) − ∇F(w)‖₂² ≤ σ², samples are drawn independently, and the gap is Δ = F(w_0) − inf F. The derivations are in
`docs/theory.md`.

‖·‖ is the norm of the steps, and ‖·‖* its dual norm, in which the gradient is bounded; for the paper's methods both are
the Euclidean norm ‖·‖₂. In another norm, L (L0 and L1) are that norm's constants, and κ (`kappa`) is a number with
‖v‖* ≤ κ‖v‖₂ for all v, so that a mini-batch's error in the dual norm is κσ/√b at most. σ itself stays Euclidean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import atan, expm1, log, log1p, sqrt

from sngd.checks import count, non_negative, positive, shown
from sngd.stages import StagePlan
from sngd.theory.inexact import EXACT, Inexact
from sngd.theory.lemmas import kept_share
from sngd.theory.smoothness import Smooth, Smoothness, check_lr


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on E‖∇F(w̄)‖*, as the sum of its terms.

    `progress` falls with the distance travelled, `curvature` grows with the learning rate, `noise` falls with the batch
    size. If `squared`, the terms bound E‖∇F(w̄)‖², and the bound is the root of their sum (Jensen).

    Examples:
        >>> Bound(1.0, 0.5, 0.5).total, Bound(3.0, 0.0, 1.0, squared=True).total
        (2.0, 2.0)
    """

    progress: float
    curvature: float
    noise: float
    squared: bool = False

    @property
    def total(self) -> float:
        """The bound on E‖∇F(w̄)‖*."""
        total = self.progress + self.curvature + self.noise
        return sqrt(total) if self.squared else total


def sngd_bound(
    smoothness: Smoothness,
    *,
    sigma: float,
    gap: float,
    lr: float,
    batch_size: int,
    steps: int,
    kappa: float = 1.0,
    step: Inexact = EXACT,
) -> Bound:
    """SNGD, Theorems 1 and 2: the mean over all iterates a step was taken from, (1/N) Σ E‖∇F(w_t)‖*, t = 0 … N − 1.

    L-smooth: Δ/(αN) + Lα/2 + 2κσ/√b. (L0, L1)-smooth, if αL1 ≤ ½: 2Δ/(αN) + 2L0α + 4κσ/√b. The paper's T is N − 1.

    Inexact steps have (cΔ/(αN) + kα(1 + δ)² + c(2 + δ − ε)κσ/√b)/(1 − ε), with c and k as in `sngd.theory.smoothness`.

    Args:
        smoothness: L, or L0 and L1.
        sigma: σ ≥ 0.
        gap: Δ = F(w_0) − inf F ≥ 0.
        lr: α > 0; at most 1/(2 L1) for (L0, L1)-smooth F, and (1 − ε)/(2 L1 (1 + δ)²) for inexact steps.
        batch_size: b ≥ 1.
        steps: N = T + 1 ≥ 1, the number of steps.
        kappa: κ > 0.
        step: ε and δ of inexact steps.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        >>> bound = sngd_bound(Smooth(4), sigma=1, gap=2.3, lr=0.05, batch_size=100, steps=460)
        >>> round(bound.progress, 9), bound.curvature, bound.noise, round(bound.total, 9)
        (0.1, 0.1, 0.2, 0.4)
    """
    lr = check_lr(smoothness, lr, step=step)
    return _bound(
        smoothness,
        step,
        progress=non_negative("gap", gap) / (lr * count("steps", steps)),
        lr=lr,
        error=_minibatch_error(sigma, batch_size, kappa),
    )


def _bound(smoothness: Smoothness, step: Inexact, *, progress: float, lr: float, error: float) -> Bound:
    """(c · progress + kα(1 + δ)² + c(2 + δ − ε) · error)/(1 − ε), the mean of Lemma 1 or 2 over the steps."""
    return Bound(
        progress=smoothness.factor * progress / step.share,
        curvature=smoothness.curvature * lr * step.length**2 / step.share,
        noise=smoothness.factor * step.error * error / step.share,
    )


def _minibatch_error(sigma: float, batch_size: int, kappa: float) -> float:
    """κσ/√b, the largest E‖∇F(w) − g‖* of a mini-batch."""
    return positive("kappa", kappa) * non_negative("sigma", sigma) / sqrt(count("batch_size", batch_size))


def stagewise_bound(
    smoothness: Smoothness,
    *,
    sigma: float,
    gap: float,
    plan: StagePlan,
    batch_size: int,
    kappa: float = 1.0,
    step: Inexact = EXACT,
) -> Bound:
    """S-SNGD, Theorems 3 and 4, with whole numbers of steps: E‖∇F(w̄)‖* for w̄ drawn as Algorithm 2 says.

    Stage t = 0 … T − 1 has learning rate α_t, M_t steps and weight p_{t+1}; let S_t = M_t α_t and q_t = p_{t+1}/S_t.

    * L-smooth: δ (q_0 + Σ_{t≥1} max{0, q_t − q_{t−1}})/Σp + (L/2) Σ α_{t−1}p_t/Σp + 2κσ/√b;
    * (L0, L1)-smooth, if all α_t L1 ≤ ½: twice the first term, 2L0 Σ α_{t−1}p_t/Σp, and 4κσ/√b.

    For inexact steps the terms change as those of `sngd_bound`.

    When q never decreases the first term is δ p_T/(S_{T−1} Σp), as in the paper, where S_t = S. Any positive weights
    are allowed. The bound asks more than Theorem 1's: the gap must hold at the start of *every* stage (only at the
    first if q never increases). The paper's experiments show that stages help, but at a given target this bound
    needs more oracle calls than Theorem 1's (twice as many for Corollary 1).

    Args:
        smoothness: L, or L0 and L1.
        sigma: σ ≥ 0.
        gap: δ ≥ F(w̃_t) − inf F ≥ 0 at the start w̃_t of every stage.
        plan: (α_t, M_t, p_{t+1}); every α_t at most 1/(2 L1) for (L0, L1)-smooth F.
        batch_size: b ≥ 1.
        kappa: κ > 0.
        step: ε and δ of inexact steps.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        >>> from sngd.stages import harmonic
        >>> bound = stagewise_bound(
        ...     Smooth(4), sigma=1, gap=2, plan=harmonic(rho=1, stages=9, distance=1), batch_size=100
        ... )
        >>> round(bound.progress, 9), round(bound.curvature, 9), bound.noise
        (0.4, 0.4, 0.2)
    """
    for stage in plan:
        check_lr(smoothness, stage.lr, step=step)
    total = sum(stage.weight for stage in plan)
    q = [stage.weight / (stage.steps * stage.lr) for stage in plan]
    return _bound(
        smoothness,
        step,
        progress=non_negative("gap", gap) * _rise(q) / total,
        lr=sum(stage.lr * stage.weight for stage in plan) / total,
        error=_minibatch_error(sigma, batch_size, kappa),
    )


def _rise(q: Sequence[float]) -> float:
    """q_0 + Σ max{0, q_t − q_{t−1}}; exactly the last q if they never decrease."""
    if all(before <= after for before, after in pairwise(q)):
        return q[-1]
    return q[0] + sum(max(0.0, after - before) for before, after in pairwise(q))


def momentum_bound(
    smoothness: Smooth,
    *,
    sigma: float,
    gap: float,
    lr: float,
    momentum: float,
    batch_size: int,
    steps: int,
    first_batch_size: int | None = None,
    kappa: float = 1.0,
    step: Inexact = EXACT,
) -> Bound:
    """Normalized momentum: the mean over all iterates a step was taken from, (1/N) Σ E‖∇F(w_t)‖*, t = 0 … N − 1.

    The steps are w ← w − α unit(m), m ← βm + (1 − β)g, as `SNGD(momentum=β, normalize="momentum")` takes them. With
    a = 1 − β and s_t = √((1 + β^t)/(1 − β^t)) the bound is

        Δ/(αN) + Lα(½ + 2β/a) + 2κ(σ/√b) √(a/(2 − a)) R,    R = (s_1 + ∫_1^N s_t dt)/N.

    R falls to 1 as N grows: R ≤ 1 + (π/2 + ln 2)/(aN). At β = 0 it is 1, and the bound is Theorem 1.

    SNGD's m is zero before the first step. Where m_0 is the mean of b_0 gradients at w_0 instead, and momentum begins
    with step 1 (Cutkosky and Mehta 2020), the noise is 2κ(σ/√b)√(a/(2 − a))(N − 1)/N + 2κ(σ/√b_0)(1 − β^N)/(aN).

    Args:
        smoothness: L with ‖∇F(u) − ∇F(w)‖* ≤ L‖u − w‖. There is no such bound here for (L0, L1)-smooth F.
        sigma: σ ≥ 0.
        gap: Δ = F(w_0) − inf F ≥ 0.
        lr: α > 0.
        momentum: β in [0, 1).
        batch_size: b ≥ 1.
        steps: N ≥ 1.
        first_batch_size: b_0 ≥ 1; None for SNGD as it is.
        kappa: κ > 0.
        step: ε and δ of inexact steps.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        >>> constants = {"sigma": 1, "gap": 2.3, "lr": 1e-4, "batch_size": 1}
        >>> bound = momentum_bound(Smooth(4), momentum=0.98, steps=200_000, **constants)
        >>> round(bound.progress, 4), round(bound.curvature, 4), round(bound.noise, 4)
        (0.115, 0.0394, 0.2011)
    """
    _only_smooth(smoothness, "the momentum bound")
    lr, steps = positive("lr", lr), count("steps", steps)
    beta = non_negative("momentum", momentum)
    if beta >= 1:
        raise ValueError(f"momentum must be in [0, 1), got {shown(momentum)}")
    a = 1 - beta
    error = _minibatch_error(sigma, batch_size, kappa)
    if first_batch_size is None:
        noise = error * mean_of_noise(beta, steps)
    else:
        first = _minibatch_error(sigma, first_batch_size, kappa) * (1 - beta**steps) / a
        noise = (first + (steps - 1) * sqrt(a / (2 - a)) * error) / steps
    bound = _bound(smoothness, step, progress=non_negative("gap", gap) / (lr * steps), lr=lr, error=noise)
    drift = smoothness.L * lr * step.length * beta / a
    return replace(bound, curvature=bound.curvature + step.error * drift / step.share)


def mean_of_noise(momentum: float, steps: int) -> float:
    """√(a/(2 − a)) R of `momentum_bound`: the bound on (1/N) Σ E‖noise of m_t‖ for noise of size one in each g_t.

    The integral of s_t − 1 over t is (2/ln(1/β))(Φ(s_1) − Φ(s_N)) with Φ(s) = arctan s + ½ ln((s² + 1)/(s + 1)²).
    """
    if momentum == 0:
        return 1.0
    rate = -log(momentum)

    def spread(t: float) -> float:
        return sqrt((2 + expm1(-rate * t)) / -expm1(-rate * t))

    def primitive(s: float) -> float:
        return atan(s) + log1p(1 / s**2) / 2 - log1p(1 / s)

    excess = 2 / rate * (primitive(spread(1)) - primitive(spread(steps)))
    return sqrt((1 - momentum) / (1 + momentum)) * (spread(1) + (steps - 1) + excess) / steps


def stagewise_momentum_bound(
    smoothness: Smooth,
    *,
    sigma: float,
    gap: float,
    plan: StagePlan,
    batch_size: int,
    kappa: float = 1.0,
    step: Inexact = EXACT,
) -> Bound:
    """Normalized momentum in stages: E‖∇F(w̄)‖* for w̄ drawn with the plan's weights, as Algorithm 2 draws it.

    Step i has learning rate α_i, momentum β_i and probability π_i. Up to its scale, m is a mean of the gradients so far
    with weights that sum to one, that of the newest ρ_i = (1 − β_i)/W_i with W_i = β_i W_{i−1} + 1 − β_i, W_{−1} = 0.
    With v_i = (1 − ρ_i)² v_{i−1} + ρ_i² and d_i = (1 − ρ_i)(d_{i−1} + α_{i−1}), the bound is

        first term of Theorem 3 + L Σ π_i (α_i/2 + 2d_i) + 2κ(σ/√b) Σ π_i √v_i.

    If the weights are p_{t+1} = α_t M_t, as in `sngd.stages.agnostic`, the first term is Δ/Σ α_i. For inexact steps
    the terms change as those of `momentum_bound`.

    Args:
        smoothness: L with ‖∇F(u) − ∇F(w)‖* ≤ L‖u − w‖.
        sigma: σ ≥ 0.
        gap: δ ≥ F(w̃_t) − inf F ≥ 0 at the start w̃_t of every stage; of the first is enough if p_{t+1}/(α_t M_t) never
            grows.
        plan: (α_t, M_t, p_{t+1}, β_t); the time that this function takes grows like its number of steps.
        batch_size: b ≥ 1.
        kappa: κ > 0.
        step: ε and δ of inexact steps.

    Raises:
        ValueError: if an argument is out of its range, or the plan has no momentum.

    Examples:
        >>> from sngd.stages import agnostic
        >>> bound = stagewise_momentum_bound(Smooth(1), sigma=1, gap=1, plan=agnostic(1.0, 10_000), batch_size=1)
        >>> round(bound.progress, 3), round(bound.curvature, 3), round(bound.noise, 3)
        (0.021, 0.462, 0.437)
    """
    _only_smooth(smoothness, "the momentum bound")
    if not plan.sets_momentum:
        raise ValueError(f"plan must have a momentum in every stage, got {plan!r}")
    staged = stagewise_bound(smoothness, sigma=0, gap=gap, plan=plan, batch_size=1, step=step)
    whole = mass = drift = spread = 0.0  # Σp, W_i, d_i + α_i, v_i
    drifts = noises = 0.0
    for stage in plan:
        assert stage.momentum is not None
        probability = stage.weight / stage.steps
        whole += stage.weight
        for _ in range(stage.steps):
            mass = stage.momentum * mass + 1 - stage.momentum
            newest = (1 - stage.momentum) / mass
            drift *= 1 - newest
            spread = (1 - newest) ** 2 * spread + newest**2
            drifts += probability * drift
            noises += probability * sqrt(spread)
            drift += stage.lr
    error = step.error / step.share / whole
    return replace(
        staged,
        curvature=staged.curvature + error * smoothness.L * step.length * drifts,
        noise=error * _minibatch_error(sigma, batch_size, kappa) * noises,
    )


def capped_bound(
    smoothness: Smooth,
    *,
    sigma: float,
    gap: float,
    lr: float,
    max_scale: float,
    batch_size: int,
    steps: int,
    kappa: float = 1.0,
) -> Bound:
    """Capped steps, `w ← w − min{α, β‖g‖*} unit(g)`: the mean `(1/N) Σ E‖∇F(w_t)‖*`, t = 0 … N − 1, for L-smooth F.

    With φ = 1 − Lβ/2 it is Δ/(φαN) + α/(4β) + (1 + 1/φ)κσ/√b. At β = 1/L that is 2Δ/(αN) + Lα/4 + 3κσ/√b.

    Args:
        smoothness: L.
        sigma: σ ≥ 0.
        gap: Δ = F(w_0) − inf F ≥ 0.
        lr: α > 0, the greatest length of a step.
        max_scale: β in (0, 2/L).
        batch_size: b ≥ 1.
        steps: N ≥ 1.
        kappa: κ > 0.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        >>> bound = capped_bound(Smooth(4), sigma=1, gap=2, lr=0.1, max_scale=0.25, batch_size=100, steps=400)
        >>> round(bound.progress, 9), bound.curvature, round(bound.noise, 9)
        (0.1, 0.1, 0.3)
    """
    _only_smooth(smoothness, "the bound of capped steps")
    lr, beta = positive("lr", lr), positive("max_scale", max_scale)
    kept = kept_share(smoothness, beta)
    return Bound(
        progress=non_negative("gap", gap) / (kept * lr * count("steps", steps)),
        curvature=lr / (4 * beta),
        noise=(1 + 1 / kept) * _minibatch_error(sigma, batch_size, kappa),
    )


def sgd_bound(smoothness: Smooth, *, sigma: float, gap: float, lr: float, batch_size: int, steps: int) -> Bound:
    """SGD, Ghadimi and Lan 2013, Theorem 2.1 with a constant learning rate, for w̄ uniform over the N iterates.

    E‖∇F(w̄)‖² ≤ 2Δ/(αN(2 − Lα)) + Lα(σ²/b)/(2 − Lα). The terms are those of the square: `progress` and `noise`, which
    here carries the curvature; `total` is the root of their sum.

    Args:
        smoothness: L. There is no such bound for (L0, L1)-smooth F.
        sigma: σ ≥ 0.
        gap: Δ = F(w_0) − inf F ≥ 0.
        lr: α in (0, 2/L).
        batch_size: b ≥ 1.
        steps: N ≥ 1.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        >>> bound = sgd_bound(Smooth(4), sigma=1, gap=2, lr=0.25, batch_size=16, steps=64)
        >>> bound.progress, bound.noise, bound.total
        (0.25, 0.0625, 0.5590169943749475)
    """
    _only_smooth(smoothness, "SGD's published bound")
    lr = positive("lr", lr)
    damping = 2 - smoothness.L * lr
    if damping <= 0:
        raise ValueError(f"lr must be below 2/L = {2 / smoothness.L!r} for SGD, got {lr!r}")
    variance = non_negative("sigma", sigma) ** 2 / count("batch_size", batch_size)
    return Bound(
        progress=2 * non_negative("gap", gap) / (lr * count("steps", steps) * damping),
        curvature=0.0,
        noise=smoothness.L * lr * variance / damping,
        squared=True,
    )


def spider_variance(
    smoothness: Smooth, *, sigma: float, lr: float, batch_size: int, anchor_batch_size: int, period: int
) -> float:
    """Eq. 15: the largest E‖μ_m − ∇F(w_m)‖² in a period of SPIDER's estimator, (M − 1)α²L²/b + σ²/B.

    The paper has M where M − 1 is enough: the first of the M differences is exactly zero. It grows with the learning
    rate; a mini-batch gradient's, σ²/b, does not.

    Args:
        smoothness: L with E‖∇f(u; a) − ∇f(w; a)‖² ≤ L²‖u − w‖² for all u, w: the samples' smoothness in mean square,
            never below that of F.
        sigma: σ ≥ 0.
        lr: α > 0, the greatest length of a step.
        batch_size: b ≥ 1, samples of a difference.
        anchor_batch_size: B ≥ 1, samples of an anchor.
        period: M ≥ 1, steps from anchor to anchor.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        >>> spider_variance(Smooth(2), sigma=1, lr=0.5, batch_size=8, anchor_batch_size=4, period=5)
        0.75
    """
    _only_smooth(smoothness, "SPIDER's published bound")
    drift = (count("period", period) - 1) * (positive("lr", lr) * smoothness.L) ** 2 / count("batch_size", batch_size)
    return drift + non_negative("sigma", sigma) ** 2 / count("anchor_batch_size", anchor_batch_size)


def spider_sfo_bound(
    smoothness: Smooth,
    *,
    sigma: float,
    gap: float,
    lr: float,
    max_scale: float,
    batch_size: int,
    anchor_batch_size: int,
    period: int,
    steps: int,
) -> Bound:
    """SPIDER-SFO, Fang et al. 2018 (arXiv 1807.01695), Theorem 1 (online case, in expectation: Option II).

    For steps of min{α/‖μ‖, β} μ with β ≤ 1/(2L), and V = `spider_variance`, the published proof gives
    (1/N) Σ E‖∇F(w_k)‖ ≤ 4Δ/(αN) + α/β + (2β/α)V + √V. The published parameters, B = 2σ²/ε², b = 2σ/(ε n_0),
    M = σ n_0/ε, α = ε/(L n_0), β = 1/(2L n_0), N = ⌊4LΔ n_0/ε²⌋ + 1 with 1 ≤ n_0 ≤ 2σ/ε, make it ε + 2ε + (ε + ε) = 5ε.

    Args:
        smoothness: L in mean square over the samples, as in `spider_variance`: a stronger assumption than SNGD's.
        sigma: σ ≥ 0.
        gap: Δ = F(w_0) − inf F ≥ 0.
        lr: α > 0.
        max_scale: β in (0, 1/(2L)].
        batch_size: b ≥ 1, samples of a difference.
        anchor_batch_size: B ≥ 1, samples of an anchor.
        period: M ≥ 1, steps from anchor to anchor (q in Fang et al.).
        steps: N ≥ 1 (K in Fang et al.).

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        ε = ½, L = 1, σ = 1, Δ = 1, n_0 = 1; the bound is below 5ε = 2.5, since N is rounded up and V has M − 1:

        >>> bound = spider_sfo_bound(Smooth(1), sigma=1, gap=1, lr=0.5, max_scale=0.5, batch_size=4,
        ...                          anchor_batch_size=8, period=2, steps=17)
        >>> round(bound.progress, 4), bound.curvature, round(bound.noise, 4), round(bound.total, 4)
        (0.4706, 1.0, 0.808, 2.2786)
    """
    variance = spider_variance(
        smoothness, sigma=sigma, lr=lr, batch_size=batch_size, anchor_batch_size=anchor_batch_size, period=period
    )
    beta = positive("max_scale", max_scale)
    if beta > 0.5 / smoothness.L:
        raise ValueError(f"max_scale must be at most 1/(2L) = {0.5 / smoothness.L!r} for SPIDER-SFO, got {beta!r}")
    return Bound(
        progress=4 * non_negative("gap", gap) / (lr * count("steps", steps)),
        curvature=lr / beta,
        noise=2 * beta / lr * variance + sqrt(variance),
    )


def _only_smooth(smoothness: Smoothness, bound: str) -> None:
    if not isinstance(smoothness, Smooth):
        raise ValueError(f"smoothness must be Smooth(L) for {bound}, got {smoothness}")
