import json
import random
from dataclasses import replace
from math import sqrt

import pytest
from scipy.stats import t as student

from sngd.diagnose.certificate import (
    Assumption,
    Certificate,
    Curvature,
    bound_of,
    find_theorem,
    judge_gap,
    judge_noise,
    judge_smoothness,
    mean_norm,
    played,
)
from sngd.diagnose.interval import Interval
from sngd.stages import StagePlan, constant, harmonic
from sngd.theory import RelaxedSmooth, Smooth, spider_sfo_bound, stagewise_bound

HERE = 1e-12


def curve(*norms, every=1):
    return [(every * i, norm) for i, norm in enumerate(norms)]


# ---- a whole certificate, by hand ----------------------------------------------------------------------------


def oscillating(L, seeds=(0,), sigma=0.0):
    """NGD with α = 1 on F(w) = 2w² from w_0 = ½, where it goes on to −½, ½, …: ‖∇F(w_t)‖ = 2 for ever; L = 4."""
    plan = constant(1.0, 10)
    smoothness, smooth = judge_smoothness(Smooth(L), [])
    gap, bounded = judge_gap(0.5, [curve(*[0.5] * 11)], plan, infimum=0.0)
    bound, condition = bound_of("normalized", smoothness, sigma=sigma, gap=gap, plan=plan, batch_size=1, options={})
    return Certificate(
        label="ngd",
        seeds=seeds,
        steps=10,
        theorem=find_theorem("normalized", smoothness, plan),
        smoothness=smoothness,
        sigma=sigma,
        gap=gap,
        bound=bound,
        measured=mean_norm([curve(*[2.0] * 11)] * len(seeds), plan),
        first=2.0,
        assumptions=(smooth, Assumption("noise", "given", "σ = 0"), bounded, condition),
    )


def test_a_certificate_by_hand():
    certificate = oscillating(4)
    assert certificate.theorem == "Theorem 1"
    assert certificate.bound.progress == pytest.approx(0.5 / (1 * 10), abs=HERE)
    assert certificate.bound.curvature == pytest.approx(4 * 1 / 2, abs=HERE)
    assert certificate.bound.noise == 0
    assert certificate.bound.total == pytest.approx(2.05, abs=HERE)
    assert certificate.measured == pytest.approx((2, 2, 2), abs=HERE)
    assert certificate.verdict == "holds"
    assert certificate.statement == (
        "Theorem 1 holds: the mean of ‖∇F(w_t)‖ is 2 [2, 2], the bound 2.05. "
        "The bound is vacuous: even the first gradient norm, 2, is not above it."
    )


def test_a_quarter_of_l_is_exceeded():
    certificate = oscillating(1)  # 0.05 + 0.5, below the 2 measured
    assert certificate.bound.total == pytest.approx(0.55, abs=HERE)
    assert certificate.verdict == "exceeded"
    assert certificate.statement == (
        "Theorem 1's bound is exceeded, so a constant must be wrong, or the code: "
        "the mean of ‖∇F(w_t)‖ is 2 [2, 2], the bound 0.55."
    )


def test_one_run_of_a_stochastic_method_refutes_nothing():
    statement = oscillating(1, sigma=0.01).statement
    assert statement.startswith("Theorem 1's bound is exceeded by this run: ")
    assert statement.endswith("The theorem speaks of the mean over all seeds.")
    assert "Theorem 1 holds for this run: " in oscillating(4, sigma=0.01).statement
    assert "so a constant must be wrong" in oscillating(1, seeds=(0, 1), sigma=0.01).statement


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.9, 2.05, "holds"), (1.9, 2.06, "inconclusive"), (2.05, 2.1, "inconclusive"), (2.06, 2.1, "exceeded")],
)
def test_the_verdict_is_where_the_interval_lies(low, high, verdict):
    exact = replace(oscillating(4), bound=replace(oscillating(4).bound, progress=0.05, curvature=2.0))
    assert replace(exact, measured=Interval(2.0, low, high)).verdict == verdict


