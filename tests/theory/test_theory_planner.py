import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import theory as reference
from sngd.stages import StagePlan, harmonic
from sngd.theory import PLANNED, RelaxedSmooth, Smooth, plan

constants = st.floats(0.05, 20)


def exactly(message):
    return rf"^{re.escape(message)}$"


def test_the_published_example():
    best = plan("sngd", Smooth(4), sigma=1, gap=2.3, epsilon=0.1)
    assert (best.lr, best.batch_size, best.steps, best.oracle_calls) == (0.05, 100, 460, 46_000)
    assert best.guarantee == 0.4
    assert best.bound.total <= 0.4
    assert plan("sngd", Smooth(4), sigma=1, gap=2.3, target=0.4).as_json() == best.as_json()


@pytest.mark.parametrize("epsilon", [0.1, 0.01, 0.001, 0.3, 0.7, 1e-5])
def test_rounding_errors_are_not_rounded_up(epsilon):
    """σ²/ε² and LΔ/(2ε²) are whole numbers here, which floating point misses: (0.3/0.1)² is 8.999…98."""
    best = plan("sngd", Smooth(4), sigma=3 * epsilon, gap=5 * epsilon**2, epsilon=epsilon)
    assert (best.batch_size, best.steps) == (9, 10)


def test_as_json_is_json_and_has_the_promised_keys():
    for method in PLANNED:
        shown = plan(method, Smooth(4), sigma=1, gap=2.3, target=0.4).as_json()
        assert json.loads(json.dumps(shown, allow_nan=False)) == shown
        assert {"lr", "batch_size", "steps", "oracle_calls", "guarantee"} <= shown.keys()
        assert ("stages" in shown) == method.startswith("s-sngd")
    shown = plan("spider-sfo", Smooth(4), sigma=1, gap=2.3, epsilon=0.1).as_json()
    assert (shown["anchor_batch_size"], shown["period"], shown["max_scale"]) == (200, 10, 0.125)


def test_stage_plans_are_those_of_the_library():
    best = plan("s-sngd", Smooth(4), sigma=1, gap=2, epsilon=0.1)
    assert best.method == "s-sngd:harmonic"
    assert best.stages == best.stage_plan == harmonic(1.0, 39, 1.0)
    assert [stage.steps for stage in best.stages] == list(range(1, 40))
    assert StagePlan.from_list(best.as_json()["stages"]) == best.stages
    constant = plan("sngd", Smooth(4), sigma=1, gap=2.3, epsilon=0.1)
    assert constant.stages is None
    assert constant.stage_plan.as_list() == [[0.05, 460, 1.0]]


# --- the guarantee


def total_by_reference(p):
    """The bound at the plan's numbers, by the naive twin."""
    given_values = (p.sigma, p.gap)
    smooth = isinstance(p.smoothness, Smooth)
    if p.stages:
        theorem = reference.theorem3 if smooth else reference.theorem4
        constant = p.smoothness.L if smooth else p.smoothness.L0
        return theorem(constant, *given_values, p.batch_size, p.stages.as_list())
    if p.method == "sngd":
        theorem = reference.theorem1 if smooth else reference.theorem2
        constant = p.smoothness.L if smooth else p.smoothness.L0
        return theorem(constant, *given_values, p.lr, p.batch_size, p.steps - 1)
    if p.method == "sgd":
        return reference.ghadimi_lan(p.smoothness.L, *given_values, p.lr, p.batch_size, p.steps)
    o = p.options
    if p.method == "nsgd-momentum":
        beta = o["momentum"]
        return reference.momentum_by_quadrature(p.smoothness.L, *given_values, p.lr, beta, p.batch_size, p.steps)
    rest = (p.lr, o["max_scale"], p.batch_size, o["anchor_batch_size"], o["period"], p.steps)
    return reference.spider(p.smoothness.L, *given_values, *rest)


@pytest.mark.parametrize("by", ["epsilon", "target"])
@pytest.mark.parametrize("method", PLANNED)
@given(L=constants, sigma=st.one_of(st.just(0.0), constants), gap=constants, accuracy=st.floats(0.1, 5))
def test_the_guarantee_reaches_the_target(method, by, L, sigma, gap, accuracy):
    best = plan(method, Smooth(L), sigma, gap, **{by: accuracy})
    assert best.guarantee <= best.target
    assert math.isclose(total_by_reference(best), best.guarantee, rel_tol=3e-9)
    assert best.batch_size >= 1
    assert best.steps >= 1


