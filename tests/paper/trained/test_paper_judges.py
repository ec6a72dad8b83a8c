"""The judges of C1 to C6: each verdict flips with what was measured, either way."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sngd.paper.trained import comparing, variation
from sngd.paper.trained.judges import (
    judge_large_batch,
    judge_large_rate,
    judge_small_rate,
    judge_stages,
    judge_until_milestone,
)
from sngd.paper.trained.variation import judge_variation
from sngd.paper.verdicts import CONTRADICTED, NOT_TESTED, OPEN, SHOWN, Verdict, as_json

SEEDS = (0, 1, 2)
SLOW_SPIDER, SPIDER, SLOW_SNGD, SNGD = (f"{m}, α={lr}" for m in ("SPIDER-SFO", "SNGD") for lr in (0.001, 0.1))
V1, V2 = "S-SNGD(v1), α=0.5", "S-SNGD(v2), α=0.5"


def outcome(evidence):
    return Verdict("C0", "", "", evidence).outcome


def required(evidence):
    return {q.name: q.answer for q in evidence.quantities if q.answer}


def failures(evidence):
    return [name for name, answer in required(evidence).items() if answer != SHOWN]


def tally(evidence):
    """(how many comparisons and other requirements, of these shown, of these contradicted)."""
    return Verdict("C0", "", "", evidence).tally


def quantity(evidence, name):
    (found,) = (q for q in evidence.quantities if q.name == name)
    return found


def count(evidence, name):
    return quantity(evidence, name).measured


# ---- fake measurements ---------------------------------------------------------------------------------------


def fake_arm(
    loss, accuracy=None, *, wiggle=0.0, spread=0.01, epochs=20, per_epoch=1, plan="constant", lr=0.1, beyond=False
):
    """From ln 10 exponentially down to ``loss``; up and down by ``wiggle``; seed k is (1 + spread·k) as high."""
    costs = [place / per_epoch for place in range(epochs * per_epoch + 1)]
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


def test_c1_is_shown_where_sngd_is_lower_everywhere(fig2):
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == SHOWN
    assert tally(evidence)[:2] == (8, 8)
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
    assert found.answer == SHOWN


def test_the_claim_is_contradicted_only_by_an_interval_that_allows_for_the_number_of_comparisons(fig2):
    """t(2) is 4.3 for one comparison at 95 %, and 12.6 for one of eight; differences have mean 1 and deviation s."""
    for s, expected in ((0.2, OPEN), (0.1, CONTRADICTED)):  # √3/s is 8.7 and 17.3
        spider = fig2["experiments"]["batch-128"]["arms"][SPIDER]["final"]
        spider["train_loss"], fig2["experiments"]["batch-128"]["arms"][SNGD]["final"]["train_loss"] = (
            [0.0, 0.0, 0.0],
            [1 - s, 1.0, 1 + s],
        )
        evidence = judge_large_rate(fig2)
        assert (outcome(evidence), tally(evidence)) == (expected, (8, 6, 1))


def test_accuracy_within_seed_noise_is_open(fig2):
    final = fig2["experiments"]["batch-128"]["arms"][SNGD]["final"]
    spider = fig2["experiments"]["batch-128"]["arms"][SPIDER]["final"]["test_accuracy"]
    final["test_accuracy"] = [spider[0] + 0.02, spider[1] - 0.01, spider[2] + 0.01]
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == OPEN
    assert failures(evidence) == [
        "batch-128: final test error in percentage points, SPIDER-SFO, α=0.1 − SNGD, α=0.1",
    ]
    assert tally(evidence).contradicted == 0


def test_c1_is_contradicted_where_spider_is_lower(fig2):
    for experiment in fig2["experiments"].values():
        experiment["arms"][SNGD] = fake_arm(2.0)
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == CONTRADICTED
    assert tally(evidence).contradicted == 8


def test_a_tie_is_not_a_lead(fig2):
    for experiment in fig2["experiments"].values():
        experiment["arms"] |= dict.fromkeys((SPIDER, SLOW_SPIDER), experiment["arms"][SNGD])
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == OPEN
    assert tally(evidence) == (8, 0, 0)


def test_one_setting_in_which_it_is_otherwise_contradicts_the_claim(fig2):
    for key, loss in (("batch-32", 0.5), ("batch-128", 2.0)):
        fig2["experiments"][key]["arms"][SNGD] = fake_arm(loss)
    evidence = judge_large_rate(fig2)
    assert tally(evidence)[:2] == (8, 2)
    assert outcome(evidence) == CONTRADICTED


def test_one_seed_shows_nothing(fig2):
    for experiment in fig2["experiments"].values():
        for arm in experiment["arms"].values():
            arm["seeds"] = [0]
            arm["final"] = {key: values[:1] for key, values in arm["final"].items()}
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == OPEN
    assert tally(evidence) == (8, 0, 0)
    assert evidence.quantities[2].required == "> 0, over several seeds"


# ---- divergence ----------------------------------------------------------------------------------------------


def test_a_winner_that_diverges_once_does_not_win(fig2):
    diverge(fig2["experiments"]["batch-32"]["arms"][SNGD], 1)
    evidence = judge_large_rate(fig2)
    assert outcome(evidence) == CONTRADICTED
    assert len(failures(evidence)) == 4
    assert all("runs of the latter that diverged" in name for name in failures(evidence))
    assert tally(evidence).contradicted == 4


def test_a_competitor_that_always_diverges_is_beaten(fig2):
    for experiment in fig2["experiments"].values():
        diverge(experiment["arms"][SPIDER], *SEEDS)
    assert outcome(judge_large_rate(fig2)) == SHOWN


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
        assert outcome(evidence) == OPEN
        assert tally(evidence)[1:] == (0, 0)


# ---- C2 ------------------------------------------------------------------------------------------------------


def test_c2_flips_with_the_curves(fig2):
    assert outcome(judge_small_rate(fig2)) == SHOWN
    for experiment in fig2["experiments"].values():
        arms = experiment["arms"]
        arms[SLOW_SPIDER], arms[SLOW_SNGD] = arms[SLOW_SNGD], arms[SLOW_SPIDER]
    evidence = judge_small_rate(fig2)
    assert outcome(evidence) == CONTRADICTED
    assert tally(evidence).contradicted == 4


def test_c2_is_judged_where_the_curves_end(fig2):
    """§6.1: "in terms of both training loss and test accuracy after 20 epochs"; the way there is context."""
    for experiment in fig2["experiments"].values():
        experiment["arms"][SLOW_SPIDER]["curves"]["train_loss"] = fake_arm(2.0)["curves"]["train_loss"]
    evidence = judge_small_rate(fig2)
    assert outcome(evidence) == SHOWN
    along = [q for q in evidence.quantities if "along the curve" in q.name]
    assert [(q.high < 0, q.answer, q.seen) for q in along] == [(True, None, "")] * 2


def test_the_mean_along_the_curve_is_the_area_over_the_length():
    arm = fake_arm(0.2)
    arm["curves"] |= {"grads_over_n": [0.0, 1.0, 4.0], "train_loss": [[2.0, 1.0, 0.0]] * 3}
    assert comparing.ALONG.values(arm) == [pytest.approx((1.5 + 1.5) / 4)] * 3


# ---- C3 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fine():
    """C3's study and Figure 3 with two evaluations an epoch, 31 after the first quarter; errors vary as losses do."""
    rough, smooth = fake_arm(0.4, wiggle=0.1, spread=0.2, per_epoch=2), fake_arm(0.2, per_epoch=2)
    for arm in (rough, smooth):
        arm["curves"]["test_accuracy"] = [[1 - loss / 10 for loss in curve] for curve in arm["curves"]["train_loss"]]
    keys = {"batch-32": 0.1, "batch-128": 0.1, "resnet20": 0.5}
    experiments = {
        key: fake_experiment(copy.deepcopy({f"SPIDER-SFO, α={lr}": rough, f"SNGD, α={lr}": smooth}))
        for key, lr in keys.items()
    }
    resnet = experiments.pop("resnet20")
    return fake_figure("variation", experiments), fake_figure("fig3", {"resnet20": resnet})


