import copy
import json
import math
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sngd.stages import (
    Stage,
    StagePlan,
    agnostic,
    constant,
    geometric,
    harmonic,
    harmonic_even,
    multistep,
    poly,
    warmed_up,
)

lrs = st.floats(1e-6, 1e3)
triples = st.lists(st.tuples(lrs, st.integers(1, 20), st.floats(1e-3, 1e3)), min_size=1, max_size=12)


ALLOWED = "a Stage, (lr, steps), (lr, steps, weight) or (lr, steps, weight, momentum)"


def exactly(message: str) -> str:
    return rf"^{re.escape(message)}$"


# --- Stage


def test_stage_has_plain_numbers_and_weight_one():
    stage = Stage(np.float32(0.5), np.int64(3))
    assert stage == Stage(0.5, 3, 1.0)
    assert [type(value) for value in (stage.lr, stage.steps, stage.weight)] == [float, int, float]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "lr must be finite and greater than 0, got 0"),
        ((-0.1, 1), "lr must be finite and greater than 0, got -0.1"),
        ((math.nan, 1), "lr must be finite and greater than 0, got nan"),
        ((math.inf, 1), "lr must be finite and greater than 0, got inf"),
        (("0.1", 1), "lr must be finite and greater than 0, got '0.1'"),
        ((0.1, 0), "steps must be a whole number of at least 1, got 0"),
        ((0.1, 2.5), "steps must be a whole number of at least 1, got 2.5"),
        ((0.1, 1, 0.0), "weight must be finite and greater than 0, got 0.0"),
        ((0.1, 1, math.inf), "weight must be finite and greater than 0, got inf"),
        ((0.1, 1, 1.0, 0.0), "momentum must be in (0, 1), got 0.0"),
        ((0.1, 1, 1.0, 1), "momentum must be in (0, 1), got 1"),
        ((0.1, 1, 1.0, "0.9"), "momentum must be in (0, 1), got '0.9'"),
    ],
)
def test_stage_rejects(arguments, message):
    with pytest.raises(ValueError, match=exactly(message)):
        Stage(*arguments)


@pytest.mark.parametrize(
    ("lr", "distance", "steps"),
    [(0.1, 0.3, 3), (0.1, 0.7, 7), (0.1, 1.1, 11), (0.1, 0.31, 4), (0.5, 0.2, 1), (0.3, 3.0, 10), (1e-3, 1e-12, 1)],
)
def test_covering_rounds_up_but_not_on_account_of_rounding_errors(lr, distance, steps):
    assert Stage.covering(lr, distance).steps == steps


@given(lr=lrs, distance=st.floats(1e-3, 1e3))
def test_covering_is_the_shortest_stage_that_travels_the_distance(lr, distance):
    steps = Stage.covering(lr, distance).steps
    assert steps * lr >= distance * (1 - 1e-8)
    assert (steps - 1) * lr < distance


@given(lr=lrs, steps=st.integers(1, 10_000))
def test_covering_a_whole_number_of_steps_takes_exactly_these(lr, steps):
    assert Stage.covering(lr, lr * steps).steps == steps


@pytest.mark.parametrize(
    ("lr", "distance", "message"),
    [
        (0.1, 0, "distance must be finite and greater than 0, got 0"),
        (0.1, math.inf, "distance must be finite and greater than 0, got inf"),
        (0.0, 1.0, "lr must be finite and greater than 0, got 0.0"),
        (1e-300, 1e300, "distance / lr must be finite, got 1e+300 / 1e-300"),
    ],
)
def test_covering_rejects(lr, distance, message):
    with pytest.raises(ValueError, match=exactly(message)):
        Stage.covering(lr, distance)


# --- StagePlan


@given(triples)
def test_a_plan_is_its_naive_expansion(stages):
    plan = StagePlan(stages)
    expanded = [(i, lr, weight / steps) for i, (lr, steps, weight) in enumerate(stages) for _ in range(steps)]
    assert plan.steps == len(expanded)
    assert [(plan.stage_at(s), plan.lr_at(s), plan.iterate_weight(s)) for s in range(plan.steps)] == expanded
    lengths = [steps for _, steps, _ in stages]
    assert [plan.steps_left(s) for s in range(plan.steps)] == [left for n in lengths for left in range(n, 0, -1)]
    after = plan.steps + 7
    assert plan.steps_left(after) == 0
    assert (plan.stage_at(after), plan.lr_at(after), plan.iterate_weight(after)) == expanded[-1]


