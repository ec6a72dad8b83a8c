"""Killed with SIGKILL at any moment and resumed, a run ends bit for bit as if nothing had happened."""

import json
import multiprocessing
import random
import re
import time
from dataclasses import replace
from itertools import product

import pytest
import torch
from outcomes import assert_bitwise_equal, outcome

from sngd.training import METHODS, Interrupted, RunConfig, engine, train
from sngd.training.run_folder import BrokenRun, RunFolder

CONFIG = RunConfig(
    "tiny", "s-sngd", lr=0.05, batch_size=7, epochs=25, eval_every=0.5, output="random", weight_decay=0.01, threads=1
)
KILLS = 20


def _train(config, folder, problem):
    torch.set_num_threads(1)
    engine.CHECKPOINT_SECONDS = 0.01  # between evaluations too
    train(config, folder, problem=problem, resume=True)


def start(config, folder, problem):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sngd.training"])
    process = context.Process(target=_train, args=(config, folder, problem))
    process.start()
    return process


def wait_for_checkpoint(folder, process):
    while not (folder / "checkpoint.pt").exists():
        assert process.exitcode in (None, 0)
        time.sleep(0.001)
    return time.monotonic()


def kill_and_resume(config, folder, problem, kills):
    """Kill ``kills`` runs at random moments after their first checkpoint; each must end as the one left alone."""
    process = start(config, folder / "whole", problem)
    began = wait_for_checkpoint(folder / "whole", process)
    process.join()
    duration = time.monotonic() - began
    true = outcome(folder / "whole")

    chance, attempts = random.Random(0), 0
    while kills > 0:
        run = folder / f"attempt-{attempts}"
        attempts += 1
        assert attempts < 200
        process = start(config, run, problem)
        wait_for_checkpoint(run, process)
        time.sleep(chance.uniform(0, 0.8 * duration))
        process.kill()
        process.join()
        if RunFolder(run).load_checkpoint()["finished"]:  # the kill came too late to be one
            continue
        kills -= 1
        train(config, run, problem=problem, resume=True)
        assert_bitwise_equal(outcome(run), true)


@pytest.mark.slow
@pytest.mark.timeout(900)  # twenty kills and resumptions, on a machine that may be busy
def test_kill_at_random_moments(tmp_path, tiny):
    kill_and_resume(CONFIG, tmp_path, tiny, KILLS)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_kill_every_method(tmp_path, tiny, method):
    kill_and_resume(replace(CONFIG, method=method, weight_decay=0.0), tmp_path, tiny, kills=1)


class Killed(BaseException):
    """Stands in for the end of the process: nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "output"), list(product(METHODS, ["last", "random"])))
def test_every_method_resumes_from_between_any_two_writes(tmp_path, tiny, monkeypatch, method, output):
    """The two moments that matter, for every method: a row without its checkpoint, and a checkpoint in mid-pass."""
    decay = 0.0 if method == "natasha2" else 0.01  # which has none
    config = replace(CONFIG, method=method, output=output, epochs=5, eval_every=1, weight_decay=decay)
    resume_between_writes(config, tmp_path, tiny, monkeypatch)


def test_a_plan_that_sets_the_momentum_resumes(tmp_path, tiny, monkeypatch):
    config = replace(CONFIG, method="nsgd-momentum", plan="agnostic", epochs=5, eval_every=1)
    resume_between_writes(config, tmp_path, tiny, monkeypatch)


def resume_between_writes(config, tmp_path, tiny, monkeypatch):
    train(config, tmp_path / "whole", problem=tiny)
    true = outcome(tmp_path / "whole")

    save = RunFolder.save_checkpoint
    for fatal in (1, 3, 5, 8):
        folder, count = tmp_path / f"fatal-{fatal}", iter(range(100))

        def save_or_die(self, state, count=count, fatal=fatal):
            if next(count) == fatal:
                raise Killed
            save(self, state)

        monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)  # after every step
        monkeypatch.setattr(RunFolder, "save_checkpoint", save_or_die)
        with pytest.raises(Killed):
            train(config, folder, problem=tiny)
        monkeypatch.setattr(RunFolder, "save_checkpoint", save)
        train(config, folder, problem=tiny, resume=True)
        assert_bitwise_equal(outcome(folder), true)


def test_resuming_a_finished_run_changes_no_byte(tmp_path, tiny):
    config = replace(CONFIG, epochs=2)
    train(config, tmp_path, problem=tiny)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    train(config, tmp_path, resume=True)  # and needs no problem
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("method", "broken"),
    [
        ("adamw", {"exp_avg_sq": 7}),
        ("adamw", {"exp_avg_sq": None}),
        ("adamw", {"exp_avg": torch.zeros(3)}),
        ("adamw", {"step": torch.zeros(2)}),
        ("adamw", {"step": torch.tensor(-1e30)}),
        ("sgd-momentum", {"momentum_buffer": torch.zeros(1, 6)}),
        ("sgd-momentum", {}),
        ("adamw", None),  # an option that the settings do not have
    ],
)
def test_state_that_is_not_the_optimizers_is_refused_before_a_step(tmp_path, tiny, method, broken):
    """torch's own optimizers take it as it is, and fail at the next step or broadcast it."""
    config = RunConfig("tiny", method, batch_size=7, epochs=2, threads=1)
    train(config, tmp_path, problem=tiny)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    saved = state["loop"]["optimizer"]
    if broken is None:
        saved["param_groups"][0]["amsgrad"] = [1]
    elif broken:
        saved["state"][0].update(broken)
    else:
        saved["state"][0].clear()
    torch.save({**state, "finished": False}, tmp_path / "checkpoint.pt")
    with pytest.raises(BrokenRun, match=r"checkpoint\.pt: "):
        train(config, tmp_path, problem=tiny, resume=True)


