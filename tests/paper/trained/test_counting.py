"""SPIDER's gradients counted in other ways: the same runs on another axis."""

import copy

import pytest

from sngd.cost import differences
from sngd.paper.trained.counting import COUNTINGS, recount, recount_calls

EVALUATIONS, ONCE, BY_STEP = COUNTINGS
EVALUATED = differences(1024, 32, 16)
PERIOD = 1024 + 15 * 64  # B = 1024, M = 16, b = 32
N = 992  # half a period


@pytest.mark.parametrize(
    ("calls", "once", "by_step"),
    [
        (0, 0, 0),
        (1024, 1024, 32),
        (1024 + 64, 1024 + 32, 64),
        (3 * PERIOD, 3 * (1024 + 15 * 32), 3 * 16 * 32),
        (512, 512, 16),  # half an anchor
    ],
)
def test_what_counts_of_so_many_evaluations(calls, once, by_step):
    counted = [recount_calls(calls, EVALUATED, way.of_period(EVALUATED, 32)) for way in COUNTINGS]
    assert counted == pytest.approx([calls, once, by_step])


def arm(costs, losses, params=None, diverged=()):
    accuracies = [[None if y is None else 1 - y / 10 for y in seed] for seed in losses]
    return {
        "method": "any", "lr": 0.1, "plan": "constant", "params": params or {}, "beyond": False,
        "seeds": list(range(len(losses))), "diverged": list(diverged),
        "final": {"train_loss": [seed[-1] for seed in losses], "test_accuracy": [seed[-1] for seed in accuracies]},
        "curves": {"grads_over_n": costs, "train_loss": losses, "test_accuracy": accuracies},
    }  # fmt: skip


@pytest.fixture
def measured():
    spider = arm([0.0, 2.0, 4.0], [[2.0, 1.0, 0.5]] * 2, {"anchor_batch_size": 1024, "period": 16})
    sngd = arm([0.0, 1.0, 2.0, 3.0, 4.0], [[2.0, 1.6, 1.0, 0.6, 0.4], [2.0, 1.5, None, None, None]], diverged=[1])
    experiment = {
        "title": "", "problem": "mnist-mlp", "n": N, "batch_size": 32, "epochs": 4.0, "weight_decay": 0.0,
        "departures": [], "arms": {"SPIDER": spider, "SNGD": sngd}, "tuning": None,
    }  # fmt: skip
    return {"figure": "fig2", "profile": "quick", "experiments": {"batch-32": experiment}}


def test_the_first_counting_is_that_of_the_runs(measured):
    assert recount(measured, EVALUATIONS) == measured


@pytest.mark.parametrize("way", [ONCE, BY_STEP])
def test_recounted_arms_end_at_one_budget(measured, way):
    before = copy.deepcopy(measured)
    after = recount(measured, way)["experiments"]["batch-32"]
    assert measured == before
    budget = {ONCE: 2 * (1024 + 15 * 32) / N, BY_STEP: 2 * 16 * 32 / N}[way]  # the run is two periods
    assert after["epochs"] == pytest.approx(budget)
    assert all(arm["curves"]["grads_over_n"][-1] == after["epochs"] for arm in after["arms"].values())
    assert after["arms"]["SPIDER"]["final"] == measured["experiments"]["batch-32"]["arms"]["SPIDER"]["final"]
    expected = {ONCE: 0.6 - 0.2 * (budget - 3), BY_STEP: 1.6 - 0.6 * (budget - 1)}[way]
    assert after["arms"]["SNGD"]["final"]["train_loss"] == [pytest.approx(expected), None]  # seed 1 diverged


def test_arms_that_all_diverged_are_recounted_too(measured):
    del measured["experiments"]["batch-32"]["arms"]["SPIDER"]
    assert recount(measured, BY_STEP) == measured
