"""bfloat16 products in training steps: what is rounded, and what stays as it was."""

import json
from dataclasses import replace

import pytest
import torch
from outcomes import assert_bitwise_equal, outcome

from sngd.problems import Problem
from sngd.training import Interrupted, RunConfig, train
from sngd.training.repeatable import without_tf32
from sngd.training.replicas.alike import reason_against
from sngd.training.run_folder import RunFolder
from sngd.training.run_state import RunState

CONFIG = RunConfig("digits", "sngd", lr=0.05, batch_size=16, epochs=3, threads=1, precision="bfloat16")


def digits():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 12, generator=generator)

    def model():
        return torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.ELU(), torch.nn.Linear(20, 4))

    return Problem(
        model, torch.nn.functional.cross_entropy, (x, x[:, :4].argmax(1)), test=(x[:40], x[:40, :4].argmax(1))
    )


def gradient(precision):
    run = RunState(replace(CONFIG, precision=precision).resolved(160), digits())
    batch = tuple(part[:16] for part in run.problem.train)
    value = run.loss_of(batch)
    assert value.dtype == torch.float32
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(run.model.parameters()))])


def test_the_gradient_is_rounded_and_no_more():
    exact, rounded = gradient("float32"), gradient("bfloat16")
    assert rounded.dtype == torch.float32
    off = float((rounded - exact).norm() / exact.norm())
    assert 1e-4 < off < 3e-2


def test_weights_and_evaluations_are_float32(tmp_path):
    train(CONFIG, tmp_path / "rounded", problem=digits)
    train(replace(CONFIG, precision="float32"), tmp_path / "exact", problem=digits)
    rounded, exact = (RunFolder(tmp_path / name).rows() for name in ("rounded", "exact"))
    for name in ("train_loss", "test_loss", "grad_norm"):
        assert rounded[0][name] == exact[0][name]
        assert rounded[-1][name] != exact[-1][name]
    assert rounded[-1]["train_loss"] < 0.8 * rounded[0]["train_loss"]
    weights = RunFolder(tmp_path / "rounded").load_checkpoint()["model"]
    assert {w.dtype for w in weights.values()} == {torch.float32}


@pytest.mark.parametrize("method", ["sngd", "spider-sfo", "svrg", "adamw"])
def test_a_run_goes_on_bit_for_bit(method, tmp_path):
    config = replace(CONFIG, method=method)
    train(config, tmp_path / "whole", problem=digits)
    steps = iter([False] * 4 + [True])
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", problem=digits, should_stop=lambda: next(steps))
    with pytest.raises(ValueError, match="cannot resume with other settings: precision is bfloat16, not float32"):
        train(replace(config, precision="float32"), tmp_path / "run", problem=digits, resume=True)
    train(config, tmp_path / "run", problem=digits, resume=True)
    assert_bitwise_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_a_run_from_before_the_setting_is_float32(tmp_path):
    config = replace(CONFIG, precision="float32")
    with pytest.raises(Interrupted):
        train(config, tmp_path, problem=digits, should_stop=lambda: True)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    assert stored.pop("precision") == "float32"
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="precision is float32, not bfloat16"):
        train(CONFIG, tmp_path, problem=digits, resume=True)
    train(config, tmp_path, problem=digits, resume=True)


def test_such_runs_are_trained_one_by_one():
    assert reason_against(replace(CONFIG, precision="float32").resolved(160), digits()) is None
    assert reason_against(CONFIG.resolved(160), digits()) == "its products are rounded to bfloat16"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'tf32'"):
        replace(CONFIG, precision="tf32").resolved()


def test_float32_is_not_tf32_inside_and_all_is_as_before_then():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = True
        with without_tf32():
            assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, True)
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.mark.cuda
def test_a_run_on_a_gpu_rounds_nothing_to_tf32(tmp_path):
    seen = []
    config = replace(CONFIG, precision="float32", device="cuda")
    train(
        config,
        tmp_path,
        problem=digits,
        on_progress=lambda _: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)),
    )
    assert set(seen) == {(False, False)}