def test_a_missing_option_of_the_optimizer_is_refused(tmp_path, tiny):
    train(RunConfig("tiny", "adamw", batch_size=7, epochs=2, threads=1), tmp_path, problem=tiny)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["loop"]["optimizer"]["param_groups"][0]["eps"]
    torch.save({**state, "finished": False}, tmp_path / "checkpoint.pt")
    with pytest.raises(BrokenRun, match=r"checkpoint\.pt: .*the optimizer's options lack eps"):
        train(RunConfig("tiny", "adamw", batch_size=7, epochs=2, threads=1), tmp_path, problem=tiny, resume=True)


@pytest.mark.parametrize("method", ["adamw", "sngd", "muon-adamw"])
@pytest.mark.parametrize("name", ["lr", "initial_lr"])
@pytest.mark.parametrize("value", [torch.ones(5056), -1.0, float("nan"), "0.1", None], ids=str)
def test_a_learning_rate_that_is_none_is_refused(tmp_path, tiny, method, name, value):
    """The scheduler sets it again, but a tensor it fills in place; an attack with a tensor of many met it."""
    train(RunConfig("tiny", method, batch_size=7, epochs=2, threads=1), tmp_path, problem=tiny)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["loop"]["optimizer"]["param_groups"][0][name] = value
    torch.save({**state, "finished": False}, tmp_path / "checkpoint.pt")
    with pytest.raises(BrokenRun, match=rf"checkpoint\.pt: .*the optimizer's {name} must be finite and at least 0"):
        train(RunConfig("tiny", method, batch_size=7, epochs=2, threads=1), tmp_path, problem=tiny, resume=True)


def test_a_learning_rate_may_be_a_whole_number(tmp_path, tiny):
    config = RunConfig("tiny", "s-sngd", lr=1, batch_size=7, epochs=2, threads=1)
    once = train(config, tmp_path / "once", problem=tiny)
    steps = iter(range(5))
    with pytest.raises(Interrupted):
        train(config, tmp_path / "twice", problem=tiny, should_stop=lambda: next(steps, 9) > 3)
    again = train(config, tmp_path / "twice", problem=tiny, resume=True)
    assert {**again, "seconds": 0} == {**once, "seconds": 0}


def test_parameters_that_the_stored_method_does_not_have_name_the_run(tmp_path, tiny):
    train(RunConfig("tiny", "svrg", batch_size=7, epochs=4, threads=1), tmp_path, problem=tiny)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**stored, "method": "sgd", "params": {}}), "utf-8")
    wanted = RunConfig("tiny", "sgd", params={"chunk_size": 512.0})
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: cannot resume with other settings: 'chunk_size'")):
        train(wanted, tmp_path, problem=tiny, resume=True)


def test_settings_that_do_not_fit_the_problem_name_the_file_that_has_them(tmp_path, tiny):
    """An older config.json may lack the batch size, and the default may be more than there are samples."""
    config = RunConfig("tiny", "sgd", batch_size=7, epochs=2, threads=1)
    train(config, tmp_path, problem=tiny)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text("utf-8"))
    del stored["batch_size"]
    path.write_text(json.dumps(stored), "utf-8")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**state, "finished": False}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"config\.json: batch_size must be at most n = 60, got 128"):
        train(replace(config, batch_size=128), tmp_path, problem=tiny, resume=True)
