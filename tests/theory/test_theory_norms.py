"""Lemmas and bounds in norms other than the Euclidean one, for inexact and capped steps, on quadratics of known L."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sngd.theory import Inexact, RelaxedSmooth, Smooth, capped_lemma, lemma1, lemma2, sngd_bound

ROUNDING = 1e-9


class LargestEntry:
    """‖w‖ = max |w_i|, the norm of sign descent; ‖g‖* = Σ|g_i|."""

    def draw(self, rng):
        """(H, L): a random quadratic, and L = max ⟨u, Hv⟩ over the ball, by trying all of its corners."""
        d = int(rng.integers(1, 6))
        H = symmetric(rng, d)
        return H, max(np.abs(H @ corner).sum() for corner in itertools.product((-1, 1), repeat=d))

    def unit(self, g):
        return np.sign(g)

    def dual(self, g):
        return np.abs(g).sum()

    def norm(self, w):
        return np.abs(w).max()

    def kappa(self, w):
        return math.sqrt(w.size)


class SumOfEntries(LargestEntry):
    """‖w‖ = Σ|w_i|; a step moves one entry, the one with the largest |g_i| = ‖g‖*."""

    def draw(self, rng):
        H = symmetric(rng, int(rng.integers(1, 6)))
        return H, np.abs(H).max()

    def unit(self, g):
        return np.where(np.arange(g.size) == np.abs(g).argmax(), np.sign(g), 0)

    def dual(self, g):
        return np.abs(g).max()

    def norm(self, w):
        return np.abs(w).sum()

    def kappa(self, _):
        return 1.0


class Spectral:
    """The largest singular value of a 3×3 matrix; ‖g‖* is the sum of the singular values."""

    def draw(self, rng):
        """F(W) = ½⟨W, AWB⟩. L = Σ σ_i(A) σ_i(B), by von Neumann's inequality, which aligned matrices attain."""
        A, B = symmetric(rng, 3), symmetric(rng, 3)
        return np.kron(A, B), np.linalg.svd(A)[1] @ np.linalg.svd(B)[1]

    def unit(self, g):
        u, _, v = np.linalg.svd(g.reshape(3, 3))
        return (u @ v).ravel()

    def dual(self, g):
        return np.linalg.svd(g.reshape(3, 3))[1].sum()

    def norm(self, w):
        return np.linalg.svd(w.reshape(3, 3))[1].max()

    def kappa(self, _):
        return math.sqrt(3)


class Product(LargestEntry):
    """Two balls, with radii ½ and 3: max{‖w_A‖₂/½, max|w_B|/3}; ‖g‖* = ½‖g_A‖₂ + 3 Σ|g_B|; A has two entries."""

    radii = (0.5, 3.0)

    def draw(self, rng):
        """L ≤ Σ r_P r_Q ‖H_PQ‖ over pairs of blocks; with H_AB = 0 and corners for H_BB it is exact."""
        H = np.zeros((5, 5))
        H[:2, :2], H[2:, 2:] = symmetric(rng, 2), symmetric(rng, 3)
        in_b = max(np.abs(H[2:, 2:] @ corner).sum() for corner in itertools.product((-1, 1), repeat=3))
        return H, self.radii[0] ** 2 * np.abs(np.linalg.eigvalsh(H[:2, :2])).max() + self.radii[1] ** 2 * in_b

    def unit(self, g):
        return np.concatenate([self.radii[0] * g[:2] / np.linalg.norm(g[:2]), self.radii[1] * np.sign(g[2:])])

    def dual(self, g):
        return self.radii[0] * np.linalg.norm(g[:2]) + self.radii[1] * np.abs(g[2:]).sum()

    def norm(self, w):
        return max(np.linalg.norm(w[:2]) / self.radii[0], np.abs(w[2:]).max() / self.radii[1])

    def kappa(self, _):
        return math.sqrt(self.radii[0] ** 2 * 1 + self.radii[1] ** 2 * 3)