@pytest.mark.parametrize("status", ["violated", "unchecked"])
@pytest.mark.parametrize("position", range(4))
def test_any_assumption_that_fails_ends_the_claim(position, status):
    whole = oscillating(4)
    assumptions = list(whole.assumptions)
    assumptions[position] = assumptions[position]._replace(status=status)
    broken = replace(whole, assumptions=tuple(assumptions))
    assert broken.verdict == "not certified"
    name = assumptions[position].name
    assert broken.statement.startswith(
        f"Not certified by Theorem 1 ({name} {status}): the mean of ‖∇F(w_t)‖ is 2 [2, 2], the bound 2.05."
    )


def test_measured_constants_are_said_to_be_so():
    whole = oscillating(4)
    _, measured = judge_smoothness(None, [Curvature(0, 4.0, 0.0, 2.0)])
    certificate = replace(whole, assumptions=(measured, *whole.assumptions[1:]))
    assert certificate.verdict == "holds"
    assert certificate.statement.startswith("As far as its constants were measured, Theorem 1 holds: ")


def test_json_is_plain():
    content = oscillating(4).as_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["measured"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert content["terms"] == {"progress": 0.05, "curvature": 2.0, "noise": 0.0, "squared": False}
    assert content["constants"] == {"L": 4.0, "sigma": 0.0, "gap": 0.5}
    assert content["assumptions"][0]["status"] == "given"
    nothing = Certificate("sngm", (0,), 5, *[None] * 7, (Assumption("method", "unchecked", "no theorem covers sngm"),))
    content = nothing.as_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert (content["verdict"], content["bound"], content["measured"]) == ("not certified", None, None)
    assert content["statement"] == "Not certified: no theorem covers sngm."


# ---- the mean ------------------------------------------------------------------------------------------------


def test_plan_as_it_was_played():
    plan = StagePlan([(0.5, 10, 1.0), (0.1, 20, 4.0)])
    assert played(plan, 30) == plan
    assert played(plan, 15).as_list() == [[0.5, 10, 1.0], [0.1, 5, 1.0]]
    assert played(plan, 10).as_list() == [[0.5, 10, 1.0]]
    assert played(plan, 40).as_list() == [[0.5, 10, 1.0], [0.1, 30, 6.0]]
    for steps in (10, 15, 40):  # every iterate keeps its weight
        assert [played(plan, steps).iterate_weight(t) for t in range(steps)] == pytest.approx(
            [plan.iterate_weight(t) for t in range(steps)], rel=1e-15
        )


def test_the_mean_is_over_iterates_a_step_was_taken_from():
    assert mean_norm([curve(3.0, 1.0, 100.0)], constant(0.1, 2)) == (2.0, 2.0, 2.0)  # not over w_N


def test_iterates_weigh_as_the_plan_says():
    plan = StagePlan([(0.5, 1, 1.0), (0.1, 2, 4.0)])  # p = 1/5, 2/5, 2/5
    assert mean_norm([curve(10.0, 1.0, 2.0, 0.0)], plan) == pytest.approx((3.2, 3.2, 3.2), abs=HERE)


def test_what_lies_between_evaluations_is_interpolated():
    plan = StagePlan([(0.5, 30, 1.0), (0.1, 50, 4.0), (0.2, 20, 1.0)])
    whole = [(t, 5.0 - 0.03 * t) for t in range(101)]
    sparse = [whole[t] for t in (0, 7, 40, 85, 100)]
    assert mean_norm([sparse], plan).value == pytest.approx(mean_norm([whole], plan).value, rel=1e-12)


def test_the_interval_of_one_run_by_hand():
    # N = 4, evaluated at 0, 2, 4: a = (3/8, 0, 1/2, 0, 1/8), p = (1/4, 1/4, 1/4, 1/4, 0).
    missed = 2 * (1 / 8) ** 2 + 3 * (1 / 4) ** 2
    variance = ((3 - 1) ** 2 + (2 - 3) ** 2) / (2 * 2)
    half = student.ppf(0.975, 2) * sqrt(missed * variance)
    found = mean_norm([curve(1.0, 3.0, 2.0, every=2)], constant(0.1, 4))
    assert found == pytest.approx((2.125, max(0, 2.125 - half), 2.125 + half), rel=1e-9)


def test_the_interval_of_several_runs_by_hand():
    runs = [curve(1.0, 2.0, 0.0), curve(2.0, 3.0, 0.0), curve(3.0, 4.0, 0.0)]  # means 1.5, 2.5, 3.5
    half = student.ppf(0.975, 2) * 1 / sqrt(3)
    assert mean_norm(runs, constant(0.1, 2)) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-9)