def test_c3_flips_with_the_variation(fine):
    evidence = judge_variation(*fine)
    assert outcome(evidence) == SHOWN
    assert tally(evidence) == (12, 12, 0)
    assert count(evidence, "batch-32: evaluations at which the training loss rose, SNGD, α=0.1") == "0 of 90"
    for figure in fine:
        for experiment in figure["experiments"].values():
            (spider, rough), (sngd, smooth) = experiment["arms"].items()
            experiment["arms"] = {spider: smooth, sngd: rough}
    evidence = judge_variation(*fine)
    assert outcome(evidence) == CONTRADICTED
    assert tally(evidence) == (12, 0, 12)


def test_equal_spread_across_seeds_is_open(fine):
    for experiment in fine[0]["experiments"].values():
        arm = experiment["arms"][SPIDER]
        for key, curves in arm["curves"].items():
            if key != "grads_over_n":
                middle = [values[0] for values in zip(*curves, strict=True)]
                arm["curves"][key] = [[y + 0.002 * (k - 1) for y in middle] for k in range(len(SEEDS))]
    evidence = judge_variation(*fine)
    assert outcome(evidence) == OPEN
    assert {name.split(" of the ")[0] for name in failures(evidence)} == {
        "batch-32: deviation",
        "batch-128: deviation",
    }


