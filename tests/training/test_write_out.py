"""A run by itself whose model's passes are written out: it is a stack of one."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from outcomes import assert_equal_to_rounding, outcome
from torch import nn

from sngd.problems import Problem
from sngd.problems.models import mlp
from sngd.training import METHODS, RunConfig, train
from sngd.training.run_state import RunState

CONFIG = RunConfig("plain", "sngd", batch_size=7, epochs=6, weight_decay=0.01, threads=1)


@pytest.fixture
def perceptron():
    """A function that loads a small problem of the package's own model, in double precision."""
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = Problem(partial(mlp, 6, 8, 3), nn.functional.cross_entropy, (inputs, inputs[:, :3].argmax(1)))
    torch.set_default_dtype(torch.float64)
    yield lambda: problem
    torch.set_default_dtype(torch.float32)


def is_written_out(problem, **settings):
    run = RunState(replace(CONFIG, **settings).resolved(problem.n), problem)
    run.write_out()
    return run.stack is not None


@pytest.mark.parametrize("method", ["sgd-momentum", "sngd", "adamw", "spider-sfo", "svrg", "muon"])
def test_it_ends_as_with_autograd(tmp_path, perceptron, monkeypatch, method):
    config = replace(CONFIG, method=method, output="random")
    assert is_written_out(perceptron(), method=method)
    train(config, tmp_path / "written", problem=perceptron)
    monkeypatch.setattr(RunState, "write_out", lambda _: None)
    train(config, tmp_path / "autograd", problem=perceptron)
    assert_equal_to_rounding(outcome(tmp_path / "autograd"), outcome(tmp_path / "written"))


def test_its_progress_has_the_loss_of_the_last_batch(perceptron):
    problem = perceptron()
    run = RunState(CONFIG.resolved(problem.n), problem)
    run.write_out()
    assert run.progress.loss is None
    weights = [param.detach().clone() for param in run.model.parameters()]
    indices = run.samples._pass[:7]
    run.step()
    for param, old in zip(run.model.parameters(), weights, strict=True):
        param.data.copy_(old)
    assert run.progress.loss == pytest.approx(problem.mean_loss(run.model, problem.chosen(indices)).item())


def test_some_runs_step_one_operation_after_the_other(perceptron, plain, monkeypatch):
    assert is_written_out(perceptron())
    assert not is_written_out(perceptron(), precision="bfloat16")
    assert not is_written_out(perceptron(), method="natasha2", epochs=60, weight_decay=0)
    assert not is_written_out(perceptron(), track="curvature")
    assert not is_written_out(replace(perceptron(), augment=lambda x, _: x))
    assert not is_written_out(plain())  # whose model is not the package's, so that a user may hold and change it
    for part in ("estimate", "step_rule"):
        mine = replace(METHODS["sngd"], **{part: getattr(METHODS["sngd"], part)._replace()})
        monkeypatch.setitem(METHODS, "mine", mine)
        assert not is_written_out(perceptron(), method="mine")