def test_runs_alike_do_not_hide_what_none_of_them_evaluated():
    sparse = [(0, 100.0), (50, 1.0), (100, 1.0)]  # convex in truth, perhaps
    one = mean_norm([sparse], constant(0.1, 100))
    assert mean_norm([sparse, sparse], constant(0.1, 100)) == pytest.approx(one, rel=1e-12)


def test_the_interval_covers():
    """Norms are independent draws, one in ten is evaluated: 95 %, with 3 standard errors to spare."""
    draw = random.Random(0)
    hits = 0
    for _ in range(400):
        norms = [1 + 0.3 * draw.gauss(0, 1) for _ in range(201)]
        found = mean_norm([[(t, norms[t]) for t in range(0, 201, 10)]], constant(0.1, 200))
        hits += found.low <= sum(norms[:-1]) / 200 <= found.high
    assert 0.917 <= hits / 400 <= 0.983


# ---- the constants -------------------------------------------------------------------------------------------


def test_smoothness_is_not_made_up():
    assert judge_smoothness(None, []) == (
        None,
        Assumption("smoothness", "unchecked", "no constant was given, and none measured"),
    )
    assert judge_smoothness(None, [Curvature(0, 0.0, 0.0, 1.0)])[1].status == "unchecked"


def test_smoothness_measured_is_a_lower_bound():
    found, assumption = judge_smoothness(None, [Curvature(0, 1.0, 0.1, 1.0), Curvature(5, -3.0, 0.5, 1.0)])
    assert found == Smooth(3.5)
    assert assumption == Assumption(
        "smoothness",
        "measured",
        "L = 3.5, the largest of 2 measurements along the way: a lower bound of the true L, which may be larger "
        "elsewhere",
    )


def test_a_quarter_of_l_is_violated_where_curvature_was_measured():
    seen = [Curvature(0, 3.9, 0.2, 2.0), Curvature(7, 4.0, 0.01, 2.0)]
    assert judge_smoothness(Smooth(4), seen)[1].status == "given"
    assert judge_smoothness(Smooth(3.99), seen)[1].status == "given"  # within the error
    assert judge_smoothness(Smooth(1), seen)[1] == Assumption(
        "smoothness", "violated", "L = 1 as given, but at step 7 a curvature of 4 was measured"
    )
    negative = [Curvature(3, -4.0, 0.01, 2.0)]
    assert judge_smoothness(Smooth(1), negative)[1].status == "violated"


def test_relaxed_smoothness_grows_with_the_gradient():
    relaxed = RelaxedSmooth(1, 2)
    assert judge_smoothness(relaxed, [Curvature(0, 7.0, 0.0, 3.0)])[1].status == "given"  # L0 + L1‖∇F‖ = 7
    found = judge_smoothness(relaxed, [Curvature(0, 7.1, 0.0, 3.0)], "known of the problem")
    assert found[1] == Assumption(
        "smoothness",
        "violated",
        "L0 = 1, L1 = 2 known of the problem, but at step 0 a curvature of 7.1 was measured, where 7 is allowed",
    )
    # Over a step of 0.1 the gradient can grow to (3 + 0.1) e^0.2, so 1 + 2 · 3.786 is allowed.
    assert judge_smoothness(relaxed, [Curvature(0, 8.57, 0.0, 3.0, reach=0.1)])[1].status == "given"
    assert judge_smoothness(relaxed, [Curvature(0, 8.58, 0.0, 3.0, reach=0.1)])[1].status == "violated"


