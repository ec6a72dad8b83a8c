"""The bounds of normalized momentum and of capped steps: against naive twins, at their limits, and along real runs."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import theory as reference
from sngd.stages import Stage, StagePlan, agnostic
from sngd.theory import (
    Inexact,
    RelaxedSmooth,
    Smooth,
    capped_bound,
    momentum_bound,
    plan,
    sngd_bound,
    stagewise_bound,
    stagewise_momentum_bound,
)

constants = st.floats(1e-2, 1e2)
momenta = st.one_of(st.just(0.0), st.floats(0.01, 0.999))


# --- against naive twins


@given(L=constants, sigma=constants, gap=constants, lr=constants, beta=momenta, N=st.integers(1, 300), kappa=constants)
def test_momentum_bound_by_quadrature(L, sigma, gap, lr, beta, N, kappa):
    bound = momentum_bound(Smooth(L), sigma=sigma, gap=gap, lr=lr, momentum=beta, batch_size=3, steps=N, kappa=kappa)
    expected = reference.momentum_by_quadrature(L, sigma, gap, lr, beta, 3, N, kappa)
    assert bound.total == pytest.approx(expected, rel=1e-8)


@given(sigma=constants, lr=constants, beta=momenta, N=st.integers(1, 25), kappa=constants)
def test_the_closed_form_is_just_above_the_sums(sigma, lr, beta, N, kappa):
    """The closed form rounds up the sum of the noise, by less than a tenth, and leaves out how the drift begins."""
    steps = [(lr, beta, 1 / N)] * N
    exact = reference.momentum_by_sums(2.0, sigma, 1.5, steps, 3, kappa)
    bound = momentum_bound(Smooth(2), sigma=sigma, gap=1.5, lr=lr, momentum=beta, batch_size=3, steps=N, kappa=kappa)
    assert exact <= bound.total * (1 + 1e-9)
    drift_left_out = 2 * 2.0 * lr * sum(beta / (1 - beta) - mean_lag(beta, t) for t in range(N)) / N
    assert bound.total - drift_left_out - exact <= 0.1 * bound.noise + 1e-9 * bound.total


def mean_lag(beta, t):
    weights = np.array([beta**k for k in range(t + 1)])
    return weights @ np.arange(t + 1) / weights.sum()


@given(sigma=constants, beta=momenta, N=st.integers(1, 100), b0=st.integers(1, 50), kappa=constants)
def test_a_first_batch_by_its_sums(sigma, beta, N, b0, kappa):
    given_values = {"sigma": sigma, "gap": 1.5, "lr": 0.1, "momentum": beta, "batch_size": 3, "steps": N}
    bound = momentum_bound(Smooth(2), **given_values, first_batch_size=b0, kappa=kappa)
    expected = reference.momentum_with_first_batch(2.0, sigma, 1.5, 0.1, beta, 3, N, b0, kappa)
    assert bound.total == pytest.approx(expected, rel=1e-9)


@given(
    plan=st.lists(st.tuples(st.floats(0.01, 1), st.integers(1, 6), st.floats(0.01, 0.99)), min_size=1, max_size=4),
    sigma=constants,
)
def test_stages_by_their_sums(plan, sigma):
    stages = StagePlan(Stage(lr, steps, lr * steps, beta) for lr, steps, beta in plan)
    travel = sum(lr * steps for lr, steps, _ in plan)
    flat = [(lr, beta, lr / travel) for lr, steps, beta in plan for _ in range(steps)]
    bound = stagewise_momentum_bound(Smooth(2), sigma=sigma, gap=1.5, plan=stages, batch_size=3, kappa=0.7)
    assert bound.total == pytest.approx(reference.momentum_by_sums(2.0, sigma, 1.5, flat, 3, 0.7), rel=1e-9)


@given(L=constants, sigma=constants, gap=constants, lr=constants, share=st.floats(0.01, 1.99), kappa=constants)
def test_capped_bound(L, sigma, gap, lr, share, kappa):
    bound = capped_bound(
        Smooth(L), sigma=sigma, gap=gap, lr=lr, max_scale=share / L, batch_size=7, steps=9, kappa=kappa
    )
    assert bound.total == pytest.approx(reference.capped(L, sigma, gap, lr, share / L, 7, 9, kappa), rel=1e-9)


# --- limits


@given(L=constants, sigma=constants, gap=constants, lr=constants, b=st.integers(1, 99), N=st.integers(1, 10**6))
def test_without_momentum_it_is_theorem_1(L, sigma, gap, lr, b, N):
    common = {"sigma": sigma, "gap": gap, "lr": lr, "batch_size": b, "steps": N, "kappa": 1.5}
    theorem1 = sngd_bound(Smooth(L), **common)
    assert momentum_bound(Smooth(L), momentum=0, **common) == theorem1
    first = momentum_bound(Smooth(L), momentum=0, first_batch_size=b, **common)
    assert (first.progress, first.curvature) == (theorem1.progress, theorem1.curvature)
    assert first.noise == pytest.approx(theorem1.noise, rel=1e-12)


@given(beta=st.floats(0.01, 0.9999), N=st.integers(1, 10**6))
def test_the_start_costs_what_the_page_says(beta, N):
    """1 ≤ R ≤ 1 + (π/2 + ln 2)/(aN): less than the start from one gradient, unless there is hardly any momentum."""
    a = 1 - beta
    common = {"sigma": 1, "gap": 0, "lr": 1, "momentum": beta, "batch_size": 1, "steps": N}
    limit = 2 * math.sqrt(a / (2 - a))
    ratio = momentum_bound(Smooth(1), **common).noise / limit
    assert 1 - 1e-12 <= ratio <= 1 + (math.pi / 2 + math.log(2)) / (a * N) + 1e-12
    if a <= 0.1 and a * N >= 5:
        assert momentum_bound(Smooth(1), **common).noise < momentum_bound(Smooth(1), first_batch_size=1, **common).noise


@pytest.mark.parametrize("kappa", [1.0, 3.0])
@pytest.mark.parametrize("smoothness", [Smooth(4), RelaxedSmooth(4, 1)])
def test_kappa_multiplies_sigma_and_nothing_else(smoothness, kappa):
    common = {"gap": 2.3, "batch_size": 7}
    stages = StagePlan([(0.1, 5), (0.05, 9)])
    for bound, options in ((sngd_bound, {"lr": 0.1, "steps": 9}), (stagewise_bound, {"plan": stages})):
        ours = bound(smoothness, sigma=0.5, kappa=kappa, **options, **common)
        assert ours == bound(smoothness, sigma=0.5 * kappa, **options, **common)


def test_inexact_steps_in_the_bounds():
    """Theorem 1 is ((2.3/(0.1·9)) + 2·0.1·1.5² + 2.25·κσ/√b)/0.75, and momentum's drift is longer by 1 + δ."""
    common = {"sigma": 0.5, "gap": 2.3, "lr": 0.1, "steps": 9, "batch_size": 4, "kappa": 3}
    step = Inexact(0.25, 0.5)
    bound = sngd_bound(Smooth(4), step=step, **common)
    assert bound.total == pytest.approx((2.3 / 0.9 + 2 * 0.1 * 1.5**2 + 2.25 * 0.75) / 0.75)
    with_momentum = momentum_bound(Smooth(4), momentum=0.8, step=step, **common)
    drift = 4 * 0.1 * 1.5 * 0.8 / 0.2
    assert with_momentum.curvature == pytest.approx((2 * 0.1 * 1.5**2 + 2.25 * drift) / 0.75)
    plain = momentum_bound(Smooth(4), momentum=0.8, **common)
    assert with_momentum.noise == pytest.approx(plain.noise / 2 * 2.25 / 0.75)
    staged = stagewise_bound(
        Smooth(4), sigma=0.5, gap=2.3, batch_size=4, kappa=3, step=step, plan=StagePlan([(0.1, 9)])
    )
    assert staged.total == pytest.approx(bound.total)
    relaxed = sngd_bound(RelaxedSmooth(4, 1), step=step, **common)
    assert relaxed.total == pytest.approx((2 * 2.3 / 0.9 + 8 * 0.1 * 1.5**2 + 2 * 2.25 * 0.75) / 0.75)


