"""The judges of C11 to C15, which no figure of the paper shows: each verdict flips with what was measured."""

import copy
import math
from dataclasses import fields

import numpy as np
import pytest

from paper.trained.test_paper_judges import (
    diverge,
    fake_arm,
    fake_experiment,
    fake_figure,
    outcome,
    quantity,
    required,
    tally,
)
from sngd.paper.trained.counting import BY_STEP, recount
from sngd.paper.trained.counting import EXPERIMENTS as COUNTING
from sngd.paper.trained.large_batches import EXPERIMENTS as LARGE
from sngd.paper.trained.large_batches import judge_growth, judge_large_batches, judge_sharpness
from sngd.paper.trained.reduced_variance import judge_reduced_variance
from sngd.paper.trained.spider_sizes import EXPERIMENTS as SIZES
from sngd.paper.trained.spider_sizes import judge_sizes
from sngd.paper.verdicts import CONTRADICTED, NOT_TESTED, OPEN, SHOWN
from sngd.training.methods import find_method, parameter_values

# ---- counting to the end of the axis -------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["quick", "small"])
def test_runs_counted_by_step_end_together(profile):
    for experiment in COUNTING[profile]:
        n, b = 10_000, experiment.batch_size
        values = parameter_values(find_method("spider-sfo"), {}, b, n)
        (longer,) = {arm.epochs for arm in experiment.arms if arm.method == "spider-sfo"}
        arms = {"SPIDER": fake_arm(0.1, epochs=round(longer)), "SNGD": fake_arm(0.1, epochs=round(experiment.epochs))}
        arms["SPIDER"]["params"] = values
        measured = fake_figure("counting", {"one": {**fake_experiment(arms, batch_size=b), "n": n}})
        recounted = recount(measured, BY_STEP)["experiments"]["one"]
        assert recounted["epochs"] == pytest.approx(experiment.epochs, rel=0.02)


# ---- C11: other anchors and periods --------------------------------------------------------------------------


