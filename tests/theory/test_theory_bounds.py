import doctest
import importlib
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sngd.theory
from reference import theory as reference
from sngd.stages import StagePlan, constant, geometric, harmonic
from sngd.theory import (
    Bound,
    RelaxedSmooth,
    Smooth,
    sgd_bound,
    sngd_bound,
    spider_sfo_bound,
    spider_variance,
    stagewise_bound,
)

constants = st.floats(1e-3, 1e3)
counts = st.integers(1, 10**6)
plans = st.lists(st.tuples(st.floats(1e-4, 0.5), st.integers(1, 50), constants), min_size=1, max_size=8).map(StagePlan)


def exactly(message):
    return rf"^{re.escape(message)}$"


@pytest.mark.parametrize("module", ["bounds", "inexact", "lemmas", "planner", "smoothness"])
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"sngd.theory.{module}"))
    assert result.failed == 0
    assert result.attempted > 1


def test_no_module_imports_torch_or_numpy():
    code = (
        "import sys, types\n"
        "package = types.ModuleType('sngd'); package.__path__ = sys.argv[1:]; sys.modules['sngd'] = package\n"
        "import sngd.theory\n"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    folder = sngd.__path__[0]
    found = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# --- against the statements of the theorems


@given(L=constants, sigma=constants, gap=constants, lr=constants, b=counts, steps=counts)
def test_theorems_1_and_2(L, sigma, gap, lr, b, steps):
    common = {"sigma": sigma, "gap": gap, "lr": lr, "batch_size": b, "steps": steps}
    assert math.isclose(sngd_bound(Smooth(L), **common).total, reference.theorem1(L, sigma, gap, lr, b, steps - 1))
    relaxed = sngd_bound(RelaxedSmooth(L, 0.5 / lr * (1 - 1e-9)), **common)
    assert math.isclose(relaxed.total, reference.theorem2(L, sigma, gap, lr, b, steps - 1))


@given(L=constants, sigma=constants, delta=constants, b=counts, plan=plans)
def test_theorems_3_and_4(L, sigma, delta, b, plan):
    common = {"sigma": sigma, "gap": delta, "plan": plan, "batch_size": b}
    assert math.isclose(
        stagewise_bound(Smooth(L), **common).total, reference.theorem3(L, sigma, delta, b, plan_list(plan))
    )
    relaxed = stagewise_bound(RelaxedSmooth(L, 1), **common)
    assert math.isclose(relaxed.total, reference.theorem4(L, sigma, delta, b, plan_list(plan)))


def plan_list(plan):
    return [tuple(stage) for stage in plan.as_list()]


@given(L=constants, sigma=constants, gap=constants, share=st.floats(0.01, 1.9), b=counts, steps=counts)
def test_ghadimi_and_lan(L, sigma, gap, share, b, steps):
    bound = sgd_bound(Smooth(L), sigma=sigma, gap=gap, lr=share / L, batch_size=b, steps=steps)
    assert math.isclose(bound.total, reference.ghadimi_lan(L, sigma, gap, share / L, b, steps), rel_tol=1e-6)


def test_ghadimi_and_lan_corollary_22():
    """With α = min{1/L, D/(σ√N)}, D = D_f: (1/L) E‖∇F‖² ≤ L D²/N + 2Dσ/√N."""
    for N in (1, 10, 1000):
        L, sigma, gap = 3.0, 2.0, 0.7
        D = math.sqrt(2 * gap / L)
        lr = min(1 / L, D / (sigma * math.sqrt(N)))
        bound = sgd_bound(Smooth(L), sigma=sigma, gap=gap, lr=lr, batch_size=1, steps=N)
        assert bound.total**2 / L <= L * D**2 / N + 2 * D * sigma / math.sqrt(N) + 1e-12


@given(epsilon=st.floats(0.01, 0.5), n0=st.integers(1, 2), L=constants, gap=constants)
def test_published_spider_parameters_give_at_most_5_epsilon(epsilon, n0, L, gap):
    sigma = 1.0
    values = {"sigma": sigma, "lr": epsilon / (L * n0), "period": max(1, math.floor(sigma * n0 / epsilon))}
    values |= {"batch_size": math.ceil(2 / (epsilon * n0)), "anchor_batch_size": math.ceil(2 / epsilon**2)}
    steps = math.floor(4 * L * gap * n0 / epsilon**2) + 1
    bound = spider_sfo_bound(Smooth(L), gap=gap, max_scale=0.5 / (L * n0), steps=steps, **values)
    assert bound.progress <= epsilon * (1 + 1e-9)
    assert math.isclose(bound.curvature, 2 * epsilon)
    assert bound.noise <= epsilon * (1 / n0 + 1) * (1 + 1e-9) or n0 > 1
    assert bound.total <= 5 * epsilon * (1 + 1e-9)
    b, B, M = (values[name] for name in ("batch_size", "anchor_batch_size", "period"))
    assert math.isclose(bound.total, reference.spider(L, sigma, gap, values["lr"], 0.5 / (L * n0), b, B, M, steps))


# --- closed forms of the corollaries


@pytest.mark.parametrize("rho", [0.5, 2.0])
@pytest.mark.parametrize("T", [1, 2, 17])
def test_corollary1(rho, T):
    """S is a multiple of ρ, so that nothing is rounded."""
    bound = stagewise_bound(Smooth(3), sigma=0.5, gap=2, plan=harmonic(rho, T, 3 * rho), batch_size=7)
    assert bound.total == pytest.approx(reference.corollary1(3, 0.5, 2, 7, rho, T, 3 * rho), rel=1e-12)


@pytest.mark.parametrize("rho", [0.1, 0.25])
@pytest.mark.parametrize("T", [1, 2, 5])
def test_corollary2(rho, T):
    bound = stagewise_bound(Smooth(3), sigma=0.5, gap=2, plan=geometric(rho, T, 1.0), batch_size=7)
    assert bound.total == pytest.approx(reference.corollary2(3, 0.5, 2, 7, rho, T, 1.0), rel=1e-12)


def test_one_stage_is_sngd():
    common = {"sigma": 1, "gap": 2.3, "batch_size": 7}
    for smoothness in (Smooth(4), RelaxedSmooth(4, 2)):
        staged = stagewise_bound(smoothness, plan=constant(0.05, 99), **common)
        assert staged.total == pytest.approx(sngd_bound(smoothness, lr=0.05, steps=99, **common).total, rel=1e-14)


# --- the rounded first term


@given(plan=plans, seed=st.integers(0, 99))
def test_first_term_bounds_the_weighted_decrease(plan, seed):
    """Σ p_{t+1} (F(w̃_t) − F(w̃_{t+1}))/S_t ≤ its bound, for any values in [0, δ]; with equality for the worst ones."""
    q = [stage.weight / (stage.steps * stage.lr) for stage in plan]
    first = stagewise_bound(Smooth(1), sigma=0, gap=2, plan=plan, batch_size=1).progress * sum(s.weight for s in plan)

    def decrease(F):
        return sum(q[t] * (F[t] - F[t + 1]) for t in range(len(q)))

    values = np.random.default_rng(seed).uniform(0, 2, len(q) + 1)
    assert decrease(values) <= first * (1 + 1e-12)
    worst = [2] + [2 if q[t] > q[t - 1] else 0 for t in range(1, len(q))] + [0]
    assert decrease(worst) == pytest.approx(first, rel=1e-9)


@given(rho=st.floats(1e-3, 10), T=st.integers(1, 60), times=st.floats(1, 50))
def test_rounding_a_harmonic_plan_only_lowers_the_bound(rho, T, times):
    S = times * rho
    bound = stagewise_bound(Smooth(3), sigma=0.5, gap=2, plan=harmonic(rho, T, S), batch_size=7)
    assert bound.total <= reference.corollary1(3, 0.5, 2, 7, rho, T, S) * (1 + 2e-9)


@given(rho=st.floats(0.01, 1 / 3), T=st.integers(1, 6), S=st.floats(1e-4, 10))
def test_rounding_a_geometric_plan_only_lowers_the_bound(rho, T, S):
    bound = stagewise_bound(Smooth(3), sigma=0.5, gap=2, plan=geometric(rho, T, S), batch_size=7)
    assert bound.total <= reference.corollary2(3, 0.5, 2, 7, rho, T, S) * (1 + 2e-9)


# --- properties


@given(sigma=constants, gap=constants, lr=st.floats(1e-3, 0.4), b=counts, steps=counts)
def test_terms_are_non_negative_and_fall_with_batch_size_and_steps(sigma, gap, lr, b, steps):
    common = {"sigma": sigma, "gap": gap, "lr": lr}
    for smoothness, bounds in ((Smooth(4), (sngd_bound, sgd_bound)), (RelaxedSmooth(4, 1), (sngd_bound,))):
        for bound in bounds:
            here = bound(smoothness, batch_size=b, steps=steps, **common)
            larger = bound(smoothness, batch_size=b + 1, steps=steps, **common)
            longer = bound(smoothness, batch_size=b, steps=steps + 1, **common)
            assert min(here.progress, here.curvature, here.noise) >= 0
            assert larger.noise < here.noise
            assert longer.progress < here.progress
            assert larger.total <= here.total
            assert longer.total <= here.total


def test_spider_variance_grows_with_lr():
    values = [
        spider_variance(Smooth(2), sigma=1, lr=lr, batch_size=8, anchor_batch_size=100, period=9) for lr in (0.1, 1, 10)
    ]
    assert values == pytest.approx([0.01 + 0.04, 0.01 + 4, 0.01 + 400])


def test_a_squared_bound_has_the_root_as_total():
    assert Bound(9, 0, 16, squared=True).total == 5
    assert Bound(9, 0, 16).total == 25


SNGD = {"sigma": 1, "gap": 1, "lr": 0.1, "batch_size": 1, "steps": 1}
SPIDER = {**SNGD, "max_scale": 0.1, "anchor_batch_size": 1, "period": 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sngd_bound(Smooth(1), **{**SNGD, "sigma": -1}), "sigma must be finite and at least 0, got -1"),
        (lambda: sngd_bound(Smooth(1), **{**SNGD, "gap": math.inf}), "gap must be finite and at least 0, got inf"),
        (lambda: sngd_bound(Smooth(1), **{**SNGD, "steps": 0}), "steps must be a whole number of at least 1, got 0"),
        (
            lambda: sngd_bound(Smooth(1), **{**SNGD, "batch_size": 1.5}),
            "batch_size must be a whole number of at least 1, got 1.5",
        ),
        (
            lambda: sngd_bound(RelaxedSmooth(1, 10), **SNGD),
            "lr must be at most 1/(2 L1) = 0.05 for RelaxedSmooth(L0=1.0, L1=10.0), got 0.1",
        ),
        (
            lambda: stagewise_bound(
                RelaxedSmooth(1, 10), sigma=1, gap=1, plan=StagePlan([(0.05, 1), (0.06, 1)]), batch_size=1
            ),
            "lr must be at most 1/(2 L1) = 0.05 for RelaxedSmooth(L0=1.0, L1=10.0), got 0.06",
        ),
        (lambda: sgd_bound(Smooth(4), **{**SNGD, "lr": 0.5}), "lr must be below 2/L = 0.5 for SGD, got 0.5"),
        (
            lambda: sgd_bound(RelaxedSmooth(4, 1), **SNGD),
            "smoothness must be Smooth(L) for SGD's published bound, got RelaxedSmooth(L0=4.0, L1=1.0)",
        ),
        (
            lambda: spider_sfo_bound(Smooth(8), **SPIDER),
            "max_scale must be at most 1/(2L) = 0.0625 for SPIDER-SFO, got 0.1",
        ),
        (
            lambda: spider_sfo_bound(Smooth(1), **{**SPIDER, "period": 0}),
            "period must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_errors_name_argument_value_and_range(call, message):
    with pytest.raises(ValueError, match=exactly(message)):
        call()