@given(
    sigma=constants,
    gap=constants,
    lr=constants,
    beta=st.floats(0.01, 0.99),
    b=st.integers(1, 99),
    N=st.integers(1, 999),
)
def test_every_argument_moves_the_bound_the_right_way(sigma, gap, lr, beta, b, N):
    common = {"sigma": sigma, "gap": gap, "lr": lr, "momentum": beta, "batch_size": b, "steps": N, "kappa": 1.0}

    def total(L=3.0, **changed):
        return momentum_bound(Smooth(L), **{**common, **changed}).total

    here = total()
    rounding = 1 - 1e-12
    for larger in ({"sigma": 2 * sigma}, {"gap": 2 * gap}, {"kappa": 1.1}, {"L": 4.0}, {"step": Inexact(0.1, 0)}):
        assert total(**larger) > here
    assert total(step=Inexact(0, 0.1)) > here
    assert total(batch_size=b + 1) < here
    assert total(steps=N + 1) < here / rounding
    noise = momentum_bound(Smooth(3), **common).noise
    assert momentum_bound(Smooth(3), **{**common, "momentum": beta + 0.005}).noise <= noise / rounding


# --- the scale of the buffer, and runs


def test_a_buffer_from_zero_is_the_debiased_mean():
    rng = np.random.default_rng(0)
    beta, gradients = 0.7, rng.standard_normal((6, 3))
    m = np.zeros(3)
    for t, g in enumerate(gradients):
        m = beta * m + (1 - beta) * g
        weights = beta ** np.arange(t, -1, -1)
        mean = weights @ gradients[: t + 1] / weights.sum()
        assert m / (1 - beta ** (t + 1)) == pytest.approx(mean)