@pytest.mark.parametrize("by", ["epsilon", "target"])
@pytest.mark.parametrize("method", ["sngd", "s-sngd:harmonic", "s-sngd:harmonic-even", "s-sngd:geometric"])
@given(L0=constants, L1=st.floats(0, 50), sigma=constants, gap=constants, accuracy=st.floats(0.1, 5))
def test_the_guarantee_reaches_the_target_under_relaxed_smoothness(method, by, L0, L1, sigma, gap, accuracy):
    best = plan(method, RelaxedSmooth(L0, L1), sigma, gap, **{by: accuracy})
    assert best.guarantee <= best.target
    assert math.isclose(total_by_reference(best), best.guarantee, rel_tol=3e-9)
    assert all(stage.lr <= best.smoothness.max_lr for stage in best.stage_plan)


@given(L=constants, sigma=st.one_of(st.just(0.0), constants), gap=constants, target=st.floats(0.1, 5))
def test_a_target_is_missed_only_by_what_one_step_less_would_spoil(L, sigma, gap, target):
    for method in ("sngd", "sgd"):
        best = plan(method, Smooth(L), sigma, gap, target=target)
        if best.steps > 1:
            p = best.bound.progress * best.steps / (best.steps - 1)
            total = p + best.bound.curvature + best.bound.noise
            assert (math.sqrt(total) if best.bound.squared else total) >= target * (1 - 1e-9)


@given(sigma=st.floats(2, 10), gap=constants, epsilon=st.floats(0.05, 0.1))
def test_epsilon_is_within_rounding_of_its_target(sigma, gap, epsilon):
    for smoothness in (Smooth(4), RelaxedSmooth(4, 1)):
        best = plan("sngd", smoothness, sigma, gap, epsilon=epsilon)
        c = smoothness.factor
        slack = best.target - best.guarantee
        assert slack <= c * epsilon / best.steps + c * epsilon / (best.batch_size - 1) + 1e-9


def test_without_noise_the_batch_is_one():
    for method in PLANNED:
        assert plan(method, Smooth(4), sigma=0, gap=2.3, target=0.4).batch_size == 1
    assert plan("sngd", Smooth(4), sigma=0, gap=2.3, target=0.4).steps == 115  # 2LΔ/τ²
    assert plan("sngd", Smooth(4), sigma=0, gap=2.3, epsilon=0.1).steps == 460


# --- α L1 ≤ ½


def test_the_limit_on_lr_is_kept_and_shown():
    free = plan("sngd", RelaxedSmooth(4, 1), sigma=1, gap=2.3, epsilon=0.1)
    assert (free.lr, free.steps, free.batch_size, free.lr_limited, free.guarantee) == (0.025, 920, 100, False, 0.8)
    limited = plan("sngd", RelaxedSmooth(4, 50), sigma=1, gap=2.3, epsilon=0.1)
    assert (limited.lr, limited.steps, limited.batch_size, limited.lr_limited) == (0.01, 2300, 100, True)
    assert limited.bound.curvature == pytest.approx(0.08)
    for method in ("s-sngd:harmonic", "s-sngd:harmonic-even", "s-sngd:geometric"):
        limited = plan(method, RelaxedSmooth(4, 50), sigma=1, gap=2.3, epsilon=0.1)
        assert (limited.lr, limited.lr_limited) == (0.01, True)
        assert not plan(method, RelaxedSmooth(4, 0.1), sigma=1, gap=2.3, epsilon=0.1).lr_limited


# --- Remark 1