def test_the_sizes_are_those_announced():
    counts = [len(experiment.arms) - 1 for experiment in SIZES["small"]]
    assert counts == [2 * 9, 2 * 8]
    for experiment in SIZES["small"]:
        for _, method, _, _, _, params, _ in map(_fields, experiment.arms[1:]):
            size = dict(params)
            assert method == "spider-sfo"
            assert size["period"] in {
                max(1, size["anchor_batch_size"] // (k * experiment.batch_size)) for k in (4, 2, 1)
            }


def _fields(arm):
    return (arm.label, arm.method, arm.lr, arm.plan, arm.beyond, arm.params, arm.epochs)


@pytest.fixture
def sizes():
    spiders = {
        f"SPIDER-SFO, B={B}, M=2, α={lr}": fake_arm(0.4, per_epoch=2) for B in (256, 1024) for lr in (0.1, 0.001)
    }
    arms = {"SNGD, α=0.1": fake_arm(0.2, per_epoch=2), **spiders}
    return fake_figure("spider-sizes", {"batch-32": fake_experiment(arms)})


def test_c11_flips_with_one_size(sizes):
    evidence = judge_sizes(sizes)
    assert (outcome(evidence), tally(evidence)) == (SHOWN, (8, 8, 0))
    rough = [q.name for q in evidence.quantities if "roughness" in q.name]
    assert len(rough) == 2 * 2  # of two curves, where α is SNGD's
    assert not any(q.answer for q in evidence.quantities if q.name in rough)
    sizes["experiments"]["batch-32"]["arms"]["SPIDER-SFO, B=256, M=2, α=0.001"] = fake_arm(0.1, per_epoch=2)
    assert outcome(judge_sizes(sizes)) == CONTRADICTED


# ---- C12 to C14: large batches -------------------------------------------------------------------------------


@pytest.fixture
def large():
    """S-SGD's loss is 1.5 times S-SNGD's at batch size 128 and 4.5 times at 8192; its sharpness is twice as large."""
    experiments, sharpness = {}, {}
    for b in (128, 512, 2048, 8192):
        factor = 1.5 * 3 ** (math.log2(b / 128) / 6)
        arms = {"S-SGD": fake_arm(0.1 * factor), "S-SNGD": fake_arm(0.1), "SNGM": fake_arm(0.1)}
        arms["S-SGD with momentum"] = fake_arm(0.2)
        for place, arm in enumerate(arms.values()):
            arm["final"]["test_loss"] = [0.5 - 0.1 * place] * 3
        key = f"mnist-mlp-{b}"
        experiments[key] = fake_experiment(arms, "mnist-mlp", b)
        sharpness[key] = {
            label: {str(k): (2 if label == "S-SGD" else 1) * (10 + k) for k in range(3)} for label in arms
        }
    return fake_figure("large-batches", experiments) | {"sharpness": sharpness}


def test_c12_is_judged_at_large_batches_alone(large):
    evidence = judge_large_batches(large)
    assert (outcome(evidence), tally(evidence)) == (SHOWN, (4, 4, 0))
    assert quantity(evidence, "mnist-mlp-128: final training loss, S-SGD − S-SNGD").answer is None
    assert quantity(evidence, "mnist-mlp-8192: final test loss, S-SGD − S-SNGD").value == pytest.approx(0.1)
    assert quantity(evidence, "mnist-mlp-128: final training loss, S-SGD with momentum − SNGM").value > 0
    large["experiments"]["mnist-mlp-128"]["arms"]["S-SGD"] = fake_arm(0.01)
    assert outcome(judge_large_batches(large)) == SHOWN
    large["experiments"]["mnist-mlp-2048"]["arms"]["S-SGD"] = fake_arm(0.01)
    assert outcome(judge_large_batches(large)) == CONTRADICTED


def test_networks_that_are_not_trained_to_the_end_are_left_out_of_c12_and_c13(large):
    arms = large["experiments"]["mnist-mlp-8192"]["arms"]
    large["experiments"] = {"large-batch": fake_experiment(arms, "cifar10-resnet20", 4096)}
    assert outcome(judge_large_batches(large)) == outcome(judge_growth(large)) == NOT_TESTED


def test_c13_is_the_slope_of_the_ratio(large):
    (found,) = (q for q in judge_growth(large).quantities if q.answer)
    assert found.value == pytest.approx(math.log(3) / math.log(64), rel=0.01)
    assert found.answer == SHOWN
    ends = [large["experiments"][f"mnist-mlp-{b}"]["arms"] for b in (128, 8192)]
    ends[0]["S-SGD"], ends[1]["S-SGD"] = ends[1]["S-SGD"], ends[0]["S-SGD"]
    assert outcome(judge_growth(large)) == CONTRADICTED


def test_a_diverged_competitor_counts_as_the_worst_and_a_diverged_winner_against_the_claim(large):
    by_size = [large["experiments"][f"mnist-mlp-{b}"]["arms"] for b in (128, 2048, 8192)]
    diverge(by_size[2]["S-SGD"], 0)
    (found,) = (q for q in judge_growth(large).quantities if q.answer)
    assert found.answer == SHOWN
    assert found.high > found.low  # the seeds differ now
    diverge(by_size[1]["S-SNGD"], 1)
    (found,) = (q for q in judge_growth(large).quantities if q.answer)
    assert (found.answer, found.measured) == (OPEN, "1 of 3")  # both diverged
    by_size[2]["S-SGD"] = fake_arm(0.45)
    assert outcome(judge_growth(large)) == CONTRADICTED


def test_c13_says_how_differences_grow(large):
    evidence = judge_growth(large)
    found = quantity(
        evidence, "mnist-mlp: growth of final training loss, S-SGD − S-SNGD, with the logarithm of the batch size"
    )
    sizes = [large["experiments"][f"mnist-mlp-{b}"] for b in (128, 512, 2048, 8192)]
    slopes = []
    for seed in range(len(sizes[0]["arms"]["S-SGD"]["seeds"])):
        ours, theirs = ([e["arms"][label]["final"]["train_loss"][seed] for e in sizes] for label in ("S-SNGD", "S-SGD"))
        logs = np.log([e["batch_size"] for e in sizes])
        slopes.append(np.polyfit(logs, np.subtract(theirs, ours), 1)[0])
    assert found.value == pytest.approx(np.mean(slopes))
    assert (found.required, found.essential) == ("", False)


def test_c12_has_the_test_loss_of_every_pair(large):
    names = [q.name for q in judge_large_batches(large).quantities]
    losses = [name for name in names if "final training loss" in name]
    assert len(losses) > 4
    assert {name.replace("training", "test") for name in losses} <= set(names)


def test_c14_flips_with_the_sharpness(large):
    evidence = judge_sharpness(large)
    assert (outcome(evidence), tally(evidence)) == (SHOWN, (4, 4, 0))
    assert quantity(evidence, "mnist-mlp-128: sharpness at the end, S-SGD / S-SNGD").value == pytest.approx(2)
    assert quantity(evidence, "mnist-mlp-128: final training loss, S-SGD / S-SNGD").value == pytest.approx(
        1.5, rel=0.01
    )
    with_momentum = quantity(evidence, "mnist-mlp-128: sharpness at the end, SNGM / S-SNGD")
    assert (with_momentum.value, with_momentum.answer) == (pytest.approx(1), None)
    arms = large["sharpness"]["mnist-mlp-128"]
    arms["S-SGD"], arms["S-SNGD"] = arms["S-SNGD"], arms["S-SGD"]
    assert outcome(judge_sharpness(large)) == CONTRADICTED


def test_c14_leaves_an_experiment_to_the_seeds_that_replace_it(large):
    """Eight seeds left it open, so others were announced; judging twice doubles the rate of errors."""
    arms = large["experiments"]["mnist-mlp-8192"]["arms"]
    flatter, sharper = large["sharpness"]["mnist-mlp-8192"], {label: {"0": 1.0, "1": 9.0, "2": 1.0} for label in arms}
    large["experiments"]["large-batch"] = fake_experiment(arms, "cifar10-resnet8:10000", 256)
    large["sharpness"]["large-batch"] = sharper
    once = judge_sharpness(large)
    name = "sharpness at the end, S-SGD / S-SNGD"
    assert (outcome(once), tally(once), once.error_rate) == (OPEN, (5, 4, 0), 0.025)
    large["experiments"]["large-batch-again"] = fake_experiment(arms, "cifar10-resnet8:10000", 256)
    large["sharpness"]["large-batch-again"] = flatter
    twice = judge_sharpness(large)
    assert (outcome(twice), tally(twice), twice.error_rate) == (SHOWN, (5, 5, 0), 0.05)
    assert quantity(twice, f"large-batch-again: {name}").answer == SHOWN
    assert (quantity(twice, f"large-batch: {name}").value, quantity(twice, f"large-batch: {name}").answer) == (1, None)
    assert any("large-batch-again replace the 8 of large-batch" in departure for departure in twice.departures)
    assert "Both allow for 2 looks" in twice.test


def test_fashion_mnist_adds_comparisons_and_a_look(large):
    """C14's stated rate, of two looks, holds for the third too: see the announcement."""
    judges = (judge_large_batches, judge_growth, judge_sharpness)
    assert [judge(large).error_rate for judge in judges] == [0.025, 0.025, 0.025]
    for b in (128, 512, 2048, 8192):
        arms = large["experiments"][f"mnist-mlp-{b}"]["arms"]
        large["experiments"][f"fashion-mlp-{b}"] = fake_experiment(arms, "fashion-mlp", b)
        large["sharpness"][f"fashion-mlp-{b}"] = large["sharpness"][f"mnist-mlp-{b}"]
    found = [judge(large) for judge in judges]
    assert [tally(evidence) for evidence in found] == [(8, 8, 0), (2, 2, 0), (8, 8, 0)]
    assert [evidence.error_rate for evidence in found] == [0.05, 0.05, 0.025]
    assert all("fashion-mlp's runs were added" in " ".join(evidence.departures) for evidence in found)


def test_the_seeds_that_replace_others_are_those_announced():
    first, again = LARGE["small"][-2:]
    assert again.seed_numbers == range(200, 221)
    assert not {*first.seed_numbers} & {*again.seed_numbers}
    assert [(arm.label, arm.lr) for arm in again.arms] == [("S-SGD", 1), ("S-SNGD", 1)]
    kept = {"name", "arms", "grid", "seeds", "first_seed"}
    assert {f.name for f in fields(first) if getattr(first, f.name) != getattr(again, f.name)} == kept


def test_a_seed_without_sharpness_is_left_out(large):
    large["sharpness"]["mnist-mlp-128"]["S-SNGD"]["0"] = None
    assert set(required(judge_sharpness(large)).values()) == {SHOWN}
    large["sharpness"]["mnist-mlp-128"]["S-SGD"] = {"1": 20.0}
    evidence = judge_sharpness(large)
    assert (outcome(evidence), tally(evidence)) == (OPEN, (4, 3, 0))
    name = "mnist-mlp-128: sharpness at the end, S-SGD / S-SNGD: seeds of which both are known"
    assert (quantity(evidence, name).value, quantity(evidence, name).answer) == (1, OPEN)
    large["sharpness"] = {}
    assert outcome(judge_sharpness(large)) == NOT_TESTED


# ---- C15: variance reduction ---------------------------------------------------------------------------------


def test_c15_flips_with_one_competitor():
    arms = {"SPIDER-SFO": fake_arm(0.1), "SVRG": fake_arm(0.2), "SCSG": fake_arm(0.3), "Natasha2": fake_arm(0.4)}
    for arm in arms.values():
        arm["final"]["grad_norm"] = [value / 10 for value in arm["final"]["train_loss"]]
    measured = fake_figure("reduced-variance", {"mnist-mlp": fake_experiment(arms)})
    evidence = judge_reduced_variance(measured)
    assert (outcome(evidence), tally(evidence)) == (SHOWN, (6, 6, 0))
    assert quantity(evidence, "mnist-mlp: final ‖∇F‖, SVRG − SPIDER-SFO").value > 0
    worse = copy.deepcopy(measured)
    worse["experiments"]["mnist-mlp"]["arms"]["SCSG"] = fake_arm(0.05)
    assert outcome(judge_reduced_variance(worse)) == CONTRADICTED
