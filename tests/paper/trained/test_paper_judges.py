"""The judges of C1 to C6: each verdict flips with what was measured, either way."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sngd.paper.trained import judges
from sngd.paper.trained.judges import (
    judge_large_batch,
    judge_large_rate,
    judge_small_rate,
    judge_stages,
    judge_until_milestone,
    judge_variation,
)
from sngd.paper.verdicts import IN_PART, NOT_REPRODUCED, NOT_TESTED, REPRODUCED, Verdict, as_json

SEEDS = (0, 1, 2)
SLOW_SPIDER, SPIDER, SLOW_SNGD, SNGD = (f"{m}, α={lr}" for m in ("SPIDER-SFO", "SNGD") for lr in (0.001, 0.1))
V1, V2 = "S-SNGD(v1), α=0.5", "S-SNGD(v2), α=0.5"


def outcome(evidence):
    return Verdict("C0", "", "", evidence).outcome


def required(evidence):
    return {q.name: q.met for q in evidence.quantities if q.met is not None}


def failures(evidence):
    return [name for name, met in required(evidence).items() if not met]


def quantity(evidence, name):
    (found,) = (q for q in evidence.quantities if q.name == name)
    return found


def count(evidence, name):
    return quantity(evidence, name).measured


# ---- fake measurements ---------------------------------------------------------------------------------------


def fake_arm(loss, accuracy=None, *, wiggle=0.0, spread=0.01, epochs=20, plan="constant", lr=0.1, beyond=False):
    """From ln 10 exponentially down to ``loss``; up and down by ``wiggle``; seed k is (1 + spread·k) as high."""
    costs = [float(cost) for cost in range(epochs + 1)]
    end = epochs / 8
    curves = [
        [
            (loss + (math.log(10) - loss) * math.exp(-cost / end)) * (1 + spread * k) * math.exp(wiggle * (-1) ** i)
            for i, cost in enumerate(costs)
        ]
        for k in range(len(SEEDS))
    ]
    accuracy = 1 - loss / 10 if accuracy is None else accuracy
    accuracies = [[0.1 + (accuracy - 0.1) * cost / epochs + 0.001 * k for cost in costs] for k in range(len(SEEDS))]
    final = {"train_loss": [curve[-1] for curve in curves], "test_accuracy": [curve[-1] for curve in accuracies]}
    return {
        "method": "any",
        "lr": lr,
        "plan": plan,
        "params": {},
        "beyond": beyond,
        "seeds": list(SEEDS),
        "diverged": [],
        "final": final,
        "curves": {"grads_over_n": costs, "train_loss": curves, "test_accuracy": accuracies},
    }


def diverge(arm, *seeds):
    arm["diverged"] = list(seeds)
    for k in seeds:
        for key in ("train_loss", "test_accuracy"):
            arm["final"][key][k] = None
            arm["curves"][key][k][5:] = [None] * (len(arm["curves"][key][k]) - 5)


def fake_experiment(arms, problem="mnist-mlp", batch_size=100, tuning=None, departures=(), epochs=20):
    return {
        "title": problem, "problem": problem, "n": 1000, "batch_size": batch_size, "epochs": epochs,
        "weight_decay": 0.0, "departures": list(departures), "arms": arms, "tuning": tuning,
    }  # fmt: skip


def fake_figure(name, experiments):
    return {
        "figure": name, "profile": "small", "device": "cpu", "environment": {"torch": "2.13.0"},
        "experiments": experiments,
    }  # fmt: skip


@pytest.fixture
def fig2():
    arms = {
        SLOW_SPIDER: fake_arm(1.0),
        SPIDER: fake_arm(0.4, wiggle=0.1, spread=0.2),
        SLOW_SNGD: fake_arm(1.5),
        SNGD: fake_arm(0.2),
    }
    notes = {"batch-32": ["several seeds", "fewer epochs"], "batch-128": ["several seeds"]}
    return fake_figure(
        "fig2", {key: fake_experiment(copy.deepcopy(arms), departures=phrases) for key, phrases in notes.items()}
    )


@pytest.fixture
def fig3():
    arms = {
        "SPIDER-SFO, α=0.1": fake_arm(0.6),
        "SPIDER-SFO, α=0.5": fake_arm(0.9, wiggle=0.2, spread=0.2),
        "SNGD, α=0.1": fake_arm(0.5),
        "SNGD, α=0.5": fake_arm(0.7, lr=0.5),
        V1: fake_arm(0.2, plan="poly", lr=0.5),
        V2: fake_arm(0.3, plan="multistep", lr=0.5),
    }
    for key in ("train_loss", "test_accuracy"):
        for ours, theirs in zip(arms[V2]["curves"][key], arms["SNGD, α=0.5"]["curves"][key], strict=True):
            ours[:11] = theirs[:11]  # at ½ of 20 #grad/n is the milestone
    return fake_figure("fig3", {"resnet20": fake_experiment(arms, "cifar10-resnet20")})


@pytest.fixture
def fig4():
    arms = {
        "S-SGD": fake_arm(0.5, lr=1.0),
        "S-SNGD": fake_arm(0.2, lr=0.3),
        "SNGM": fake_arm(0.1, beyond=True),
    }
    tuning = {"grid": [0.1, 0.3, 1.0, 3.0], "chosen": {}, "outcomes": [], "at_edge": []}
    return fake_figure("fig4", {"large-batch": fake_experiment(arms, "cifar10-resnet20", 4096, tuning)})


# ---- C1 ------------------------------------------------------------------------------------------------------


def test_c1_is_reproduced_where_sngd_is_lower_everywhere(fig2):
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == REPRODUCED
    assert count(evidence, "comparisons that hold") == "8 of 8"
    assert evidence.error_rate == 0.025
    assert "3 seeds; 95 % intervals" in evidence.test
    assert evidence.departures == (
        "several seeds",
        "batch-32: fewer epochs",
        "cpu, PyTorch 2.13.0; the paper has a V100 and PyTorch 1.4",
    )
    json.dumps(as_json(Verdict("C1", "", "", evidence)), allow_nan=False)


def test_a_comparison_is_the_paired_students_t(fig2):
    arms = fig2["experiments"]["batch-32"]["arms"]
    arms[SPIDER]["final"]["train_loss"], arms[SNGD]["final"]["train_loss"] = [1.0, 2.0, 3.0], [0.5, 1.6, 2.4]
    found = quantity(judge_large_rate(fig2), "batch-32: final training loss, SPIDER-SFO, α=0.1 − SNGD, α=0.1")
    assert found.value == pytest.approx(0.5)
    assert found.high - found.value == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)
    assert found.met


def test_accuracy_within_seed_noise_is_reproduced_in_part(fig2):
    final = fig2["experiments"]["batch-128"]["arms"][SNGD]["final"]
    spider = fig2["experiments"]["batch-128"]["arms"][SPIDER]["final"]["test_accuracy"]
    final["test_accuracy"] = [spider[0] + 0.02, spider[1] - 0.01, spider[2] + 0.01]
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == IN_PART
    assert failures(evidence) == [
        "batch-128: final test error in percentage points, SPIDER-SFO, α=0.1 − SNGD, α=0.1",
    ]
    assert count(evidence, "comparisons that hold the other way round") == "0 of 8"


def test_c1_is_not_reproduced_where_spider_is_lower(fig2):
    for experiment in fig2["experiments"].values():
        experiment["arms"][SNGD] = fake_arm(2.0)
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == NOT_REPRODUCED
    assert count(evidence, "comparisons that hold the other way round") == "8 of 8"


def test_a_tie_is_not_a_lead(fig2):
    for experiment in fig2["experiments"].values():
        experiment["arms"] |= dict.fromkeys((SPIDER, SLOW_SPIDER), experiment["arms"][SNGD])
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == NOT_REPRODUCED
    assert count(evidence, "comparisons that hold the other way round") == "0 of 8"


def test_fewer_than_half_of_the_comparisons_are_no_part(fig2):
    for key, loss in (("batch-32", 0.5), ("batch-128", 2.0)):
        fig2["experiments"][key]["arms"][SNGD] = fake_arm(loss)
    evidence = judge_large_rate(fig2)
    assert count(evidence, "comparisons that hold") == "2 of 8"
    assert outcome(evidence) == NOT_REPRODUCED


def test_one_seed_shows_nothing(fig2):
    for experiment in fig2["experiments"].values():
        for arm in experiment["arms"].values():
            arm["seeds"] = [0]
            arm["final"] = {key: values[:1] for key, values in arm["final"].items()}
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == NOT_REPRODUCED
    assert evidence.quantities[2].required == "> 0, over several seeds"


# ---- divergence ----------------------------------------------------------------------------------------------


def test_a_winner_that_diverges_once_does_not_win(fig2):
    diverge(fig2["experiments"]["batch-32"]["arms"][SNGD], 1)
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == IN_PART
    assert len(failures(evidence)) == 4
    assert all("runs of the latter that diverged" in name for name in failures(evidence))
    assert count(evidence, "comparisons that hold the other way round") == "4 of 8"


def test_a_competitor_that_always_diverges_is_beaten(fig2):
    for experiment in fig2["experiments"].values():
        diverge(experiment["arms"][SPIDER], *SEEDS)
    assert outcome(judge_large_rate(fig2)) == REPRODUCED


def test_a_diverged_run_of_the_competitor_counts_as_its_worst_other(fig2):
    arms = fig2["experiments"]["batch-32"]["arms"]
    diverge(arms[SPIDER], 0)
    arms[SPIDER]["final"]["train_loss"] = [None, 0.3, 0.4]
    arms[SNGD]["final"]["train_loss"] = [0.2, 0.2, 0.2]
    found = quantity(judge_large_rate(fig2), "batch-32: final training loss, SPIDER-SFO, α=0.1 − SNGD, α=0.1")
    assert found.value == pytest.approx((0.2 + 0.1 + 0.2) / 3)


def test_both_diverging_is_no_lead(fig2):
    for experiment in fig2["experiments"].values():
        for arm in experiment["arms"].values():
            diverge(arm, *SEEDS)
    for evidence in (judge_large_rate(fig2), judge_small_rate(fig2)):
        assert outcome(evidence) == NOT_REPRODUCED


# ---- C2 ------------------------------------------------------------------------------------------------------


def test_c2_flips_with_the_curves(fig2):
    assert outcome(judge_small_rate(fig2)) == REPRODUCED
    for experiment in fig2["experiments"].values():
        arms = experiment["arms"]
        arms[SLOW_SPIDER], arms[SLOW_SNGD] = arms[SLOW_SNGD], arms[SLOW_SPIDER]
    evidence = judge_small_rate(fig2)
    assert outcome(evidence) == NOT_REPRODUCED
    assert count(evidence, "comparisons that hold the other way round") == "4 of 4"


def test_c2_in_part_where_only_the_end_is_lower(fig2):
    for experiment in fig2["experiments"].values():
        experiment["arms"][SLOW_SPIDER]["curves"]["train_loss"] = fake_arm(2.0)["curves"]["train_loss"]
    evidence = judge_small_rate(fig2)
    assert outcome(evidence) == IN_PART
    assert [name.split(",")[0] for name in failures(evidence)] == [
        "batch-32: mean training loss along the curve",
        "batch-128: mean training loss along the curve",
    ]


def test_the_mean_along_the_curve_is_the_area_over_the_length():
    arm = fake_arm(0.2)
    arm["curves"] |= {"grads_over_n": [0.0, 1.0, 4.0], "train_loss": [[2.0, 1.0, 0.0]] * 3}
    assert judges.ALONG.values(arm) == [pytest.approx((1.5 + 1.5) / 4)] * 3


# ---- C3 ------------------------------------------------------------------------------------------------------


def test_c3_flips_with_the_variation(fig2, fig3):
    evidence = judge_variation(fig2, fig3)
    assert outcome(evidence) == REPRODUCED
    assert count(evidence, "comparisons that hold") == "6 of 6"
    assert count(evidence, "batch-32: evaluations at which the training loss rose, SNGD, α=0.1") == "0 of 45"
    for experiment in (*fig2["experiments"].values(), *fig3["experiments"].values()):
        for lr in (0.1, 0.5):
            spider, sngd = f"SPIDER-SFO, α={lr}", f"SNGD, α={lr}"
            if spider in experiment["arms"]:
                arms = experiment["arms"]
                arms[spider], arms[sngd] = arms[sngd], arms[spider]
    evidence = judge_variation(fig2, fig3)
    assert outcome(evidence) == NOT_REPRODUCED
    assert count(evidence, "comparisons that hold the other way round") == "6 of 6"


def test_equal_spread_across_seeds_is_reproduced_in_part(fig2, fig3):
    for experiment in fig2["experiments"].values():
        experiment["arms"][SPIDER] = fake_arm(0.4, wiggle=0.1)
    evidence = judge_variation(fig2, fig3)
    assert outcome(evidence) == IN_PART
    assert [name.split(",")[0] for name in failures(evidence)] == [
        "batch-32: deviation across seeds",
        "batch-128: deviation across seeds",
    ]


def test_the_interval_across_seeds_is_fishers(fig2, fig3):
    (found, *_) = (q for q in judge_variation(fig2, fig3).quantities if "deviation across seeds" in q.name)
    assert found.value / found.low == pytest.approx(math.sqrt(39.0))  # F of (2, 2) degrees of freedom, 97.5 %
    assert found.high / found.value == pytest.approx(math.sqrt(39.0))


@given(st.floats(-3, 3), st.floats(-3, 3), st.lists(st.floats(0.1, 5), min_size=3, max_size=9))
def test_a_straight_line_has_no_variation(slope, height, gaps):
    x = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    assert judges._deviation_from_line(x, [slope * t + height for t in x]) == pytest.approx(0, abs=1e-9)


def test_variation_of_noise_is_its_deviation():
    y = [0.3 * math.sin(12.9898 * i * i) for i in range(4000)]  # as good as independent, of deviation 0.3/√2
    assert judges._deviation_from_line(list(range(4000)), y) == pytest.approx(0.3 / math.sqrt(2), rel=0.05)


def test_a_diverging_smooth_curve_is_not_smooth(fig2, fig3):
    for experiment in fig2["experiments"].values():
        diverge(experiment["arms"][SNGD], 0)
    evidence = judge_variation(fig2, fig3)
    assert outcome(evidence) == NOT_REPRODUCED
    assert count(evidence, "comparisons that hold the other way round") == "4 of 6"


@pytest.mark.parametrize(("seeds", "expected"), [((0,), REPRODUCED), ((0, 1), IN_PART), (SEEDS, REPRODUCED)])
def test_rough_curves_that_diverge(fig2, fig3, seeds, expected):
    """With two of three diverged there is no deviation across seeds, and not all have diverged."""
    diverge(fig2["experiments"]["batch-32"]["arms"][SPIDER], *seeds)
    assert outcome(judge_variation(fig2, fig3)) == expected


def test_too_few_evaluations_show_no_variation_along_the_curve(fig2, fig3):
    for arm in fig3["experiments"]["resnet20"]["arms"].values():
        arm["curves"] = {key: values[::10] if key == "grads_over_n" else [v[::10] for v in values]
                         for key, values in arm["curves"].items()}  # fmt: skip
    names = required(judge_variation(fig2, fig3))
    assert any(name.startswith("resnet20: deviation across seeds") for name in names)
    assert not any(name.startswith("resnet20: variation along the curve") for name in names)


# ---- C4 ------------------------------------------------------------------------------------------------------


def test_c4_flips_with_the_stages(fig3):
    evidence = judge_stages(fig3)
    assert outcome(evidence) == REPRODUCED
    assert count(evidence, "comparisons that hold") == "16 of 16"
    arms = fig3["experiments"]["resnet20"]["arms"]
    arms[V2] = fake_arm(0.55)  # between SNGD's
    assert outcome(judge_stages(fig3)) == IN_PART
    arms[V1] = arms[V2]
    assert count(judge_stages(fig3), "comparisons that hold") == "12 of 16"
    arms[V1] = arms[V2] = fake_arm(0.8)
    assert outcome(judge_stages(fig3)) == NOT_REPRODUCED


def test_every_network_counts(fig3):
    fig3["experiments"]["resnet56"] = copy.deepcopy(fig3["experiments"]["resnet20"])
    assert count(judge_stages(fig3), "comparisons that hold") == "32 of 32"
    fig3["experiments"]["resnet56"]["arms"][V1] = fake_arm(2.0)
    assert outcome(judge_stages(fig3)) == IN_PART


def test_what_others_reach_stands_beside_the_papers_own_setting(fig3):
    experiment = fig3["experiments"]["resnet20"]
    assert not any("elsewhere" in q.name for q in judge_stages(fig3).quantities)
    fig3["experiments"]["resnet20"] = {**experiment, "batch_size": 128, "epochs": 160}
    (known,) = (q for q in judge_stages(fig3).quantities if "elsewhere" in q.name)
    assert known.name.startswith(f"resnet20: test accuracy (%) of the best, {V1} (momentum SGD elsewhere: 91.25, ")
    assert known.value == pytest.approx(98.1)
    assert known.met is None


# ---- C5 ------------------------------------------------------------------------------------------------------


def test_c5_is_equality_until_the_milestone(fig3):
    evidence = judge_until_milestone(fig3)
    assert outcome(evidence) == REPRODUCED
    assert [q.measured for q in evidence.quantities] == ["30 of 30", "0 of 30"]
    assert "first milestone, 10 #grad/n" in evidence.quantities[0].name


@pytest.mark.parametrize("key", ["train_loss", "test_accuracy"])
@pytest.mark.parametrize(("place", "expected"), [(0, REPRODUCED), (10, NOT_REPRODUCED), (11, REPRODUCED)])
def test_the_last_bit_counts_but_not_after_the_milestone(fig3, key, place, expected):
    values = fig3["experiments"]["resnet20"]["arms"][V2]["curves"][key][1]
    values[place] = math.nextafter(values[place], math.inf)
    assert outcome(judge_until_milestone(fig3)) == expected


def test_other_milestones_are_those_of_the_plan(fig3):
    fig3["experiments"]["resnet20"]["arms"][V2]["plan"] = "multistep:milestones=4/8"
    assert [q.measured for q in judge_until_milestone(fig3).quantities] == ["12 of 12", "18 of 48"]


def test_without_an_evaluation_before_the_milestone_nothing_is_tested(fig3):
    fig3["experiments"]["resnet20"]["arms"][V2]["plan"] = "multistep:milestones=0.5/8"
    assert outcome(judge_until_milestone(fig3)) == NOT_TESTED


# ---- C6 ------------------------------------------------------------------------------------------------------


def test_c6_flips_with_the_losses(fig4):
    evidence = judge_large_batch(fig4)
    assert outcome(evidence) == REPRODUCED
    assert any(q.name.endswith("SNGM − S-SNGD") and q.high < 0 and q.met is None for q in evidence.quantities)
    arms = fig4["experiments"]["large-batch"]["arms"]
    arms["S-SNGD"]["final"]["test_accuracy"] = arms["S-SGD"]["final"]["test_accuracy"]
    assert outcome(judge_large_batch(fig4)) == IN_PART
    arms["S-SNGD"] = fake_arm(0.9)
    assert outcome(judge_large_batch(fig4)) == NOT_REPRODUCED


@pytest.mark.parametrize(("label", "expected"), [("S-SGD", IN_PART), ("S-SNGD", REPRODUCED), ("SNGM", REPRODUCED)])
def test_a_competitor_tuned_to_the_edge_is_not_beaten_outright(fig4, label, expected):
    fig4["experiments"]["large-batch"]["tuning"]["at_edge"] = [label]
    evidence = judge_large_batch(fig4)
    assert outcome(evidence) == expected
    note = f"large-batch: the tuned α of {label} is at the edge of the grid; a better one may lie outside"
    assert note in evidence.departures


def test_an_untuned_comparison_is_not_what_the_paper_claims(fig4):
    fig4["experiments"]["large-batch"]["tuning"] = None
    assert outcome(judge_large_batch(fig4)) == IN_PART


# ---- what is not there ---------------------------------------------------------------------------------------


def test_only_what_was_run_is_judged(fig2, fig3, fig4):
    del fig2["experiments"]["batch-32"]
    assert count(judge_large_rate(fig2), "comparisons that hold") == "4 of 4"
    del fig2["experiments"]["batch-128"]["arms"][SLOW_SPIDER]
    assert count(judge_large_rate(fig2), "comparisons that hold") == "2 of 2"
    assert outcome(judge_small_rate(fig2)) == NOT_TESTED
    del fig3["experiments"]["resnet20"]["arms"][V2]
    assert count(judge_stages(fig3), "comparisons that hold") == "8 of 8"
    assert outcome(judge_until_milestone(fig3)) == NOT_TESTED
    del fig4["experiments"]["large-batch"]["arms"]["S-SGD"]
    assert outcome(judge_large_batch(fig4)) == NOT_TESTED
    for figure in (fig2, fig3):
        figure["experiments"] = {}
    assert outcome(judge_variation(fig2, fig3)) == NOT_TESTED
