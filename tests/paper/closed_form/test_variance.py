"""Claim C10: the measured variance of estimators, and the verdict on it, which other measurements must flip."""

import copy
import json

import pytest
import torch
from ink import ink

from sngd.paper.closed_form import variance
from sngd.paper.verdicts import CONTRADICTED, OPEN, SHOWN, Verdict
from sngd.problems.analytic import strict_saddle
from sngd.theory import Smooth, spider_variance

LRS = [1e-3, 1e-2, 0.1, 1.0]
JITTER = (0.99, 1.0, 1.01)


@pytest.fixture
def fake():
    """Measurements in which everything is as the paper says, with drifts at 90 % of the bound."""
    sizes = {"anchor_batch_size": 256, "batch_size": 8, "period": 16}
    drift = [0.9 * spider_variance(Smooth(1), sigma=0, lr=lr, **sizes) for lr in LRS]
    curves = {
        "spider": [0.02 + d for d in drift],
        "anchor": [0.02] * 4,
        "drift": drift,
        "beside": [0.6] * 4,
        "sngd": [0.6] * 4,
    }
    seeds = {key: [[value * j for j in JITTER] for value in curve] for key, curve in curves.items()}
    problems = {
        name: {"L": None if name == "digits" else 1.0, "sigma": None, **sizes, **seeds} for name in variance.CASES
    }
    return copy.deepcopy({"profile": "quick", "seeds": 3, "periods": 2, "lrs": LRS, "problems": problems})


def outcome(measurements):
    return Verdict("C10", "", "", variance.judge(measurements)).outcome


def quantity(measurements, beginning):
    (found,) = (q for q in variance.judge(measurements).quantities if q.name.startswith(beginning))
    return found


def test_as_the_paper_says_it_is_shown(fake):
    assert outcome(fake) == SHOWN
    assert quantity(fake, "waves: exponent of α in the growth").value == pytest.approx(2)
    assert quantity(fake, "waves: exponent of α in the variance of SNGD").value == pytest.approx(0)


def test_spiders_variance_that_does_not_grow_refutes(fake):
    fake["problems"]["digits"]["spider"] = [[0.5, 0.5, 0.5]] * 3 + [[0.4, 0.4, 0.4]]
    assert outcome(fake) == CONTRADICTED


def test_sngds_variance_that_grows_refutes(fake):
    fake["problems"]["waves"]["sngd"] = [[0.6 * lr**0.2 * j for j in JITTER] for lr in LRS]
    assert quantity(fake, "waves: exponent of α in the variance of SNGD").value == pytest.approx(0.2)
    assert outcome(fake) == CONTRADICTED


def test_a_drift_above_eq_15_refutes(fake):
    fake["problems"]["least squares"]["drift"][2] = [drift / 0.6 for drift in fake["problems"]["waves"]["drift"][2]]
    assert quantity(fake, "drifts above").answer == CONTRADICTED
    assert outcome(fake) == CONTRADICTED


def test_what_is_exempt_has_the_answer_that_it_would_have(fake):
    assert [exemption.endswith("it would be shown") for exemption in variance.judge(fake).exempt] == [True, True]
    for name, key in (("least squares", "sngd"), ("digits", "drift")):
        fake["problems"][name][key] = [[lr * j for j in JITTER] for lr in LRS]
    assert outcome(fake) == SHOWN  # nothing is required of them
    assert [exemption.endswith("it would be contradicted") for exemption in variance.judge(fake).exempt] == [True, True]


def test_a_linear_drift_is_a_part_missing(fake):
    fake["problems"]["waves"]["drift"] = [[1e-9 * lr * j for j in JITTER] for lr in LRS]
    assert quantity(fake, "waves: exponent of α in the growth").value == pytest.approx(1)
    assert outcome(fake) == OPEN


def gradients(problem, w):
    """All n samples' gradients at w, one a row."""
    model = problem.build_model()

    def loss(w, x, y):
        return problem.loss(torch.func.functional_call(model, {"w": w}, (x[None],)), y[None])

    return torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(w, *problem.train)


def test_the_waves_have_the_same_variance_everywhere():
    case = variance.waves(dim=4, n=60)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        w = 5 * torch.randn(4, generator=generator, dtype=torch.float64)
        each = gradients(case.problem, w)
        assert torch.allclose(each.mean(0), w / 2)
        assert (each - each.mean(0)).square().sum(1).mean().item() == pytest.approx(case.sigma**2)


@pytest.mark.slow
@pytest.mark.parametrize("make", [variance.waves, variance.least_squares])
def test_L_bounds_the_mean_square_difference_and_is_attained(make):
    case = make(dim=4, n=60)
    generator = torch.Generator().manual_seed(0)
    quotients = []
    for scale in (1e-4, 1.0, 10.0):
        for _ in range(200):
            w, step = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
            step *= scale / step.norm()
            change = gradients(case.problem, w + step) - gradients(case.problem, w)
            quotients.append((change.square().sum(1).mean().sqrt() / scale).item())
    assert 0.97 * case.L < max(quotients) < case.L * (1 + 1e-6)


def test_additive_noise_makes_no_drift():
    """∇f(u; a) − ∇f(w; a) has no noise then, so SPIDER's error stays what it was at the anchor, at any α."""
    analytic = strict_saddle(4, sigma=1.0, n=100, dtype=torch.float64)
    case = variance.Case(analytic.problem, 1.0, 1.0, anchor_batch_size=16, batch_size=4, period=8)
    errors = variance._spider_errors(case, lr=0.5, periods=3, seed=0)
    assert errors.drift < 1e-20
    assert errors.spider == pytest.approx(errors.anchor)
    assert variance._sngd_error(case, lr=0.5, periods=3, seed=0) == pytest.approx(1 / 4, rel=0.7)


def test_the_mini_batchs_variance_is_sigma_squared_over_b():
    case = variance.waves(dim=4, n=60)
    setting = {"lr": 0.1, "periods": 2}
    own = [variance._sngd_error(case, **setting, seed=seed) for seed in range(8)]
    beside = [variance._spider_errors(case, **setting, seed=seed).beside for seed in range(8)]
    for errors in (own, beside):
        mean = sum(errors) / len(errors)
        assert mean == pytest.approx(case.sigma**2 / case.batch_size, rel=0.2)  # of 256 draws, deviation 5 %


@pytest.mark.slow
def test_the_quick_profile_is_measured_judged_and_drawn(tmp_path):
    measured = variance.measure("quick")
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert outcome(measured) == SHOWN
    for name, tolerance in {"waves": 0.3, "least squares": 0.3, "digits": 0.7}.items():
        assert quantity(measured, f"{name}: exponent of α in the growth").value == pytest.approx(2, abs=tolerance)
    assert abs(quantity(measured, "waves: exponent of α in the variance of SNGD").value) < 0.03
    pictures = variance.draw(measured, tmp_path)
    assert [path.name for path in pictures] == ["variance.png", "variance.svg"]
    assert ink(pictures[0]) > 0.05
    assert pictures[1].stat().st_size > 30_000


def test_an_unknown_profile_is_named():
    with pytest.raises(ValueError, match=r"^profile must be one of quick, small, got 'huge'$"):
        variance.measure("huge")