@given(L=constants, sigma=constants, gap=constants, epsilon=st.floats(0.01, 1), relaxed=st.booleans())
def test_remark_1_takes_one_more_step_a_stage_and_weighs_iterates_by_their_lr(L, sigma, gap, epsilon, relaxed):
    smoothness = RelaxedSmooth(L, 1e-9) if relaxed else Smooth(L)
    best = plan("s-sngd:harmonic-even", smoothness, sigma, gap, epsilon=epsilon)
    count = len(best.stages)
    assert [stage.steps for stage in best.stages] == list(range(1, count + 1))
    assert [stage.weight for stage in best.stages] == pytest.approx([best.lr] * count)
    harmonic_number = sum(1 / t for t in range(1, count + 1))
    c, k = smoothness.factor, smoothness.curvature
    assert best.bound.progress == pytest.approx(math.sqrt(c * gap * k * harmonic_number) / count)
    assert best.bound.curvature == pytest.approx(best.bound.progress)
    assert best.bound.progress <= c * epsilon * (1 + 1e-9)
    if count > 1:  # a stage less would be too few
        shorter = harmonic_number - 1 / count
        assert math.sqrt(c * gap * k * shorter) / (count - 1) > c * epsilon


def test_remark_1_costs_half_the_logarithm_more_than_constant_steps():
    for epsilon in (0.1, 0.01, 0.003):
        even, constant = (plan(m, Smooth(4), 0.0, 2.3, epsilon=epsilon) for m in ("s-sngd:harmonic-even", "sngd"))
        count = len(even.stages)
        expected = (count + 1) / (2 * count) * sum(1 / t for t in range(1, count + 1))
        assert even.steps / constant.steps == pytest.approx(expected, rel=3 / count)


@pytest.mark.parametrize("rho", [0.01, 0.2, 3.0])
def test_remark_1_with_a_given_rho_reaches_its_target_without_rounding(rho):
    best = plan("s-sngd:harmonic-even", Smooth(4), 1.0, 2.3, target=0.4, rho=rho)
    assert best.lr == rho
    assert 0.5 * best.target < best.guarantee <= best.target
    assert [stage.steps * stage.lr for stage in best.stages] == pytest.approx(
        [best.stages[0].steps * rho] * len(best.stages)
    )


# --- the cheapest run, by brute force


@pytest.mark.parametrize(("c", "k"), [(1, 2.0), (2, 8.0), (2, 0.3)])
def test_a_quarter_of_the_target_is_the_best_epsilon(c, k):
    """min N·b over a grid of α and b, with N = cΔ/(α (τ − kα − 2cσ/√b)): the theorem's choice is not beaten."""
    sigma, gap, target = 1.0, 2.3, 0.4
    epsilon = target / (4 * c)
    published = c * gap / (c * epsilon / k * c * epsilon) * (sigma / epsilon) ** 2
    best = cheapest_on_a_grid(c, k, sigma, gap, target, np.linspace(0.2, 3, 281) * c * epsilon / k, epsilon)
    assert published == pytest.approx(best, rel=1e-12)  # the choice is a point of the grid


@pytest.mark.parametrize("max_lr", [0.001, 0.005, 0.01])
def test_two_thirds_of_the_rest_is_the_best_noise_where_lr_is_limited(max_lr):
    sigma, gap, target = 5.0, 2.3, 0.4
    smoothness = RelaxedSmooth(4, 0.5 / max_lr)
    planned = plan("sngd", smoothness, sigma, gap, target=target)
    lrs = np.linspace(0.2, 1, 81) * max_lr
    best = cheapest_on_a_grid(2, 8.0, sigma, gap, target, lrs, target / 8)
    assert planned.lr_limited
    assert planned.oracle_calls <= best * 1.001  # rounded up


def cheapest_on_a_grid(c, k, sigma, gap, target, lrs, epsilon):
    b = (sigma / epsilon) ** 2 * np.linspace(0.3, 3, 271)[:, None]
    left = target - k * lrs - 2 * c * sigma / np.sqrt(b)
    return np.where(left > 0, c * gap / (lrs * np.where(left > 0, left, 1)) * b, np.inf).min()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_integer_plans_are_close_to_the_best_by_brute_force(sigma):
    gap, target, L = 2.3, 0.4, 4
    planned = plan("sngd", Smooth(L), sigma, gap, target=target).oracle_calls
    lrs = np.linspace(1e-3, target * 2 / L, 2000)
    best = math.inf
    for b in range(1, int(4 * (4 * sigma / target) ** 2) + 2):
        left = target - L * lrs / 2 - 2 * sigma / math.sqrt(b)
        if (ok := left > 0).any():
            best = min(best, b * np.ceil(gap / (lrs[ok] * left[ok])).min())
    assert best <= planned * 1.005  # the grid's own error
    assert planned <= best * 1.03


