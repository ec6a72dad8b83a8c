"""Claim C7, scaling: oracle calls against the target, by a vectorised walk that is held equal to the library."""

import json
import math
from itertools import accumulate, islice

import numpy as np
import pytest
import torch
from ink import ink

from sngd.estimators.minibatch import MiniBatch
from sngd.estimators.spider import Spider
from sngd.optim.sngd import SNGD
from sngd.optim.stagewise import StagewiseLR
from sngd.paper.closed_form import scaling

DIM, OMEGA = scaling.DIM, scaling.OMEGA


class Hard(torch.nn.Module):
    """f(w; A, B) of the module's docstring, by its value; autograd does the rest."""

    def __init__(self, start, slope):
        super().__init__()
        self.w, self.slope = torch.nn.Parameter(torch.tensor(start)), slope

    def forward(self, samples):
        a, b = samples.unbind(1)
        value = self.slope**2 / scaling.L * ((1 + (scaling.L * self.w / self.slope).square().sum()).sqrt() - 1)
        waves = a * (OMEGA * self.w).sin() - b * (OMEGA * self.w).cos()
        return value + scaling.SIGMA / (OMEGA * DIM**0.5) * waves.sum(1).mean()


@pytest.mark.parametrize("method", scaling.METHODS)
def test_the_vectorised_walk_equals_the_library(method):
    target, seeds, steps = 0.5, 2, 60
    plan, objective = scaling.planned(method, target), scaling.hard(target)
    rng, batches = np.random.default_rng(0), []

    def draw(batch_size):
        batches.append(rng.standard_normal((seeds, batch_size, 2, DIM)))
        return batches[-1].mean(1).swapaxes(0, 1)

    start = np.tile(objective.start, (seeds, 1))
    walked = list(islice(scaling.walk(plan, objective, start, draw), steps))
    assert len(walked) == steps
    for seed in range(seeds):
        model = Hard(objective.start, 2 * target)
        if method == "spider-sfo":
            sizes = {key: int(plan.options[key]) for key in ("anchor_batch_size", "period")}
            assert sizes["period"] > 1
            estimator = Spider(model, batch_size=plan.batch_size, **sizes)
        else:
            estimator = MiniBatch(model, plan.batch_size)
        if method == "sgd":
            optimizer = torch.optim.SGD([model.w], lr=plan.lr)
        else:
            optimizer = SNGD([model.w], lr=plan.lr, max_scale=plan.options.get("max_scale", math.inf))
        scheduler = StagewiseLR(optimizer, plan.stage_plan)
        for t, point in enumerate(walked):
            np.testing.assert_allclose(point.w[seed], model.w.detach(), rtol=1e-9, atol=1e-9)
            assert point.weight == plan.stage_plan.iterate_weight(t)
            estimator.estimate(model, torch.tensor(batches[t][seed]))
            optimizer.step()
            scheduler.step()
            assert point.calls == estimator.oracle_calls


def test_a_planned_run_costs_what_the_planner_says():
    for method in scaling.METHODS:
        plan, objective = scaling.planned(method, 0.5), scaling.hard(0.5)
        walked = scaling.walk(plan, objective, objective.start[None], lambda _size: np.zeros((2, 1, DIM)))
        *_, last = islice(walked, plan.steps)
        assert last.calls == plan.oracle_calls


@pytest.mark.parametrize("w", [np.zeros((1, DIM)), np.array([[0.3, -2.0, 11.0, 0.1]])])
def test_the_noise_has_variance_sigma_squared_everywhere(w):
    """It is linear in the independent unit normals A and B: the squares of the responses to each add up."""
    units = np.eye(2 * DIM).reshape(-1, 2, 1, DIM)
    assert sum((scaling._noise(w, unit) ** 2).sum() for unit in units) == pytest.approx(scaling.SIGMA**2)


def test_the_samples_are_two_L_smooth_in_mean_square():
    rng = np.random.default_rng(0)
    for name in scaling.OBJECTIVES:
        gradient = scaling.OBJECTIVES[name](0.2).gradient
        largest = 0.0
        for scale in (1e-3, 1, 10):
            u, w = scale * rng.standard_normal((2, 200, DIM))
            units = np.eye(2 * DIM)[:, None].repeat(200, 1).reshape(-1, 200, 2, DIM).swapaxes(1, 2)
            noise = sum(((scaling._noise(u, e) - scaling._noise(w, e)) ** 2).sum(1) for e in units)
            exact, distances = ((gradient(u) - gradient(w)) ** 2).sum(1), ((u - w) ** 2).sum(1)
            assert (exact <= scaling.L**2 * distances * (1 + 1e-9)).all()
            largest = max(largest, ((exact + noise) / distances).max())
        assert 2 < largest <= (2 * scaling.L) ** 2 * (1 + 1e-9)