def run(rng, H, noise, lr_and_momentum, start, unit, dual, seeds):
    """E‖∇F(w_t)‖* of normalized momentum on F = wᵀHw/2 at every step, m from zero, by the mean over `seeds` runs."""
    w = np.tile(start, (seeds, 1))
    m = np.zeros_like(w)
    norms = []
    for lr, beta in lr_and_momentum:
        gradient = w @ H
        norms.append(dual(gradient).mean())
        m = beta * m + (1 - beta) * (gradient + noise * rng.standard_normal(w.shape) / math.sqrt(w.shape[1]))
        w = w - lr * unit(m)
    return np.array(norms)


EUCLIDEAN = (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True), lambda v: np.linalg.norm(v, axis=1))
SIGN = (np.sign, lambda v: np.abs(v).sum(axis=1))


@pytest.mark.parametrize("norm", ["euclidean", "sign"])
def test_runs_stay_below_the_bound_and_catch_a_wrong_one(norm):
    """F convex with known L and κ; some of the runs are above the bound of L/4, Δ/4, σ/4: it says something."""
    rng = np.random.default_rng(3)
    unit, dual = EUCLIDEAN if norm == "euclidean" else SIGN
    caught = 0
    for _ in range(40):
        d = int(rng.integers(1, 5))
        A = rng.standard_normal((d, d))
        H = A @ A.T / d
        L = np.linalg.eigvalsh(H).max() if norm == "euclidean" else np.abs(H).sum()
        kappa = 1.0 if norm == "euclidean" else math.sqrt(d)
        start = rng.standard_normal(d) * 10 ** rng.uniform(-2, 0.5)
        gap, sigma, steps = start @ H @ start / 2, 10 ** rng.uniform(-2, 0.5), int(rng.integers(5, 200))
        beta, lr = 1 - 10 ** rng.uniform(-2, 0), 10 ** rng.uniform(-3, 0)
        mean = run(rng, H, sigma, [(lr, beta)] * steps, start, unit, dual, seeds=200).mean()
        common = {"lr": lr, "momentum": beta, "batch_size": 1, "steps": steps, "kappa": kappa}
        assert mean <= momentum_bound(Smooth(L), sigma=sigma, gap=gap, **common).total * 1.02
        caught += mean > momentum_bound(Smooth(L / 4), sigma=sigma / 4, gap=gap / 4, **common).total
        staged = agnostic(lr, steps)
        path = [(staged.lr_at(t), staged[staged.stage_at(t)].momentum) for t in range(steps)]
        norms = run(rng, H, sigma, path, start, unit, dual, seeds=200)
        weights = np.array([lr for lr, _ in path])
        bound = stagewise_momentum_bound(Smooth(L), sigma=sigma, gap=gap, plan=staged, batch_size=1, kappa=kappa)
        assert weights @ norms / weights.sum() <= bound.total * 1.02
    assert caught > 0


def test_the_agnostic_plan_has_the_published_exponent():
    """N^(−1/4) log N: from 10³ to 10⁵ steps the bound falls by 10^(−½) · log(10⁵)/log(10³) at the most."""
    totals = [
        stagewise_momentum_bound(Smooth(1), sigma=1, gap=1, plan=agnostic(1.0, N), batch_size=1).total
        for N in (10**3, 10**5)
    ]
    assert totals[1] / totals[0] <= 10**-0.5 * (5 / 3)
    assert totals[1] / totals[0] >= 10**-0.5