def test_noise():
    assert judge_noise(None, []) == (None, Assumption("noise", "unchecked", "σ was neither given nor measured"))
    assert judge_noise(2.0, [])[1].status == "given"
    assert judge_noise(None, [Interval(4.0, 3.0, 9.0)]) == (
        pytest.approx(3.0),
        Assumption("noise", "measured", "σ = 3, the largest upper end measured at 1 iterate"),
    )
    assert judge_noise(2.0, [Interval(5.0, 4.0, 6.0)])[1].status == "given"
    assert judge_noise(1.0, [Interval(5.0, 4.0, 6.0)]) == (
        1.0,
        Assumption("noise", "violated", "σ = 1 as given, but at least 2 was measured"),
    )


def test_a_right_sigma_survives_many_measurements():
    """Of 1000 right 95 % intervals 25 lie above σ² = 1; one alone is enough to doubt, among so many it is not."""
    draw = random.Random(0)
    values = [1 + 0.1 * draw.gauss(0, 1) for _ in range(1000)]
    intervals = [Interval(value, value - 0.196, value + 0.196) for value in values]
    assert sum(interval.low > 1 for interval in intervals) > 10
    assert judge_noise(1.0, intervals)[1].status == "given"
    assert judge_noise(0.7, intervals)[1].status == "violated"


def test_gap_of_one_stage_is_the_first_loss():
    plan, losses = constant(0.1, 2), [[(0, 2.0), (1, 3.0), (2, 0.5)], [(0, 2.5), (2, 1.0)]]
    assert judge_gap(None, losses, plan) == (
        2.5,
        Assumption(
            "gap", "measured", "Δ = 2.5, the largest F at the start, taking inf F ≥ 0, which no row contradicts"
        ),
    )
    assert judge_gap(2.5, losses, plan)[1].status == "given"
    assert judge_gap(2.0, losses, plan)[1].status == "given"  # inf F may be 0.5, the lowest F met
    assert judge_gap(2.0, losses, plan, infimum=0.0)[1] == Assumption(
        "gap", "violated", "Δ = 2 as given, but it is at least 2.5 at step 0"
    )
    assert judge_gap(1.9, losses, plan)[1].status == "violated"


def test_gap_of_stages_holds_everywhere():
    plan = harmonic(rho=1, stages=2, distance=1)  # q = 1, 2: it rises
    losses = [[(0, 2.0), (1, 3.0), (3, 0.0)]]
    assert judge_gap(None, losses, plan)[0] == 3
    assert judge_gap(2.0, losses, plan)[1].status == "violated"
    gap, assumption = judge_gap(2.0, losses, plan, infimum=0.0)  # 2 is F(w_0) − inf F; δ is more
    assert (gap, assumption.status) == (3, "measured")
    falling = StagePlan([(0.1, 1, 1.0), (0.1, 2, 1.0)])  # q = 10, 5: only the start counts (Remark 1)
    assert judge_gap(2.0, losses, falling)[1].status == "given"


def test_a_negative_loss_needs_a_gap():
    assert judge_gap(None, [[(0, 1.0), (1, -0.5)]], constant(0.1, 1)) == (
        None,
        Assumption("gap", "violated", "inf F ≥ 0 was taken for granted, but F = -0.5 was met"),
    )
    assert judge_gap(1.5, [[(0, 1.0), (1, -0.5)]], constant(0.1, 1))[1].status == "given"
    assert judge_gap(1.0, [[]], constant(0.1, 1))[1].status == "unchecked"


