"""The fit of L0 and L1 is the linear program's optimum, its intervals cover the truth, outliers do not move it."""

import re

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import sngd.diagnose.fit as fit
from sngd.diagnose.fit import fit_relaxed_smooth
from sngd.diagnose.objective import Objective
from sngd.diagnose.smoothness import local_smoothness
from sngd.problems.analytic import relaxed_smooth
from sngd.theory import RelaxedSmooth


def exactly(message):
    return rf"^{re.escape(message)}$"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n, L0, L1, generator):
    """‖∇F‖ in [0, 5) and L̂ of median L0 + L1 ‖∇F‖; log L̂ has Cauchy noise, which has no mean."""
    x = 5 * torch.rand(n, generator=generator, dtype=torch.float64)
    noise = torch.empty(n, dtype=torch.float64).cauchy_(generator=generator)
    return x, (L0 + L1 * x) * (0.2 * noise).clamp(-100, 100).exp()


def contains(interval, value):
    return interval.low <= value <= interval.high


# ---- the line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.95])
@pytest.mark.parametrize(("L0", "L1"), [(2.0, 0.5), (0.0, 3.0), (1.5, 0.0)])
def test_points_on_a_line_give_the_line(L0, L1, quantile):
    x = torch.linspace(0, 4, 12, dtype=torch.float64)
    found = fit_relaxed_smooth(x, L0 + L1 * x, quantile=quantile, generator=seeded())
    assert (*found.L0, *found.L1) == pytest.approx([L0] * 3 + [L1] * 3, abs=1e-12)
    assert (found.quantile, found.points) == (quantile, 12)


def loss(x, y, L0, L1, quantile):
    residuals = y - L0 - L1 * x
    return np.maximum(quantile * residuals, (quantile - 1) * residuals).sum()


def least_loss(x, y, quantile):
    """By scipy: variables L0, L1, and the parts of the residuals above and below."""
    n = len(x)
    cost = np.concatenate([[0, 0], np.full(n, quantile), np.full(n, 1 - quantile)])
    line = np.hstack([np.ones((n, 1)), x[:, None], np.eye(n), -np.eye(n)])
    return linprog(cost, A_eq=line, b_eq=y, bounds=(0, None)).fun


@pytest.mark.parametrize("slope", [-2.0, 0.0, 2.0])  # down: L1 = 0 binds
@pytest.mark.parametrize("offset", [-3.0, 1.0])  # a line that starts below 0: L0 = 0 binds
@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.95])
def test_the_line_is_optimal(slope, offset, quantile):
    rng = np.random.default_rng(1)
    for n in (3, 4, 25):
        x = rng.uniform(0, 4, n)
        y = np.abs(offset + slope * x + rng.standard_cauchy(n))
        found = fit_relaxed_smooth(x.tolist(), y.tolist(), quantile=quantile, resamples=100, generator=seeded())
        L0, L1 = found.L0.value, found.L1.value
        assert min(L0, L1) >= 0
        assert loss(x, y, L0, L1, quantile) == pytest.approx(least_loss(x, y, quantile), rel=1e-9)


def test_the_quantile_is_the_part_of_points_below():
    x, y = points(100, 1, 2, seeded())
    for quantile in (0.25, 0.5, 0.95):
        found = fit_relaxed_smooth(x, y, quantile=quantile, resamples=100, generator=seeded())
        below = (y <= (found.L0.value + found.L1.value * x) * (1 + 1e-9)).double().mean().item()
        assert quantile <= below <= quantile + 0.02  # two points lie on the line


def test_a_tenth_of_gross_outliers():
    x, y = points(100, 1, 2, seeded())
    clean = fit_relaxed_smooth(x, y, resamples=100, generator=seeded())
    y[::10] = 1e6
    found = fit_relaxed_smooth(x, y, resamples=100, generator=seeded())
    assert found.L0.value == pytest.approx(1, abs=0.6)
    assert found.L1.value == pytest.approx(2, abs=0.4)
    assert found.L1.high < 2 * clean.L1.high