# --- the cheapest run with one sample a step


def cheapest_by_brute_force(L, noise, gap, target):
    """The fewest N for which some β of a grid reaches the target at its best α, by trying one N after the other."""
    for N in range(1, 10**4):
        a = np.geomspace(1e-3, 1, 1500)
        rate = -np.log(np.maximum(1 - a, 1e-300))
        first, last = (np.sqrt((1 + np.exp(-rate * t)) / (1 - np.exp(-rate * t))) for t in (1, N))
        spread = (first + N - 1 + 2 / rate * (primitive(first) - primitive(last))) / N
        total = 2 * noise * np.sqrt(a / (2 - a)) * spread + 2 * np.sqrt(L * (2 / a - 1.5) * gap / N)
        if total.min() <= target:
            return N
    raise AssertionError


def primitive(s):
    return np.arctan(s) + 0.5 * np.log((s**2 + 1) / (s + 1) ** 2)


@pytest.mark.parametrize(
    ("sigma", "kappa", "gap", "target"),
    [(0.0, 1.0, 1.0, 0.5), (0.1, 1.0, 0.3, 0.4), (0.3, 1.0, 0.05, 0.4), (0.1, 3.0, 0.05, 0.5), (0.2, 1.0, 2.0, 0.9)],
)
def test_no_plan_with_fewer_steps_reaches_the_target(sigma, kappa, gap, target):
    L = 2.0
    best = plan("nsgd-momentum", Smooth(L), sigma, gap, target=target, kappa=kappa)
    brute = cheapest_by_brute_force(L, kappa * sigma, gap, target)
    assert best.steps <= brute  # the grid of β misses the best one
    assert best.steps >= brute - 1 - brute // 1000
    assert best.oracle_calls == best.steps
    assert best.guarantee <= target
    for N in {max(1, best.steps - 1), best.steps}:
        for lr in best.lr * np.linspace(0.7, 1.3, 13):
            for a in (1 - best.options["momentum"]) * np.linspace(0.7, 1.3, 13):
                total = momentum_bound(
                    Smooth(L), sigma=sigma, gap=gap, lr=lr, momentum=max(0, 1 - a), batch_size=1, steps=N, kappa=kappa
                ).total
                assert total >= (target if best.steps > N else best.bound.total) * (1 - 1e-9)


def test_momentum_does_not_help_where_kappa_sigma_is_below_a_third_of_the_target():
    for sigma, helps in ((0.133, False), (0.134, True)):
        best = plan("nsgd-momentum", Smooth(4), sigma, 1e4, target=0.4)
        assert (best.options["momentum"] > 1e-4) == helps


def test_epsilon_is_a_quarter_of_the_target():
    assert plan("nsgd-momentum", Smooth(4), 1, 2.3, epsilon=0.1) == plan("nsgd-momentum", Smooth(4), 1, 2.3, target=0.4)


@pytest.mark.parametrize("kappa", [1.0, 3.0])
def test_it_costs_twice_theorem_1_to_leading_order(kappa):
    """256 LΔκ²σ²/τ⁴ calls at a = τ²/(8κ²σ²), α = aτ/(8L), against 128 LΔκ²σ²/τ⁴ with large batches."""
    L, sigma, gap, target = 4.0, 1.0, 2.3, 0.01
    best = plan("nsgd-momentum", Smooth(L), sigma, gap, target=target, kappa=kappa)
    large_batches = plan("sngd", Smooth(L), sigma, gap, target=target, kappa=kappa)
    a = 1 - best.options["momentum"]
    assert best.oracle_calls == pytest.approx(256 * L * gap * (kappa * sigma) ** 2 / target**4, rel=1e-3)
    assert large_batches.oracle_calls == pytest.approx(128 * L * gap * (kappa * sigma) ** 2 / target**4, rel=1e-3)
    assert a == pytest.approx(target**2 / (8 * (kappa * sigma) ** 2), rel=1e-3)
    assert best.lr == pytest.approx(a * target / (8 * L), rel=1e-3)


