"""A run by itself whose model's passes are written out: it is a stack of one."""

from dataclasses import replace

import pytest
import torch
from outcomes import assert_equal_to_rounding, outcome
from torch import nn

from sngd.problems import Problem
from sngd.training import RunConfig, train
from sngd.training.run_state import RunState

CONFIG = RunConfig("plain", "sngd", batch_size=7, epochs=6, weight_decay=0.01, threads=1)


def is_written_out(problem, **settings):
    run = RunState(replace(CONFIG, **settings).resolved(problem.n), problem)
    run.write_out()
    return run.stack is not None


@pytest.mark.parametrize("method", ["sgd-momentum", "sngd", "adamw", "spider-sfo", "svrg", "muon"])
def test_it_ends_as_with_autograd(tmp_path, plain, monkeypatch, method):
    config = replace(CONFIG, method=method, output="random")
    assert is_written_out(plain(), method=method)
    train(config, tmp_path / "written", problem=plain)
    monkeypatch.setattr(RunState, "write_out", lambda _: None)
    train(config, tmp_path / "autograd", problem=plain)
    assert_equal_to_rounding(outcome(tmp_path / "autograd"), outcome(tmp_path / "written"))


def test_its_progress_has_the_loss_of_the_last_batch(plain):
    problem = plain()
    run = RunState(CONFIG.resolved(problem.n), problem)
    run.write_out()
    assert run.progress.loss is None
    weights = [param.detach().clone() for param in run.model.parameters()]
    indices = run.samples._pass[:7]
    run.step()
    for param, old in zip(run.model.parameters(), weights, strict=True):
        param.data.copy_(old)
    assert run.progress.loss == pytest.approx(problem.mean_loss(run.model, problem.chosen(indices)).item())


def test_some_runs_step_one_operation_after_the_other(plain):
    assert not is_written_out(plain(), precision="bfloat16")
    assert not is_written_out(plain(), method="natasha2", epochs=60, weight_decay=0)
    assert not is_written_out(plain(), track="curvature")


def changed(change):
    """A problem whose model has been changed so after it was built."""

    def model():
        built = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
        change(built)
        return built

    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    return Problem(model, nn.functional.cross_entropy, (inputs, (inputs[:, 0] > 0).long()))


def ignore(*_):
    return None


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.register_forward_hook(ignore),
        lambda model: model[1].register_forward_pre_hook(ignore),
        lambda model: model[0].register_full_backward_hook(ignore),
        lambda model: model[0].weight.register_hook(ignore),
        lambda model: model[2].bias.register_post_accumulate_grad_hook(ignore),
        lambda model: model[2].bias.requires_grad_(False),
        lambda model: nn.utils.parametrizations.weight_norm(model[0]),
    ],
)
def test_what_a_user_changed_in_the_model_is_not_passed_over(change):
    assert is_written_out(changed(ignore))
    assert not is_written_out(changed(change))