def test_the_envelope_of_a_relaxed_smooth_function_is_its_constants():
    L0, L1 = 0.5, 2.0
    problem = relaxed_smooth(4, L0=L0, L1=L1, sigma=0, n=1, dtype=torch.float64).problem
    model = problem.build_model()
    objective = Objective(model, lambda batch: problem.loss(model(batch[0]), batch[1]), problem.train)
    generator, grad_norms, smoothness = seeded(), [], []
    for size in torch.linspace(0.01, 4 / L1, 100).tolist():
        w = torch.randn(4, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            model.w.copy_(size * w / w.norm())
        found = local_smoothness(objective, lengths=[1e-4], directions=0, generator=generator)
        grad_norms.append(found.grad_norm.value)
        smoothness.append(found.largest_along.value)
    found = fit_relaxed_smooth(grad_norms, smoothness, quantile=0.98, generator=generator)
    assert 0.8 * L0 <= found.L0.value <= L0  # L0 + L1 ‖∇F‖ bounds every point, so nothing fits above it
    assert 0.85 * L1 <= found.L1.value <= L1
    assert found.smoothness == RelaxedSmooth(found.L0.value, found.L1.value)


# ---- the intervals ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, None])
@pytest.mark.parametrize("L1", [2.0, 0.0])
def test_intervals_cover_the_truth(L1, block):
    generator, hits, repetitions = seeded(1), torch.zeros(2), 300
    for _ in range(repetitions):
        x, y = points(40, 1.0, L1, generator)
        found = fit_relaxed_smooth(x, y, block=block, resamples=300, generator=generator)
        hits += torch.tensor([contains(found.L0, 1.0), contains(found.L1, L1)])
    assert (hits / repetitions).min() >= 0.915  # 0.95 less three standard errors
    if L1:
        assert (hits / repetitions).max() <= 0.985


def test_an_interval_about_no_slope_includes_zero_and_nothing_negative():
    found = fit_relaxed_smooth(*points(60, 1.0, 0.0, seeded()), generator=seeded())
    assert found.L1.low == 0
    assert found.L1.high > 0
    assert found.L1.low <= found.L1.value <= found.L1.high
    assert contains(found.L0, 1.0)


def test_blocks_see_that_neighbours_are_alike():
    generator = seeded(2)
    widths = {1: 0.0, 12: 0.0}
    for _ in range(10):
        noise = torch.randn(144, generator=generator, dtype=torch.float64)
        for t in range(1, 144):  # correlation 0.9 between neighbours
            noise[t] = 0.9 * noise[t - 1] + 0.19**0.5 * noise[t]
        x = torch.rand(144, generator=generator, dtype=torch.float64)
        for block in widths:
            L0 = fit_relaxed_smooth(
                x, (0.5 * noise).exp(), block=block, quantile=0.5, resamples=100, generator=generator
            ).L0
            widths[block] += L0.high - L0.low
    assert widths[12] > 1.4 * widths[1]


def test_blocks_are_neighbours_and_weigh_alike():
    counts = fit._block_bootstrap(10, 4, 2000, seeded())
    assert (counts.sum(1) == 10).all()
    assert counts.mean(0) == pytest.approx([1.0] * 10, abs=0.1)
    whole = fit._block_bootstrap(10, 10, 50, seeded())
    assert (whole == 1).all()  # one block that goes around is every point once


def test_default_block_is_the_cube_root():
    x, y = points(64, 1, 2, seeded())
    by_default, four, one = (
        fit_relaxed_smooth(x, y, block=block, resamples=100, generator=seeded()) for block in (None, 4, 1)
    )
    assert by_default == four != one


# ---- how it works, what it refuses -------------------------------------------------------------------------------


def test_it_repeats_itself_and_takes_tensors_or_lists():
    x, y = points(30, 1, 2, seeded())
    first = fit_relaxed_smooth(x, y, generator=seeded(1))
    assert fit_relaxed_smooth(x.tolist(), y.tolist(), generator=seeded(1)) == first
    assert fit_relaxed_smooth(x, y, generator=seeded(2)) != first


def test_lines_compared_in_portions_give_the_same(monkeypatch):
    x, y = points(30, 1, 2, seeded())
    at_once = fit_relaxed_smooth(x, y, generator=seeded())
    monkeypatch.setattr(fit, "_MEMORY", 7000)
    in_portions = fit_relaxed_smooth(x, y, generator=seeded())
    assert (*in_portions.L0, *in_portions.L1) == pytest.approx((*at_once.L0, *at_once.L1))


def test_without_L0_there_is_no_class():
    x = torch.linspace(1, 4, 12, dtype=torch.float64)
    found = fit_relaxed_smooth(x, 3 * x, generator=seeded())
    with pytest.raises(ValueError, match=exactly("L0 must be finite and greater than 0, got 0.0")):
        _ = found.smoothness


@pytest.mark.parametrize(
    ("grad_norms", "smoothness", "options", "message"),
    [
        ([1, 2], [1, 2], {}, "grad_norms must have at least 3 points to fit L0 and L1, got 2"),
        ([], [], {}, "grad_norms must have at least 3 points to fit L0 and L1, got 0"),
        ([1, 2, 3], [1, 2], {}, "smoothness must have as many numbers as grad_norms, 3, got 2"),
        ([2, 2, 2], [1, 2, 3], {}, "grad_norms must differ for L0 and L1 to be told apart, all 3 are 2"),
        ([1, 2, -3], [1, 2, 3], {}, "grad_norms must be finite numbers ≥ 0, got -3.0"),
        ([1, 2, 3], [1, float("nan"), 3], {}, "smoothness must be finite numbers ≥ 0, got nan"),
        ([[1, 2, 3]], [1, 2, 3], {}, "grad_norms must be a sequence of numbers, got 2 dimensions"),
        ([1, 2, 3], [1, 2, 3], {"quantile": 1}, "quantile must lie in (0, 1), got 1"),
        ([1, 2, 3], [1, 2, 3], {"block": 4}, "block must lie in [1, 3], the number of points, got 4"),
        ([1, 2, 3], [1, 2, 3], {"block": 0}, "block must lie in [1, 3], the number of points, got 0"),
        ([1, 2, 3], [1, 2, 3], {"resamples": 99}, "resamples must be at least 100, got 99"),
    ],
)
def test_arguments_out_of_range(grad_norms, smoothness, options, message):
    with pytest.raises(ValueError, match=exactly(message)):
        fit_relaxed_smooth(grad_norms, smoothness, generator=seeded(), **options)