COMMON = {"sigma": 1, "gap": 1, "lr": 0.1, "batch_size": 1, "steps": 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: momentum_bound(Smooth(1), momentum=1.0, **COMMON), "momentum must be in [0, 1), got 1.0"),
        (
            lambda: momentum_bound(Smooth(1), momentum=-0.1, **COMMON),
            "momentum must be finite and at least 0, got -0.1",
        ),
        (
            lambda: momentum_bound(RelaxedSmooth(1, 2), momentum=0.5, **COMMON),
            "smoothness must be Smooth(L) for the momentum bound, got RelaxedSmooth(L0=1.0, L1=2.0)",
        ),
        (
            lambda: momentum_bound(Smooth(1), momentum=0.5, kappa=0, **COMMON),
            "kappa must be finite and greater than 0, got 0",
        ),
        (
            lambda: stagewise_momentum_bound(
                Smooth(1), sigma=1, gap=1, plan=StagePlan([(0.1, 2), (0.2, 1)]), batch_size=1
            ),
            "plan must have a momentum in every stage, got StagePlan(2 stages, 3 steps: 0.1 × 2, 0.2 × 1)",
        ),
        (
            lambda: capped_bound(Smooth(4), max_scale=0.5, **COMMON),
            "max_scale must be below 2/L = 0.5 for a capped step, got 0.5",
        ),
        (
            lambda: sngd_bound(RelaxedSmooth(1, 4), step=Inexact(0.5, 1), **COMMON),
            "lr must be at most (1 − ε)/(2 L1 (1 + δ)²) = 0.015625 for RelaxedSmooth(L0=1.0, L1=4.0), got 0.1",
        ),
        (
            lambda: plan("nsgd-momentum", RelaxedSmooth(1, 2), 1, 1, target=1),
            "smoothness must be Smooth(L) for nsgd-momentum, got RelaxedSmooth(L0=1.0, L1=2.0)",
        ),
        (
            lambda: plan("spider-sfo", Smooth(1), 1, 1, target=1, kappa=2),
            "kappa must be 1 for spider-sfo, whose steps are Euclidean, got 2",
        ),
        (
            lambda: plan("nsgd-momentum", Smooth(4), 1, 1, target=1e-5),
            "target must be greater for nsgd-momentum with Smooth(L=4.0), sigma = 1 and gap = 1, got 1e-05",
        ),
    ],
)
def test_errors_name_argument_value_and_range(call, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        call()


def test_the_table_of_costs_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    rows = re.findall(
        r"^\| (0\.\d+) \| ([\d., ]+) \| \$([\d.]+)\\cdot10\^\{(-\d+)\}\$, ([\d., ]+) \| ([\d.]+) \|$", page, re.M
    )
    assert len(rows) == 3
    for target, theorem1, mantissa, exponent, momentum, ratio in rows:
        large, one = (plan(m, Smooth(4), 1, 2.3, target=float(target)) for m in ("sngd", "nsgd-momentum"))
        shown = [float(word.replace(",", "")) for word in theorem1.split(", ")]
        assert shown == pytest.approx([large.lr, large.batch_size, large.steps, large.oracle_calls])
        assert float(mantissa) * 10.0 ** int(exponent) == pytest.approx(one.lr, rel=2e-3)
        a, steps = (float(word.replace(",", "")) for word in momentum.split(", "))
        assert a == pytest.approx(1 - one.options["momentum"], rel=2e-3)
        assert (steps, float(ratio)) == (one.steps, round(one.oracle_calls / large.oracle_calls, 3))


@given(lr=constants, beta=st.floats(0.01, 0.99), N=st.integers(1, 60), eps=st.floats(0, 0.9), delta=st.floats(0, 1))
def test_inexact_steps_in_stages_are_those_of_the_lemma(lr, beta, N, eps, delta):
    """Inexact steps are longer by 1 + δ in the drift, weigh an error by 2 + δ − ε, and all is divided by 1 − ε."""
    common = {"sigma": 0.5, "gap": 2.3, "batch_size": 4, "kappa": 3, "plan": StagePlan([Stage(lr, N, 1.0, beta)])}
    exact = stagewise_momentum_bound(Smooth(4), **common)
    bound = stagewise_momentum_bound(Smooth(4), step=Inexact(eps, delta), **common)
    share, length, error = 1 - eps, 1 + delta, 2 + delta - eps
    drift = exact.curvature - 2 * lr
    assert bound.progress == pytest.approx(exact.progress / share)
    assert bound.curvature == pytest.approx((2 * lr * length**2 + error * length * drift / 2) / share, rel=1e-6)
    assert bound.noise == pytest.approx(exact.noise / 2 * error / share)
    assert stagewise_momentum_bound(Smooth(4), step=Inexact(), **common) == exact