NORMS = [LargestEntry(), SumOfEntries(), Spectral(), Product()]
in_every_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)


def symmetric(rng, d):
    A = rng.standard_normal((d, d))
    return A + A.T


def instances(norm, seed=0, count=300):
    """(H, L, w, ∇F(w), g, α) at random, half of them with the full gradient."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        H, L = norm.draw(rng)
        w = rng.standard_normal(len(H)) * 10 ** rng.uniform(-2, 1)
        gradient = H @ w
        yield H, L, w, gradient, gradient + rng.choice([0, 1]) * rng.standard_normal(len(H)), 10 ** rng.uniform(-2, 1)


def values(H, *points):
    return [0.5 * w @ H @ w for w in points]


@in_every_norm
def test_the_norms_here_are_what_they_say(norm):
    for _, _, _, gradient, g, _ in instances(norm, count=50):
        unit = norm.unit(g)
        assert norm.norm(unit) == pytest.approx(1)
        assert g @ unit == pytest.approx(norm.dual(g))
        assert norm.dual(gradient) <= norm.kappa(gradient) * np.linalg.norm(gradient) * (1 + ROUNDING)


def slacks(norm, divide_L_by=1):
    for H, L, w, gradient, g, lr in instances(norm):
        after = w - lr * norm.unit(g)
        right = lemma1(Smooth(L / divide_L_by), *values(H, w, after), lr, norm.dual(gradient - g))
        yield right - norm.dual(gradient)


@in_every_norm
def test_lemma1_holds_in_every_norm(norm):
    assert min(slacks(norm)) > -ROUNDING


@in_every_norm
def test_a_wrong_L_violates_lemma1_in_every_norm(norm):
    assert min(slacks(norm, divide_L_by=4)) < -0.1


@in_every_norm
def test_lemma1_holds_for_inexact_steps(norm):
    """Every inexact step is a convex combination here: a shorter exact one, or one that overshoots."""
    rng = np.random.default_rng(1)
    worst = math.inf
    for H, L, w, gradient, g, lr in instances(norm):
        shortfall, overshoot = rng.uniform(0, 0.9), rng.uniform(0, 1)
        unit = norm.unit(g)
        other = norm.unit(rng.standard_normal(len(H)))
        v = -(1 + overshoot) * (unit + rng.uniform(0, 1) * (other - unit))  # not longer than 1 + δ
        shortfall = max(0.0, 1 + (g @ v) / norm.dual(g))  # the least ε that fits
        if shortfall >= 1:
            continue
        step = Inexact(shortfall, overshoot)
        right = lemma1(Smooth(L), *values(H, w, w + lr * v), lr, norm.dual(gradient - g), step)
        worst = min(worst, right - norm.dual(gradient))
    assert worst > -ROUNDING


def test_inexact_closed_forms():
    step = Inexact(0.25, 0.5)
    right = lemma1(Smooth(3), 5, 4, lr=0.5, error=0.25, step=step)
    assert right == pytest.approx((2 + 3 * 0.5 * 1.5**2 / 2 + 2.25 * 0.25) / 0.75)
    x = 0.75 * math.exp(0.75)
    expected = (2 + (1 + x) * 3 * 0.5 * 1.5**2 / 2 + 2.25 * 0.25) / (0.75 - 1.5 * x / 2)
    with pytest.raises(ValueError, match=r"^lr must be shorter for RelaxedSmooth"):
        lemma2(RelaxedSmooth(3, 1), 5, 4, lr=0.5, error=0.25, step=step)
    assert expected < 0  # which is why
    x = 0.3 * math.exp(0.3)
    expected = (5 + (1 + x) * 3 * 0.2 * 1.5**2 / 2 + 2.25 * 0.25) / (0.75 - 1.5 * x / 2)
    assert lemma2(RelaxedSmooth(3, 1), 5, 4, lr=0.2, error=0.25, step=step) == pytest.approx(expected)


@given(
    ε=st.floats(0, 0.99),
    δ=st.floats(0, 5),
    value=st.floats(-10, 10),
    lr=st.floats(0.01, 10),
    error=st.floats(0, 10),
)
def test_an_overshoot_is_a_longer_exact_step_with_a_shortfall(ε, δ, value, lr, error):
    """(ε, δ) at α says what ((ε + δ)/(1 + δ), 0) says at α(1 + δ): v/(1 + δ) is not longer than one."""
    rescaled = Inexact((ε + δ) / (1 + δ), 0)
    assert lemma1(Smooth(3), value, 0, lr, error, Inexact(ε, δ)) == pytest.approx(
        lemma1(Smooth(3), value, 0, lr * (1 + δ), error, rescaled), rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("growth", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("step", [Inexact(), Inexact(0.3, 0.2), Inexact(0.5, 1.0), Inexact(0.9, 0.0)])
def test_theorem2_rounds_the_inexact_lemma2_up(step, growth):
    """Where αL1 ≤ growth (1 − ε)/(1 + δ)², growth ≤ ½, each term of Lemma 2 is at most the theorem's."""
    smoothness = RelaxedSmooth(1, growth * step.share / step.length**2)
    bound = sngd_bound(smoothness, sigma=1, gap=1, lr=1, batch_size=1, steps=1, step=step)
    curvature = lemma2(smoothness, 0, 0, 1, 0, step)
    assert lemma2(smoothness, 1, 0, 1, 0, step) - curvature <= bound.progress * (1 + ROUNDING)
    assert curvature <= bound.curvature * (1 + ROUNDING)
    assert lemma2(smoothness, 0, 0, 1, 1, step) - curvature <= bound.noise * (1 + ROUNDING)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0), r"^shortfall must be in \[0, 1\), got 1\.0$"),
        ((-0.1, 0), "^shortfall must be finite and at least 0, got -0.1$"),
        ((0, math.inf), "^overshoot must be finite and at least 0, got inf$"),
    ],
)
def test_inexact_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        Inexact(*arguments)