def test_too_few_evaluations_decide_nothing(fig2, fig3):
    """16 evaluations after the first quarter, however clear the difference is."""
    assert outcome(judge_variation(fig2, fig3)) == NOT_TESTED


def test_an_experiment_with_too_few_evaluations_is_left_out(fine):
    for arm in fine[1]["experiments"]["resnet20"]["arms"].values():
        arm["curves"] = {key: values[::10] if key == "grads_over_n" else [v[::10] for v in values]
                         for key, values in arm["curves"].items()}  # fmt: skip
    evidence = judge_variation(*fine)
    assert tally(evidence) == (8, 8, 0)
    assert not any("resnet20" in q.name for q in evidence.quantities)


def test_figure_3_alone_is_judged_if_it_has_evaluations_enough(fine):
    fine[0]["experiments"].clear()
    evidence = judge_variation(*fine)
    assert tally(evidence) == (4, 4, 0)
    assert all("α=0.5" in q.name for q in evidence.quantities)


def test_the_interval_across_seeds_is_fishers(fine):
    (found, *_) = (q for q in judge_variation(*fine).quantities if "across seeds" in q.name)
    assert found.value / found.low == pytest.approx(math.sqrt(39.0))  # F of (2, 2) degrees of freedom, 97.5 %
    assert found.high / found.value == pytest.approx(math.sqrt(39.0))
    assert found.seen_from == pytest.approx(math.sqrt(39.0 / 0.25))  # 20 %: P(F < x) = x/(1 + x)


@given(st.floats(-3, 3), st.floats(-3, 3), st.lists(st.floats(0.1, 5), min_size=3, max_size=9))
def test_a_straight_line_has_no_variation(slope, height, gaps):
    x = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    assert variation._deviation_from_line(x, [slope * t + height for t in x]) == pytest.approx(0, abs=1e-9)


def test_variation_of_noise_is_its_deviation():
    y = [0.3 * math.sin(12.9898 * i * i) for i in range(4000)]  # as good as independent, of deviation 0.3/√2
    assert variation._deviation_from_line(list(range(4000)), y) == pytest.approx(0.3 / math.sqrt(2), rel=0.05)


def test_a_diverging_smooth_curve_is_not_smooth(fine):
    for experiment in fine[0]["experiments"].values():
        diverge(experiment["arms"][SNGD], 0)
    evidence = judge_variation(*fine)
    assert outcome(evidence) == CONTRADICTED
    assert tally(evidence) == (12, 4, 8)


@pytest.mark.parametrize(("seeds", "expected"), [((0,), SHOWN), ((0, 1), OPEN), (SEEDS, SHOWN)])
def test_rough_curves_that_diverge(fine, seeds, expected):
    """With two of three diverged there is no deviation across seeds, and not all have diverged."""
    diverge(fine[0]["experiments"]["batch-32"]["arms"][SPIDER], *seeds)
    assert outcome(judge_variation(*fine)) == expected


# ---- C4 ------------------------------------------------------------------------------------------------------


def test_c4_flips_with_the_stages(fig3):
    evidence = judge_stages(fig3)
    assert outcome(evidence) == SHOWN
    assert tally(evidence)[:2] == (16, 16)
    arms = fig3["experiments"]["resnet20"]["arms"]
    arms[V2] = arms["SNGD, α=0.1"]
    assert outcome(judge_stages(fig3)) == OPEN
    assert tally(judge_stages(fig3)) == (16, 14, 0)
    arms[V2] = fake_arm(0.55)  # between SNGD's
    assert outcome(judge_stages(fig3)) == CONTRADICTED
    assert tally(judge_stages(fig3)) == (16, 14, 2)