# ---- the theorems --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "smoothness", "stages", "theorem"),
    [
        ("normalized", Smooth(1), 1, "Theorem 1"),
        ("normalized", RelaxedSmooth(1, 1), 1, "Theorem 2"),
        ("normalized", Smooth(1), 2, "Theorem 3"),
        ("normalized", RelaxedSmooth(1, 1), 2, "Theorem 4"),
        ("normalized", None, 1, "Theorem 1 or 2"),
        ("gradient", Smooth(1), 1, "Ghadimi and Lan 2013, Theorem 2.1"),
        ("gradient", Smooth(1), 2, None),
        ("spider", Smooth(1), 1, "Fang et al. 2018, Theorem 1"),
        ("spider", Smooth(1), 2, None),
    ],
)
def test_which_theorem(rule, smoothness, stages, theorem):
    assert find_theorem(rule, smoothness, StagePlan([(0.1, 5)] * stages)) == theorem


SPIDER = {"anchor_batch_size": 8.0, "period": 2.0, "max_scale": 0.5}


def bound(rule, smoothness, plan, options=SPIDER):
    return bound_of(rule, smoothness, sigma=1, gap=2, plan=plan, batch_size=4, options=options)


def test_bounds_by_hand():
    found, condition = bound("normalized", RelaxedSmooth(1, 2), constant(0.25, 100))
    terms = (found.progress, found.curvature, found.noise)
    assert terms == pytest.approx((2 * 2 / 25, 2 * 1 * 0.25, 4 * 1 / 2), abs=HERE)
    assert condition == Assumption("condition", "given", "α L1 = 0.5 is at most ½")
    found, condition = bound("gradient", Smooth(4), constant(0.25, 64))
    terms = (found.progress, found.curvature, found.noise)
    assert terms == pytest.approx((2 * 2 / (0.25 * 64 * 1), 0, 4 * 0.25 * 0.25), abs=HERE)
    assert (found.squared, condition.detail) == (True, "α L = 1 is below 2")
    plan = harmonic(rho=1, stages=3, distance=1)
    assert bound("normalized", Smooth(4), plan)[0] == stagewise_bound(
        Smooth(4), sigma=1, gap=2, plan=plan, batch_size=4
    )
    found, condition = bound("spider", Smooth(1), constant(0.5, 17))
    assert found == spider_sfo_bound(
        Smooth(1), sigma=1, gap=2, lr=0.5, steps=17, batch_size=4, anchor_batch_size=8, period=2, max_scale=0.5
    )
    assert condition.detail == "β L = 0.5 is at most ½"


@pytest.mark.parametrize(
    ("rule", "smoothness", "plan", "detail"),
    [
        ("normalized", RelaxedSmooth(1, 2), constant(0.3, 9), "lr must be at most 1/(2 L1) = 0.25"),
        ("normalized", RelaxedSmooth(1, 2), StagePlan([(0.1, 9), (0.3, 9)]), "lr must be at most 1/(2 L1) = 0.25"),
        ("gradient", Smooth(4), constant(0.5, 9), "lr must be below 2/L = 0.5 for SGD"),
        ("gradient", RelaxedSmooth(1, 2), constant(0.1, 9), "the theorem is for L-smooth F"),
        ("spider", Smooth(1.1), constant(0.5, 9), "max_scale must be at most 1/(2L)"),
    ],
)
def test_steps_that_the_theorem_does_not_allow(rule, smoothness, plan, detail):
    found, condition = bound(rule, smoothness, plan)
    assert found is None
    assert (condition.name, condition.status) == ("condition", "violated")
    assert condition.detail.startswith(detail)


def test_no_infinity_reaches_the_bound():
    assert bound("normalized", Smooth(1), constant(1e-308, 1)) == (
        None,
        Assumption("condition", "violated", "the bound is too large to be computed"),
    )
