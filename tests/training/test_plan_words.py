"""Plans spelled in a word."""

import json
import re

import pytest

from sngd import stages
from sngd.training.plan_words import build_plan, inline


@pytest.mark.parametrize(
    ("spec", "plan"),
    [
        ("constant", stages.constant(0.4, 50)),
        ("poly", stages.poly(0.4, 20, 2.5)),
        ("poly:power=2", stages.poly(0.4, 20, 2.5, power=2)),
        ("poly:stages=5", stages.poly(0.4, 5, 10)),
        ("poly:stages=50", stages.poly(0.4, 50)),  # t counts steps
        ("poly:stages=1000", stages.poly(0.4, 1000, 0.05)),  # more stages than steps
        ("multistep", stages.multistep(0.4, 20, (10, 15), 2.5)),
        ("multistep:milestones=4/8.5:factor=0.5", stages.multistep(0.4, 20, (4, 8.5), 2.5, factor=0.5)),
        ("harmonic:stages=3:distance=2", stages.harmonic(0.4, 3, 2)),
        ("harmonic-even:stages=3:distance=2", stages.harmonic_even(0.4, 3, 2)),
        ("agnostic", stages.agnostic(0.4, 50)),
        ("agnostic:warmup=4", stages.warmed_up(stages.agnostic(0.4, 50), 10)),
        ("[[0.5, 3, 1, 0.9]]", stages.StagePlan([(0.5, 3, 1.0, 0.9)])),
        ("geometric:stages=2:distance=2", stages.geometric(0.4, 2, 2)),
        ("poly:warmup=2", stages.warmed_up(stages.poly(0.4, 20, 2.5), 5)),
        ("multistep:milestones=1/8:warmup=4", stages.warmed_up(stages.multistep(0.4, 20, (1, 8), 2.5), 10)),
        ("[[0.5, 3], [0.1, 4, 2]]", stages.StagePlan([(0.5, 3), (0.1, 4, 2)])),
    ],
)
def test_spellings(spec, plan):
    assert build_plan(spec, 0.4, 20, 2.5) == plan


@pytest.mark.parametrize("name", ["harmonic", "harmonic-even", "geometric"])
def test_without_a_distance_the_plan_fills_the_run(name):
    plan = build_plan(name, 0.4, 20, 50.0)
    assert 1000 <= plan.steps <= 1000 + len(plan)  # each stage is rounded up


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "polly",
            "unknown plan 'polly', did you mean 'poly'? must be constant | poly[:power=1.1][:stages=T] | multistep",
        ),
        ("zzz", "unknown plan 'zzz'; must be constant | poly"),
        (
            "poly:factor=2",
            "plan 'poly:factor=2': 'factor=2' is no option of poly, which takes power=…, stages=…, warmup=…",
        ),
        ("constant:x=1", "plan 'constant:x=1': 'x=1' is no option of constant, which takes warmup=…"),
        ("poly:power", "plan 'poly:power': 'power' is no option of poly, which takes power=…, stages=…, warmup=…"),
        ("poly:power=two", "plan 'poly:power=two': power must be a number, got 'two'"),
        ("harmonic:stages=0", "plan 'harmonic:stages=0': stages must be a whole number of at least 1, got '0'"),
        (
            "multistep:milestones=9/30",
            "plan 'multistep:milestones=9/30': milestones must be strictly increasing within",
        ),
        ("[[0.5]]", "plan '[[0.5]]': must be [[lr, steps, weight?, momentum?], …] in JSON: stages[0]"),
        ("[[0.5,", "plan '[[0.5,': must be [[lr, steps, weight?, momentum?], …] in JSON: Expecting value"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build_plan(spec, 0.4, 20, 2.5)


def test_a_file_is_put_in_its_place(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text("[[0.5, 3],\n [0.1, 4]]")
    assert json.loads(inline(str(file))) == [[0.5, 3], [0.1, 4]]
    assert inline("poly:power=2") == "poly:power=2"
    file.write_text("[[0.5, 3]")
    with pytest.raises(ValueError, match=r"plan .*plan\.json: not JSON"):
        inline(str(file))
    with pytest.raises(ValueError, match=r"plan .*absent\.json: No such file or directory"):
        inline(str(tmp_path / "absent.json"))