def test_every_network_counts(fig3):
    fig3["experiments"]["resnet56"] = copy.deepcopy(fig3["experiments"]["resnet20"])
    assert tally(judge_stages(fig3))[:2] == (32, 32)
    fig3["experiments"]["resnet56"]["arms"][V1] = fake_arm(2.0)
    assert outcome(judge_stages(fig3)) == CONTRADICTED


def test_what_others_reach_stands_beside_the_papers_own_setting(fig3):
    experiment = fig3["experiments"]["resnet20"]
    assert not any("elsewhere" in q.name for q in judge_stages(fig3).quantities)
    fig3["experiments"]["resnet20"] = {**experiment, "batch_size": 128, "epochs": 160}
    (known,) = (q for q in judge_stages(fig3).quantities if "elsewhere" in q.name)
    assert known.name.startswith(f"resnet20: test accuracy (%) of the best, {V1} (momentum SGD elsewhere: 91.25, ")
    assert known.value == pytest.approx(98.1)
    assert known.answer is None


# ---- C5 ------------------------------------------------------------------------------------------------------


def test_c5_is_equality_until_the_milestone(fig3):
    evidence = judge_until_milestone(fig3)
    assert outcome(evidence) == SHOWN
    assert [q.measured for q in evidence.quantities] == ["30 of 30", "0 of 30"]
    assert "first milestone, 10 #grad/n" in evidence.quantities[0].name


@pytest.mark.parametrize("key", ["train_loss", "test_accuracy"])
@pytest.mark.parametrize(("place", "expected"), [(0, SHOWN), (10, CONTRADICTED), (11, SHOWN)])
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
    assert outcome(evidence) == SHOWN
    assert any(q.name.endswith("SNGM − S-SNGD") and q.high < 0 and q.answer is None for q in evidence.quantities)
    arms = fig4["experiments"]["large-batch"]["arms"]
    arms["S-SNGD"]["final"]["test_accuracy"] = arms["S-SGD"]["final"]["test_accuracy"]
    assert outcome(judge_large_batch(fig4)) == OPEN
    arms["S-SNGD"] = fake_arm(0.9)
    assert outcome(judge_large_batch(fig4)) == CONTRADICTED


@pytest.mark.parametrize(("label", "expected"), [("S-SGD", OPEN), ("S-SNGD", SHOWN), ("SNGM", SHOWN)])
def test_a_competitor_tuned_to_the_edge_is_not_beaten_outright(fig4, label, expected):
    fig4["experiments"]["large-batch"]["tuning"]["at_edge"] = [label]
    evidence = judge_large_batch(fig4)
    assert outcome(evidence) == expected
    note = f"large-batch: the tuned α of {label} is at the edge of the grid; a better one may lie outside"
    assert note in evidence.departures


def test_an_untuned_comparison_is_not_what_the_paper_claims(fig4):
    fig4["experiments"]["large-batch"]["tuning"] = None
    assert outcome(judge_large_batch(fig4)) == OPEN


# ---- what is not there ---------------------------------------------------------------------------------------


def test_only_what_was_run_is_judged(fig2, fig3, fig4):
    del fig2["experiments"]["batch-32"]
    assert tally(judge_large_rate(fig2))[:2] == (4, 4)
    del fig2["experiments"]["batch-128"]["arms"][SLOW_SPIDER]
    assert tally(judge_large_rate(fig2))[:2] == (2, 2)
    assert outcome(judge_small_rate(fig2)) == NOT_TESTED
    del fig3["experiments"]["resnet20"]["arms"][V2]
    assert tally(judge_stages(fig3))[:2] == (8, 8)
    assert outcome(judge_until_milestone(fig3)) == NOT_TESTED
    del fig4["experiments"]["large-batch"]["arms"]["S-SGD"]
    assert outcome(judge_large_batch(fig4)) == NOT_TESTED
    for figure in (fig2, fig3):
        figure["experiments"] = {}
    assert outcome(judge_variation(fig2, fig3)) == NOT_TESTED