@given(triples)
def test_weights_of_all_iterates_sum_to_those_of_the_stages(stages):
    plan = StagePlan(stages)
    total = sum(plan.iterate_weight(step) for step in range(plan.steps))
    assert total == pytest.approx(sum(stage.weight for stage in plan))


@given(triples)
def test_list_form_is_plain_and_gives_the_plan_back(stages):
    plan = StagePlan(stages)
    assert plan.as_list() == [list(stage) for stage in stages]
    assert StagePlan.from_list(json.loads(json.dumps(plan.as_list()))) == plan
    assert pickle.loads(pickle.dumps(plan)).lr_at(plan.steps) == copy.deepcopy(plan).lr_at(plan.steps) == plan[-1].lr


def test_a_plan_is_a_sequence_of_stages():
    plan = StagePlan([Stage(0.5, 2), (0.1, 3), [0.01, 4, 2.0]])
    assert len(plan) == 3
    assert list(plan) == [Stage(0.5, 2), Stage(0.1, 3), Stage(0.01, 4, 2.0)]
    assert plan[1] == plan[-2] == Stage(0.1, 3)
    assert plan == StagePlan(iter(plan))
    assert plan != StagePlan([(0.5, 2), (0.1, 3), (0.01, 4)])
    assert hash(plan) == hash(StagePlan(plan))
    with pytest.raises(TypeError):
        plan[0] = Stage(1.0, 1)


def test_repr_tells_the_plan_at_any_length():
    assert repr(StagePlan([(0.5, 2), (0.1, 3, 4)])) == "StagePlan(2 stages, 5 steps: 0.5 × 2, 0.1 × 3 (weight 4))"
    assert repr(poly(1, 10, 3, power=1)) == (
        "StagePlan(10 stages, 30 steps: 1 × 3, 0.9 × 3, 0.8 × 3, 0.7 × 3, …, 0.1 × 3)"
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages must hold at least one stage, got none"),
        ([(0.1, 1), (0.1, 0)], "stages[1]: steps must be a whole number of at least 1, got 0"),
        ((0.1, 5), f"stages[0] must be {ALLOWED}, got 0.1"),
        ([(0.1, 1), (0.1,)], f"stages[1] must be {ALLOWED}, got (0.1,)"),
        ([[0.1, 1, 1, 0.5, 1]], f"stages[0] must be {ALLOWED}, got [0.1, 1, 1, 0.5, 1]"),
        ([[0.1, 1, 1, 1]], "stages[0]: momentum must be in (0, 1), got 1"),
        ([(0.1, 1, 1, 0.5), (0.1, 1)], "stages[1] must have a momentum, as other stages have one"),
    ],
)
def test_plan_rejects(stages, message):
    with pytest.raises(ValueError, match=exactly(message)):
        StagePlan(stages)


def test_negative_step_is_rejected():
    with pytest.raises(ValueError, match=exactly("step must be at least 0, got -1")):
        constant(0.1, 5).lr_at(-1)


# --- Plans


def test_constant_weighs_all_iterates_the_same():
    plan = constant(0.1, 40)
    assert plan == StagePlan([(0.1, 40)])
    assert {plan.iterate_weight(step) for step in range(40)} == {1 / 40}


def test_poly_follows_its_formula_per_epoch():
    plan = poly(0.5, 160, 391)
    assert (len(plan), plan.steps) == (160, 160 * 391)
    assert plan.lr_at(0) == plan.lr_at(390) == 0.5
    assert plan.lr_at(391) == pytest.approx(0.5 * (159 / 160) ** 1.1)
    assert plan[-1].lr == pytest.approx(0.5 * (1 / 160) ** 1.1)


def test_poly_counts_steps_when_an_epoch_is_a_step():
    plan = poly(2.0, 100, power=2.0)
    assert [plan.lr_at(t) for t in range(100)] == pytest.approx([2.0 * (1 - t / 100) ** 2 for t in range(100)])


def test_poly_may_end_within_an_epoch():
    assert poly(1.0, 2.5, 4, power=1.0) == StagePlan([(1.0, 4), (0.6, 4), (1 - 2 / 2.5, 2)])


