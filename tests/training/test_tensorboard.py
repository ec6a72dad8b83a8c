"""Event files hold every row of metrics once, whatever happened to the run."""

import builtins
import re
from dataclasses import replace

import pytest

from sngd.training import Interrupted, RunConfig, train
from sngd.training.run_folder import RunFolder
from sngd.training.tensorboard import scalars

CONFIG = RunConfig("tiny", "sngd", lr=0.05, batch_size=7, epochs=4, eval_every=1, output="random", threads=1)


def events(folder):
    """What a TensorBoard that opens the folder shows: {tag: [(step, value), …]}."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(folder):
    points = {}
    for row in RunFolder(folder).rows():
        for tag, number in scalars(row).items():
            points.setdefault(tag, []).append((row["oracle_calls"], pytest.approx(number)))
    return points


def test_every_row_is_there_with_oracle_calls_as_step(tmp_path, tiny):
    row = train(CONFIG, tmp_path, problem=tiny, tensorboard=True)
    found = events(tmp_path)
    assert found == expected(tmp_path)
    assert [step for step, _ in found["train/loss"]] == [0, 63, 126, 182, 238]
    assert {"test/accuracy", "train/grad_norm", "optimizer/lr", "cost/grads_over_n", "cost/seconds"} <= found.keys()
    assert found["random_iterate/train_loss"] == [(238, pytest.approx(row["train_loss"]))]


def test_a_resumed_run_has_no_point_twice(tmp_path, tiny):
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path, problem=tiny, tensorboard=True, should_stop=lambda: next(calls) == 20)
    RunFolder(tmp_path).append(RunFolder(tmp_path).rows()[-1] | {"oracle_calls": 150})  # no checkpoint knows it
    train(CONFIG, tmp_path, problem=tiny, resume=True, tensorboard=True)
    assert events(tmp_path) == expected(tmp_path)
    assert sum(path.stat().st_size > 0 for path in (tmp_path / "tensorboard").iterdir()) == 1


def test_a_finished_run_gets_them_afterwards(tmp_path, tiny):
    train(CONFIG, tmp_path, problem=tiny)
    assert not (tmp_path / "tensorboard").exists()
    for _ in range(2):
        train(CONFIG, tmp_path, resume=True, tensorboard=True)
        assert events(tmp_path) == expected(tmp_path)


def test_a_tensorboard_that_watches_forgets_the_old_points(tmp_path, tiny):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(replace(CONFIG, epochs=2), tmp_path, problem=tiny, tensorboard=True)
    watching = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    train(CONFIG, tmp_path, problem=tiny, overwrite=True, tensorboard=True)
    watched = [(event.step, event.value) for event in watching.Reload().Scalars("train/loss")]
    assert watched == expected(tmp_path)["train/loss"]


def test_numbers_that_are_not_finite_and_words_are_left_out():
    row = {
        "oracle_calls": 7,
        "train_loss": float("nan"),
        "test_loss": None,
        "lr": 0.1,
        "final": True,
        "iterate": "last",
    }
    assert scalars(row | {"noise_variance_low": 2}) == {"optimizer/lr": 0.1, "noise/variance_low": 2.0}


def test_without_the_package_one_line_says_so_and_nothing_is_thrown_away(tmp_path, tiny, monkeypatch):
    train(CONFIG, tmp_path, problem=tiny)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "torch.utils.tensorboard":
            raise ImportError("No module named 'tensorboard'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    message = "tensorboard: event files need the package tensorboard: pip install 'sngd[tensorboard]'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        train(CONFIG, tmp_path, problem=tiny, overwrite=True, tensorboard=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
