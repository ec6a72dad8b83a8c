"""Tracking measures what it says, costs what it says, and changes nothing else about the run."""

import itertools
import json
from math import isclose

import pytest
import torch
from torch import nn

from sngd.problems import Problem
from sngd.problems.analytic import strict_saddle
from sngd.training import Interrupted, RunConfig, train
from sngd.training.tracking import CURVATURE_STEPS, DISTANCES, TRACKED

ALL = ",".join(TRACKED)


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def chancy():
    """Dropout, BatchNorm and augmentation: everything that a measurement could disturb."""
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    return Problem(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ELU(), nn.Dropout(0.3), nn.Linear(5, 2)),
        nn.functional.cross_entropy,
        (x, (x[:, 0] > 0).long()),
        augment=lambda inputs, generator: inputs + 0.1 * torch.randn(inputs.shape, generator=generator),
    )


@pytest.mark.slow
def test_a_tracked_run_is_the_same_run(tmp_path):
    config = RunConfig("chancy", "s-sngd", batch_size=32, epochs=3, output="random", threads=1)
    for name, track in (("plain", None), ("tracked", ALL)):
        train(RunConfig(**{**config.to_json(), "track": track}), tmp_path / name, problem=chancy)
    weights = [torch.load(tmp_path / n / "checkpoint.pt", weights_only=True)["model"] for n in ("plain", "tracked")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    plain, tracked = rows(tmp_path / "plain"), rows(tmp_path / "tracked")
    assert [{k: row[k] for k in plain[0]} for row in tracked[:-1]] == plain[:-1]
    assert all(row["noise_variance"] > 0 and row["smoothness_along"] > 0 for row in tracked[:-1])
    assert all(row["hessian_max"] > row["hessian_min"] for row in tracked[:-1])
    assert tracked[-1]["iterate"] == "random"  # it is no point of the curve
    assert "hessian_max" not in tracked[-1]


def test_it_resumes_with_the_same_measurements(tmp_path):
    config = RunConfig("chancy", "sngd", batch_size=32, epochs=3, track="noise,smoothness", threads=1)
    train(config, tmp_path / "whole", problem=chancy)
    steps = itertools.count(1)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "cut", problem=chancy, should_stop=lambda: next(steps) == 13)
    train(config, tmp_path / "cut", problem=chancy, resume=True)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_known_constants_are_measured(tmp_path):
    saddle = strict_saddle(10, L=2.0, condition=5.0, sigma=0.3, n=800, dtype=torch.float64)
    config = RunConfig("saddle", "sngd", lr=0.05, batch_size=16, epochs=1, eval_every=0.5, track=ALL)
    train(config, tmp_path, problem=lambda: saddle.problem)
    for row in rows(tmp_path):
        assert isclose(row["noise_variance"], 0.3**2, rel_tol=1e-6)  # all samples were evaluated
        assert row["smoothness_along"] <= 2.0 * (1 + 1e-9)
        assert row["smoothness_off"] <= 2.0 * (1 + 1e-9)
        assert isclose(row["hessian_max"], 2.0, rel_tol=1e-6)
        assert row["hessian_min"] >= -0.4 * (1 + 1e-9)
    assert isclose(rows(tmp_path)[0]["hessian_min"], -0.4, rel_tol=1e-5)  # it starts beside the saddle


@pytest.mark.parametrize(
    ("track", "cost"),
    [
        ("noise", lambda n, _: n),
        ("smoothness", lambda n, _: n * (1 + len(DISTANCES) * 3)),
        ("curvature", lambda _, d: 2 * 512 * min(CURVATURE_STEPS, d)),
    ],
)
def test_the_cost_is_counted_apart_from_the_budget(tmp_path, track, cost):
    saddle = strict_saddle(10, n=800)
    config = RunConfig("saddle", "sngd", batch_size=80, epochs=1, eval_every=0.5, track=track)
    row = train(config, tmp_path, problem=lambda: saddle.problem)
    assert row["oracle_calls"] == 800
    assert [r["tracking_calls"] for r in rows(tmp_path)] == pytest.approx(
        [k * cost(800, 10) for k in (1, 2, 3)], rel=0.5 if track == "curvature" else 0
    )


def test_where_there_is_no_direction_the_rest_is_measured(tmp_path):
    flat = Problem(lambda: nn.Linear(3, 1), lambda outputs, _: 0 * outputs.mean(), (torch.ones(50, 3), torch.zeros(50)))
    row = train(RunConfig("flat", "sngd", batch_size=5, epochs=1, track=ALL), tmp_path, problem=lambda: flat)
    assert "smoothness_along" not in row
    assert row["hessian_max"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kappa"), [("signum", 10**0.5), ("sngd-layer", 10**0.5), ("nsgd-momentum", None), ("sgd", None)]
)
def test_it_is_in_the_norm_of_the_methods_steps(tmp_path, method, kappa):
    """A vector of ten weights: for signs ‖g‖* = Σ|g_i|, for a layer √10 ‖g‖₂; for ‖·‖₂ nothing is added."""
    saddle = strict_saddle(10, L=2.0, condition=5.0, sigma=0.3, n=800, dtype=torch.float64)
    config = RunConfig("saddle", method, lr=0.01, batch_size=16, epochs=0.2, eval_every=0.1, track="smoothness,noise")
    train(config, tmp_path, problem=lambda: saddle.problem)
    for row in rows(tmp_path):
        assert isclose(row["noise_variance"], 0.3**2, rel_tol=1e-6)
        if kappa is None:
            assert not {"dual_grad_norm", "noise_error"} & row.keys()
            continue
        assert row["grad_norm"] < row["dual_grad_norm"] <= kappa * row["grad_norm"] * (1 + 1e-9)
        assert isclose(row["smoothness_grad_norm"], row["dual_grad_norm"], rel_tol=1e-6)
        assert row["noise_error_low"] < row["noise_error"] < kappa * 0.3 / 16**0.5
        assert row["smoothness_along"] <= kappa**2 * 2.0 * (1 + 1e-9)
        if method == "sngd-layer":
            assert isclose(row["dual_grad_norm"], kappa * row["grad_norm"], rel_tol=1e-6)