@given(epochs=st.integers(1, 60), steps_per_epoch=st.floats(0.3, 500))
def test_fractional_epochs_do_not_drift(epochs, steps_per_epoch):
    assume(round(epochs * steps_per_epoch) > 0)
    plan = poly(0.5, epochs, steps_per_epoch)
    assert plan.steps == round(epochs * steps_per_epoch)
    for epoch in range(epochs):
        begin, end = round(epoch * steps_per_epoch), round((epoch + 1) * steps_per_epoch)
        for step in (begin, end - 1) if end > begin else ():
            assert plan.lr_at(step) == 0.5 * (1 - epoch / epochs) ** 1.1


def test_multistep_is_v2_of_the_paper():
    plan = multistep(0.5, 160, (80, 120), steps_per_epoch=390.625)
    assert [stage.steps for stage in plan] == [31250, 15625, 15625]
    assert [stage.lr for stage in plan] == pytest.approx([0.5, 0.05, 0.005])


def test_multistep_takes_fractional_milestones_and_any_factor():
    plan = multistep(1.0, 3, (0.5, 1.5), steps_per_epoch=10, factor=0.5)
    assert plan == StagePlan([(1.0, 5), (0.5, 10), (0.25, 15)])


def test_multistep_without_milestones_is_constant():
    assert multistep(0.1, 4, (), 25) == constant(0.1, 100)


def test_harmonic_even_weighs_every_iterate_by_its_learning_rate():
    plan, rates = harmonic_even(rho=0.3, stages=4, distance=1.0), harmonic(rho=0.3, stages=4, distance=1.0)
    assert [(stage.lr, stage.steps) for stage in plan] == [(stage.lr, stage.steps) for stage in rates]
    weights = [plan.iterate_weight(step) for step in range(plan.steps)]
    assert weights == pytest.approx([plan.lr_at(step) for step in range(plan.steps)])


def test_harmonic_is_corollary_1():
    plan = harmonic(rho=0.3, stages=4, distance=1.0)
    assert [stage.lr for stage in plan] == pytest.approx([0.3, 0.15, 0.1, 0.075])
    assert [stage.steps for stage in plan] == [4, 7, 10, 14]
    assert [stage.weight for stage in plan] == pytest.approx([1 / stage.lr for stage in plan])
    # What its proof rests on, as corrected: Σ α_{t−1} p_t = T.
    assert sum(stage.lr * stage.weight for stage in plan) == pytest.approx(4)


def test_geometric_is_corollary_2():
    plan = geometric(rho=0.1, stages=3, distance=0.25)
    assert [stage.lr for stage in plan] == pytest.approx([0.1, 0.01, 0.001])
    assert [stage.steps for stage in plan] == [3, 25, 250]
    assert [stage.weight for stage in plan] == pytest.approx([5, 25, 125])
    # The sum in its proof, with the sign corrected: Σ p_t = ((2ρ)^−T − 1) / (1 − 2ρ).
    assert sum(stage.weight for stage in plan) == pytest.approx((0.2**-3 - 1) / (1 - 0.2))


@given(
    rho=st.floats(0.01, 0.49), stages=st.integers(1, 8), distance=st.floats(0.1, 10), corollary=st.sampled_from([1, 2])
)
def test_every_stage_of_the_corollaries_covers_the_distance_and_weights_do_not_decrease(
    rho, stages, distance, corollary
):
    plan = (harmonic if corollary == 1 else geometric)(rho, stages, distance)
    assert len(plan) == stages
    for stage in plan:
        assert stage.steps * stage.lr >= distance * (1 - 1e-8)
        assert (stage.steps - 1) * stage.lr < distance * (1 + 1e-8)
    weights = [stage.weight for stage in plan]
    assert weights == sorted(weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(0.0, 1), "lr must be finite and greater than 0, got 0.0"),
        (lambda: poly(-1, 2), "lr must be finite and greater than 0, got -1"),
        (lambda: poly(1, 0), "epochs must be finite and greater than 0, got 0"),
        (lambda: poly(1, 2, 0), "steps_per_epoch must be finite and greater than 0, got 0"),
        (lambda: poly(1, 2, power=math.nan), "power must be finite and greater than 0, got nan"),
        (lambda: poly(1, 2, 0.1), "epochs * steps_per_epoch must round to at least 1 step, got 2 * 0.1"),
        (lambda: multistep(1, 9, (3,), factor=0), "factor must be finite and greater than 0, got 0"),
        (
            lambda: multistep(1, 160, (120, 80)),
            "milestones must be strictly increasing within (0, 160), got [120, 80]",
        ),
        (lambda: multistep(1, 160, (0, 80)), "milestones must be strictly increasing within (0, 160), got [0, 80]"),
        (lambda: multistep(1, 80, [80]), "milestones must be strictly increasing within (0, 80), got [80]"),
        (lambda: harmonic(0, 1, 1), "rho must be finite and greater than 0, got 0"),
        (lambda: harmonic(1, 0, 1), "stages must be a whole number of at least 1, got 0"),
        (lambda: harmonic(1, 1, -2), "distance must be finite and greater than 0, got -2"),
        (lambda: geometric(0.5, 1, 1), "rho must be in (0, 0.5), got 0.5"),
        (lambda: geometric(0, 1, 1), "rho must be in (0, 0.5), got 0"),
        (lambda: geometric(0.1, 0, 1), "stages must be a whole number of at least 1, got 0"),
        (lambda: geometric(0.1, 1000, 1), "stages must be at most 300 for rho = 0.1, got 1000"),
    ],
)
def test_plans_reject(make, message):
    with pytest.raises(ValueError, match=exactly(message)):
        make()