@settings(max_examples=60)
@given(
    L=st.floats(0.1, 10), L1=st.floats(0.1, 30), sigma=st.floats(0.05, 5), gap=st.floats(0.05, 10),
    target=st.floats(0.5, 10), relaxed=st.booleans(),
)  # fmt: skip
def test_no_whole_number_of_samples_a_step_is_cheaper(L, L1, sigma, gap, target, relaxed):
    """Where few steps or few samples a step are enough, rounding the best real number can cost a third."""
    smoothness = RelaxedSmooth(L, L1) if relaxed else Smooth(L)
    planned = plan("sngd", smoothness, sigma, gap, target=target)
    c, k = smoothness.factor, smoothness.curvature
    best = math.inf
    for b in range(1, 5 * planned.batch_size + 20):
        rest = target - 2 * c * sigma / math.sqrt(b)
        lr = min(rest / (2 * k), smoothness.max_lr)
        if rest > k * lr > 0:
            best = min(best, b * math.ceil(c * gap / (lr * (rest - k * lr)) * (1 - 1e-12)))
    assert planned.oracle_calls == best


def test_sgd_is_planned_with_the_best_lr_and_batch():
    L, sigma, gap, target = 4, 1.0, 2.3, 0.1
    planned = plan("sgd", Smooth(L), sigma, gap, target=target)
    best = math.inf
    for b in (1, 2, 5, 10, 50, 100, 200):
        lrs = np.geomspace(1e-4, 1.9, 4000) / L
        left = (2 - L * lrs) * target**2 - L * lrs * sigma**2 / b
        best = min(best, (b * 2 * gap / (lrs[left > 0] * left[left > 0])).min())
    assert planned.oracle_calls == pytest.approx(best, rel=1e-4)


# --- costs


def slope(method, smoothness, targets, **options):
    calls = [plan(method, smoothness, 1.0, 2.3, target=target, **options).oracle_calls for target in targets]
    return np.polyfit(np.log(targets), np.log(calls), 1)[0]


def test_oracle_calls_grow_with_the_published_exponents():
    targets = np.geomspace(1e-3, 1e-1, 9)
    assert slope("sngd", Smooth(4), targets) == pytest.approx(-4, abs=0.01)
    assert slope("sngd", RelaxedSmooth(4, 1), targets) == pytest.approx(-4, abs=0.01)
    assert slope("s-sngd:harmonic", Smooth(4), targets[4:]) == pytest.approx(-4, abs=0.03)
    assert slope("sgd", Smooth(4), targets) == pytest.approx(-4, abs=0.02)
    assert slope("spider-sfo", Smooth(4), targets) == pytest.approx(-3, abs=0.03)


@pytest.mark.parametrize("rho", [0.1, 0.2])
def test_geometric_plans_cost_more_than_published(rho):
    """Steps grow like ε^(−1 − log ρ/log 2ρ); ε falls by 2ρ from plan to plan, so that stages come one by one."""
    exponent = -1 - math.log(rho) / math.log(2 * rho)
    targets = 0.9 * (2 * rho) ** np.arange(2, 8)
    steps = [plan("s-sngd:geometric", Smooth(4), 0.0, 2.3, epsilon=t, rho=rho).steps for t in targets]
    assert np.polyfit(np.log(targets), np.log(steps), 1)[0] == pytest.approx(exponent, abs=0.02)
    assert exponent < -2


def test_stages_cost_twice_as_much_under_the_bound():
    target = 0.01
    constant, staged = (plan(m, Smooth(4), 1.0, 2.3, target=target).oracle_calls for m in ("sngd", "s-sngd:harmonic"))
    assert staged / constant == pytest.approx(2, abs=0.02)


def test_spider_pays_two_calls_for_every_sample_of_a_difference():
    best = plan("spider-sfo", Smooth(4), sigma=1, gap=2.3, epsilon=0.1)
    assert (best.steps, best.batch_size) == (3680, 20)
    assert best.oracle_calls == 368 * 200 + (3680 - 368) * 2 * 20