# --- capped steps


def capped_slacks(norm, divide_L_by=1):
    rng = np.random.default_rng(2)
    for H, L, w, gradient, g, lr in instances(norm):
        cap = rng.choice([1.0, rng.uniform(0.05, 1.9)]) / L
        after = w - min(lr, cap * norm.dual(g)) * norm.unit(g)
        suspect = Smooth(L / divide_L_by)
        right = capped_lemma(suspect, *values(H, w, after), lr, cap, norm.dual(gradient - g))
        yield right - norm.dual(gradient)


@in_every_norm
def test_capped_steps_obey_their_lemma(norm):
    assert min(capped_slacks(norm)) > -ROUNDING


@in_every_norm
def test_a_wrong_L_violates_the_lemma_of_capped_steps(norm):
    assert min(capped_slacks(norm, divide_L_by=4)) < -0.01


def test_the_lemma_of_capped_steps_is_sharp():
    """F = Lw²/2 with β = 1/L and α = 2β|F′(w)|: the step ends at 0, and the bound is |F′(w)|."""
    for L, w in ((1.0, 1.0), (4.0, 0.3)):
        right = capped_lemma(Smooth(L), L * w**2 / 2, 0, lr=2 * w, max_scale=1 / L, error=0)
        assert right == pytest.approx(L * w, rel=1e-12)


def test_a_cap_must_be_below_two_over_L():
    with pytest.raises(ValueError, match=r"^max_scale must be below 2/L = 0\.5 for a capped step, got 0\.5$"):
        capped_lemma(Smooth(4), 1, 0, lr=1, max_scale=0.5, error=0)
    with pytest.raises(ValueError, match=r"^smoothness must be a Smooth\(L\), got RelaxedSmooth"):
        capped_lemma(RelaxedSmooth(4, 1), 1, 0, lr=1, max_scale=0.1, error=0)