def test_stages_module_needs_no_torch():
    # The file alone: importing the package runs sngd/__init__.py, which is free to import torch.
    import sngd.stages

    code = f"import sys, runpy; runpy.run_path({sngd.stages.__file__!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    lrs=st.lists(st.floats(1e-3, 10), min_size=1, max_size=4),
    length=st.integers(1, 30),
    steps=st.integers(1, 100),
    parts=st.integers(1, 8),
)
def test_a_warm_up_rises_evenly_and_leaves_the_rest(lrs, length, steps, parts):
    plan = StagePlan([(lr, length, weight + 1) for weight, lr in enumerate(lrs)])
    assume(parts <= steps < plan.steps)
    warm = warmed_up(plan, steps, parts)
    assert warm.steps == plan.steps
    assert all(warm.lr_at(t) == plan.lr_at(t) for t in range(steps, plan.steps))
    height = plan.lr_at(steps)
    assert [stage.lr for stage in warm[:parts]] == pytest.approx(
        [height * i / (parts + 1) for i in range(1, parts + 1)]
    )
    lengths = [stage.steps for stage in warm[:parts]]
    assert sum(lengths) == steps
    assert max(lengths) - min(lengths) <= 1
    assert {stage.weight for stage in warm[:parts]} == {plan[plan.stage_at(steps)].weight}


@pytest.mark.parametrize(("steps", "parts"), [(2, 3), (10, 2), (11, 2)])
def test_a_warm_up_must_fit(steps, parts):
    with pytest.raises(
        ValueError, match=f"^steps must be at least stages = {parts} and less than the plan's 10, got {steps}$"
    ):
        warmed_up(constant(0.1, 10), steps, parts)


# --- momentum


def test_a_plan_with_momentum_goes_through_lists():
    plan = StagePlan([(0.5, 3, 2.0, 0.25), Stage(0.1, 4, momentum=0.5)])
    assert plan.as_list() == [[0.5, 3, 2.0, 0.25], [0.1, 4, 1.0, 0.5]]
    assert StagePlan.from_list(json.loads(json.dumps(plan.as_list()))) == plan
    assert plan.sets_momentum
    assert not constant(0.1, 3).sets_momentum
    assert "(momentum 0.25)" in repr(plan)
    assert [stage.momentum for stage in warmed_up(plan, 5, 2)] == [0.5, 0.5, 0.5]


@given(lr=lrs, steps=st.integers(1, 5000))
def test_agnostic_follows_the_published_powers_of_the_step(lr, steps):
    """α s^(−3/4) and 1 − s^(−1/2) at the first step s of every stage; in between they are less than 2^(3/4), √2 off."""
    plan = agnostic(lr, steps)
    assert plan.steps == steps
    assert len(plan) == math.floor(math.log2(steps)) + 1
    for s in {1, 2, 3, 4, 5, steps // 2 + 1, steps}:
        if s > steps:
            continue
        stage = plan[plan.stage_at(s - 1)]
        assert 1 - 1e-12 <= stage.lr / (lr * s**-0.75) < 2**0.75
        if s > 1:
            assert 1 - 1e-12 <= (1 - stage.momentum) / s**-0.5 < math.sqrt(2)
        assert plan.iterate_weight(s - 1) == pytest.approx(stage.lr, rel=1e-12)
    assert plan[0].momentum == pytest.approx(1 - math.sqrt(0.5))