@pytest.mark.parametrize("name", scaling.OBJECTIVES)
@pytest.mark.parametrize("target", [0.05, 0.4])
def test_the_gap_is_delta(name, target):
    """F(w_0) − F(0) as the integral of the gradient along the straight way; F is least at 0."""
    objective = scaling.OBJECTIVES[name](target)
    shares = np.linspace(0, 1, 100_001)[:, None]
    slopes = objective.gradient(shares * objective.start) @ objective.start
    assert np.trapezoid(slopes, shares[:, 0]) == pytest.approx(scaling.GAP, rel=1e-6)
    assert np.abs(objective.gradient(np.zeros((1, DIM)))).max() == 0


@pytest.mark.parametrize("method", ["s-sngd:harmonic", "s-sngd:geometric"])
@pytest.mark.parametrize("target", [0.1, 0.28])
def test_no_stage_begins_above_the_first(method, target):
    """So that Δ is a valid δ for Theorem 3; on the hard objective, where F grows with the distance from 0."""
    plan, objective = scaling.planned(method, target), scaling.hard(target)
    rng = np.random.default_rng(0)

    def draw(batch_size):
        return rng.standard_normal((2, 20, DIM)) / math.sqrt(batch_size)

    walked = islice(scaling.walk(plan, objective, np.tile(objective.start, (20, 1)), draw), plan.steps)
    starts = {0, *accumulate(stage.steps for stage in plan.stages)}
    distances = [np.linalg.norm(point.w, axis=1).max() for t, point in enumerate(walked) if t in starts]
    assert len(distances) == len(plan.stages)
    assert max(distances) == pytest.approx(np.linalg.norm(objective.start))


def test_the_hard_objectives_slope_is_twice_the_target():
    gradient = scaling.hard(0.1).gradient(np.array([[1e6, 0, 0, 0], [1e-6, 0, 0, 0]]))
    assert gradient[:, 0].tolist() == pytest.approx([0.2, 1e-6 * scaling.L])


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scaling.SIZES, "quick", scaling.Size(4, (0.2, 0.14, 0.1)))
        return scaling.measure("quick")


@pytest.mark.slow
def test_slopes_on_the_hard_objective_are_theorys(measured):
    result = scaling.summary(measured)["hard"]
    for method in ("sngd", "s-sngd:harmonic", "sgd", "spider-sfo"):
        assert result[method]["agrees"]
        assert result[method]["low"] <= result[method]["slope"] <= result[method]["high"]
    assert not result["s-sngd:geometric"]["agrees"]  # it arrives before its long last stage


@pytest.mark.slow
def test_sgd_saves_a_power_on_the_quadratic(measured):
    result = scaling.summary(measured)["quadratic"]
    assert result["sgd"]["slope"] > -3.6
    assert not result["sgd"]["agrees"]
    assert result["sngd"]["agrees"]


@pytest.mark.slow
def test_no_run_needs_more_than_the_bound_allows(measured):
    for methods in measured["problems"].values():
        for entry in methods.values():
            for calls, planned in zip(entry["calls"], entry["planned"], strict=True):
                assert max(calls) <= planned


def test_slopes_are_those_of_a_power_law():
    targets = (0.4, 0.2, 0.1)
    calls = [[round(1e6 * scale * target**-3) for scale in (1, 2)] for target in targets]
    assert scaling._interval(targets, calls) == pytest.approx({"slope": -3, "low": -3, "high": -3}, abs=1e-4)
    calls[0][1] = None
    assert scaling._interval(targets, calls) == {"slope": None, "low": None, "high": None}


def test_a_run_that_does_not_arrive_is_none():
    plan = scaling.planned("sngd", 0.4)
    uphill = scaling.Objective(lambda w: np.ones_like(w), np.zeros(DIM))
    assert scaling._arrivals(plan, uphill, 2, np.random.default_rng(0)) == [None, None]


@pytest.mark.slow
def test_it_can_be_written_and_drawn_even_if_some_did_not_arrive(measured, tmp_path):
    json.dumps(measured, allow_nan=False)
    sgd = measured["problems"]["hard"]["sgd"]
    absent = {**sgd, "calls": [[None, *calls[1:]] for calls in sgd["calls"]], "slope": None, "low": None, "high": None}
    problems = {**measured["problems"], "hard": {**measured["problems"]["hard"], "sgd": absent}}
    partly = {**measured, "problems": problems}
    json.dumps(scaling.summary(partly), allow_nan=False)
    assert not scaling.summary(partly)["hard"]["sgd"]["agrees"]
    pictures = scaling.draw(partly, tmp_path)
    assert [path.name for path in pictures] == ["scaling.png", "scaling.svg"]
    assert ink(pictures[0]) > 0.05
    assert pictures[1].stat().st_size > 50_000


def test_an_unknown_profile_is_named():
    with pytest.raises(ValueError, match=r"^profile must be one of quick, small, got 'huge'$"):
        scaling.measure("huge")
