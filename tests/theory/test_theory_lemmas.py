"""Lemmas 1 and 2 hold at random points of functions whose constants are known, and fail for wrong ones."""

import math
import re

import numpy as np
import pytest

from sngd.theory import RelaxedSmooth, Smooth, lemma1, lemma2
from sngd.theory.smoothness import check_lr

ROUNDING = 1e-9


def exactly(message):
    return rf"^{re.escape(message)}$"


def normalized_step(w, g, lr):
    return w - lr * g / np.linalg.norm(g)


def test_closed_forms():
    assert lemma1(Smooth(3), 5, 4, lr=0.5, error=0.25) == 2 + 0.75 + 0.5
    x = 0.5 * math.exp(0.5)
    expected = (2 + (1 + x) * 3 * 0.25 + 0.5) / (1 - x / 2)
    assert lemma2(RelaxedSmooth(3, 1), 5, 4, lr=0.5, error=0.25) == pytest.approx(expected, rel=1e-15)


def test_lemma2_without_l1_is_lemma1():
    assert lemma2(RelaxedSmooth(3, 0), 5, 4, lr=0.5, error=0.25) == lemma1(Smooth(3), 5, 4, lr=0.5, error=0.25)


def quadratic_slacks(divide_L_by):
    """Lemma 1's bound minus ‖∇F(w)‖ over random quadratics, indefinite ones too."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        d = rng.integers(1, 6)
        A = rng.standard_normal((d, d))
        A = A + A.T
        L = np.abs(np.linalg.eigvalsh(A)).max()
        w = rng.standard_normal(d) * 10 ** rng.uniform(-2, 1)
        gradient = A @ w
        g = gradient + rng.choice([0, 1]) * rng.standard_normal(d)
        lr = 10 ** rng.uniform(-2, 1)
        after = normalized_step(w, g, lr)
        error = np.linalg.norm(gradient - g)
        values = [0.5 * u @ A @ u for u in (w, after)]
        yield lemma1(Smooth(L / divide_L_by), *values, lr, error) - np.linalg.norm(gradient)


def test_lemma1_holds_on_random_quadratics():
    assert min(quadratic_slacks(1)) > -ROUNDING


def test_a_wrong_L_violates_lemma1():
    assert min(quadratic_slacks(4)) < -0.1


def cosh_slacks(divide_by):
    """The same for Σ cosh(a_i w_i)/a_i², with L0 = 1 and L1 = max a: F″ = cosh ≤ 1 + sinh = 1 + a |F′|, and L = ∞."""
    rng = np.random.default_rng(1)
    for _ in range(500):
        a = rng.uniform(0.2, 3, rng.integers(1, 5))
        w = rng.uniform(-3, 3, a.size) * rng.choice([0.02, 1])
        gradient = np.sinh(a * w) / a
        g = gradient + rng.choice([0, 1]) * rng.standard_normal(a.size)
        lr = rng.uniform(0.01, 0.85) / a.max()
        after = normalized_step(w, g, lr)
        values = [np.sum(np.cosh(a * u) / a**2) for u in (w, after)]
        smoothness = RelaxedSmooth(1 / divide_by, a.max() / divide_by)
        yield lemma2(smoothness, *values, lr, np.linalg.norm(gradient - g)) - np.linalg.norm(gradient)


def test_lemma2_holds_on_random_cosh_functions():
    assert min(cosh_slacks(1)) > -ROUNDING


def test_wrong_constants_violate_lemma2():
    assert min(cosh_slacks(4)) < -0.01


@pytest.mark.parametrize("growth", np.linspace(0, 0.5, 51))
def test_theorem2_rounds_lemma2_up(growth):
    """Where α L1 ≤ ½, Lemma 2's constants are at most 2, 2 and 4."""
    smoothness = RelaxedSmooth(1, growth)
    assert lemma2(smoothness, 1, 0, lr=1, error=0) <= 2 + 2
    assert lemma2(smoothness, 0, 0, lr=1, error=0) <= smoothness.curvature
    assert lemma2(smoothness, 0, 0, lr=1, error=1) - lemma2(smoothness, 0, 0, lr=1, error=0) <= 2 * smoothness.factor


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Smooth(0), "L must be finite and greater than 0, got 0"),
        (lambda: Smooth("4"), "L must be finite and greater than 0, got '4'"),
        (lambda: RelaxedSmooth(0, 1), "L0 must be finite and greater than 0, got 0"),
        (lambda: RelaxedSmooth(1, -1), "L1 must be finite and at least 0, got -1"),
        (lambda: lemma1(Smooth(1), 1, 0, lr=0, error=0), "lr must be finite and greater than 0, got 0"),
        (lambda: lemma1(Smooth(1), math.nan, 0, lr=1, error=0), "value must be a finite number, got nan"),
        (lambda: lemma1(Smooth(1), 1, math.inf, lr=1, error=0), "next_value must be a finite number, got inf"),
        (lambda: lemma1(Smooth(1), 1, 0, lr=1, error=-1), "error must be finite and at least 0, got -1"),
        (
            lambda: lemma1(RelaxedSmooth(1, 2), 1, 0, lr=1, error=0),
            "smoothness must be a Smooth(L), got RelaxedSmooth(L0=1.0, L1=2.0), which lemma2 is for",
        ),
        (
            lambda: lemma2(Smooth(1), 1, 0, lr=1, error=0),
            "smoothness must be a RelaxedSmooth(L0, L1), got Smooth(L=1.0), which lemma1 is for",
        ),
        (lambda: lemma1(3, 1, 0, lr=1, error=0), "smoothness must be a Smooth(L), got 3"),
        (lambda: lemma2(3, 1, 0, lr=1, error=0), "smoothness must be a RelaxedSmooth(L0, L1), got 3"),
        (
            lambda: lemma2(RelaxedSmooth(1, 2), 1, 0, lr=0.5, error=0),
            "lr must be below 0.8526/L1 = 0.4263 for RelaxedSmooth(L0=1.0, L1=2.0), got 0.5",
        ),
        (
            lambda: check_lr(RelaxedSmooth(1, 2), 0.26),
            "lr must be at most 1/(2 L1) = 0.25 for RelaxedSmooth(L0=1.0, L1=2.0), got 0.26",
        ),
    ],
)
def test_errors_name_argument_value_and_range(call, message):
    with pytest.raises(ValueError, match=exactly(message)):
        call()


def test_lemma2_accepts_exactly_where_its_factor_is_positive():
    assert lemma2(RelaxedSmooth(1, 1), 1, 0, lr=0.8526, error=0) > 0
    with pytest.raises(ValueError, match="lr must be below"):
        lemma2(RelaxedSmooth(1, 1), 1, 0, lr=0.8527, error=0)
    with pytest.raises(ValueError, match="lr must be below"):
        lemma2(RelaxedSmooth(1, 1), 1, 0, lr=1e9, error=0)