def test_spider_costs_24_where_16_is_published():
    """The published count, 16 LΔσ/ε³, takes a sample's difference for one call; it is two."""
    calls = plan("spider-sfo", Smooth(4), sigma=1, gap=2.3, epsilon=1e-4).oracle_calls
    assert calls == pytest.approx(24 * 4 * 2.3 * 1 / 1e-4**3, rel=1e-3)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 1.0, 1.7, 40.0])
def test_spider_is_planned_for_any_noise(ratio):
    best = plan("spider-sfo", Smooth(4), sigma=ratio * 0.1, gap=2.3, epsilon=0.1)
    assert best.guarantee <= 0.5


# --- meaningless input


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("adam", Smooth(4), 1, 1),
            {"epsilon": 0.1},
            "method must be one of sngd, s-sngd:harmonic, s-sngd:harmonic-even, s-sngd:geometric, sgd, spider-sfo, "
            "nsgd-momentum, got 'adam'",
        ),
        (
            ("sngd", 4, 1, 1),
            {"epsilon": 0.1},
            "smoothness must be Smooth(L) or RelaxedSmooth(L0, L1), got 4",
        ),
        (
            ("sgd", RelaxedSmooth(4, 1), 1, 1),
            {"epsilon": 0.1},
            "smoothness must be Smooth(L) for sgd's published bound, got RelaxedSmooth(L0=4.0, L1=1.0)",
        ),
        (("sngd", Smooth(4), 1, 1), {}, "exactly one of epsilon and target must be given, got None and None"),
        (
            ("sngd", Smooth(4), 1, 1),
            {"epsilon": 0.1, "target": 1},
            "exactly one of epsilon and target must be given, got 0.1 and 1",
        ),
        (("sngd", Smooth(4), -1, 1), {"epsilon": 0.1}, "sigma must be finite and at least 0, got -1"),
        (("sngd", Smooth(4), 1, 0), {"epsilon": 0.1}, "gap must be finite and greater than 0, got 0"),
        (("sngd", Smooth(4), 1, 1), {"epsilon": 0}, "epsilon must be finite and greater than 0, got 0"),
        (("sngd", Smooth(4), 1, 1), {"target": math.nan}, "target must be finite and greater than 0, got nan"),
        (
            ("sngd", Smooth(4), 1, 1),
            {"target": 1, "rho": 0.1},
            "rho must be left out for sngd, which has no stages; got 0.1",
        ),
        (
            ("s-sngd:geometric", Smooth(4), 1, 1),
            {"target": 1, "rho": 0.4},
            "rho must be in (0, 1/3] for s-sngd:geometric, got 0.4",
        ),
        (
            ("s-sngd", RelaxedSmooth(4, 1), 1, 1),
            {"target": 1, "rho": 0.6},
            "rho must be at most 1/(2 L1) = 0.5 for RelaxedSmooth(L0=4.0, L1=1.0), got 0.6",
        ),
        (
            ("sngd", Smooth(4), 1, 1),
            {"epsilon": 1e-200},
            "epsilon must be greater for sngd with Smooth(L=4.0), sigma = 1 and gap = 1, got 1e-200",
        ),
        (
            ("s-sngd", Smooth(4), 1, 1),
            {"target": 1e-6},
            "target must be greater for s-sngd:harmonic with Smooth(L=4.0), sigma = 1 and gap = 1, got 1e-06",
        ),
    ],
)
def test_errors_name_argument_value_and_range(arguments, options, message):
    with pytest.raises(ValueError, match=exactly(message)):
        plan(*arguments, **options)


@pytest.mark.parametrize("method", PLANNED)
@pytest.mark.parametrize("epsilon", [1e-320, 1e-160, 1e-100, 1e-60, 1e-30])
def test_tiny_targets_give_a_plan_or_a_readable_error(method, epsilon):
    try:
        best = plan(method, Smooth(4), 1, 1, epsilon=epsilon)
    except ValueError as error:
        assert str(error).startswith(f"epsilon must be greater for {method} with")  # noqa: PT017
    else:
        assert best.guarantee <= best.target
