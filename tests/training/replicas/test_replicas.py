"""Runs that are trained as one end as separate runs do, go on after any interruption, and leave each other alone."""

import multiprocessing
import random
import time
from dataclasses import replace
from math import nan

import pytest
import torch
from outcomes import assert_bitwise_equal, assert_equal_to_rounding, outcome
from torch import nn

from sngd.problems import Problem, load_problem
from sngd.training import METHODS, Interrupted, RunConfig, engine, train
from sngd.training.methods import Method
from sngd.training.replicas.alike import reason_against
from sngd.training.replicas.stack import Stack
from sngd.training.replicas.train import train_together
from sngd.training.run_folder import RunFolder
from sngd.training.run_state import RunState, _generator

TOGETHER = [name for name, method in METHODS.items() if type(method) is Method]
SEEDS = (0, 1, 2)


def config_of(method, **settings):
    """At least 50 steps of most methods on 60 samples."""
    epochs = 50 if METHODS[method].estimate.cost_text == "n" else 6
    usual = {"batch_size": 7, "epochs": epochs, "eval_every": 1.5, "weight_decay": 0.01, "threads": 1}
    return RunConfig("plain", method, **(usual | settings))


def differing(config):
    """Settings that differ in seed and learning rate."""
    lr = config.lr or METHODS[config.method].lr
    return [replace(config, seed=seed, lr=lr * (1 + seed) / 2) for seed in SEEDS]


def folders(path, configs):
    return [path / str(index) for index in range(len(configs))]


def alone_and_together(configs, path, problem):
    """What runs of autograd's gradients, one after the other, end with, and replicas."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunState, "write_out", lambda _: None)
        for config, folder in zip(configs, folders(path / "alone", configs), strict=True):
            train(config, folder, problem=problem)
    rows = train_together(configs, folders(path / "together", configs), problem)
    return rows, *([outcome(path / how / str(i)) for i in range(len(configs))] for how in ("alone", "together"))


FAST = ("sngd", "spider-sfo", "adamw", "scion")  # the other methods are tried with the slow tests


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=() if method in FAST else pytest.mark.slow) for method in TOGETHER]
)
def test_every_method_ends_as_separate_runs_do(tmp_path, plain, method):
    rows, alone, together = alone_and_together(differing(config_of(method, output="random")), tmp_path, plain)
    assert_equal_to_rounding(alone, together)
    assert len({row["train_loss"] for row in rows}) == len(SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sngd", "sgd", "adamw", "spider-sfo"])
def test_single_precision_too(tmp_path, method):
    def problem():
        return load_problem("digits-mlp:300")

    config = config_of(method, batch_size=16, epochs=3, eval_every=1)
    _, alone, together = alone_and_together(differing(config), tmp_path, problem)
    assert_equal_to_rounding([rows for _, rows in alone], [rows for _, rows in together], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("sngm", "momentum"),
        ("nsgd-momentum", "momentum"),
        ("sgd-momentum", "momentum"),
        ("capped-sngd", "max_scale"),
        ("adamw", "beta2"),
        ("spider-sfo", "period"),
        ("scsg", "anchor_batch_size"),
        ("noisy-gd", "std"),
    ],
)
def test_parameters_of_the_method_may_differ(tmp_path, plain, method, params):
    values = {"momentum": (0.5, 0.9, 0.99), "max_scale": (0.1, 1, 10), "beta2": (0.9, 0.99, 0.999), "period": (2, 3, 5)}
    values |= {"anchor_batch_size": (7, 20, 31), "std": (0, 0.1, 0.2)}
    configs = differing(config_of(method))
    configs = [replace(c, params={params: float(v)}) for c, v in zip(configs, values[params], strict=True)]
    _, alone, together = alone_and_together(configs, tmp_path, plain)
    assert_equal_to_rounding(alone, together)


@pytest.mark.parametrize("method", ["nsgd-momentum", "sngm", "sgd-momentum"])
def test_one_has_no_momentum_and_others_have(tmp_path, plain, method):
    configs = differing(config_of(method))
    configs = [replace(c, params={"momentum": beta}) for c, beta in zip(configs, (0.0, 0.9, 0.5), strict=True)]
    _, alone, together = alone_and_together(configs, tmp_path, plain)
    assert_equal_to_rounding(alone, together)


@pytest.mark.parametrize(
    "settings",
    [
        {"plan": "poly"},
        {"plan": "multistep"},
        {"sampling": "independent"},
        {"eval_samples": 10, "grad_norm": False},
        {"curve_samples": 10},
        {"curve_samples": 10, "grad_norm": True, "output": "random"},
        {"weight_decay": 0.0},
    ],
    ids=str,
)
@pytest.mark.slow
@pytest.mark.parametrize("method", ["nsgd-momentum", "spider-sfo"])
def test_every_setting_holds(tmp_path, plain, method, settings):
    _, alone, together = alone_and_together(differing(config_of(method, **settings)), tmp_path, plain)
    assert_equal_to_rounding(alone, together)


def test_a_plan_that_sets_the_momentum(tmp_path, plain):
    configs = differing(config_of("nsgd-momentum", plan="agnostic"))
    _, alone, together = alone_and_together(configs, tmp_path, plain)
    assert_equal_to_rounding(alone, together)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saddle", "sharp-flat", "relaxed-smooth", "tensor-decomposition", "imbalanced:300"])
def test_other_models_and_losses(tmp_path, name):
    config = config_of("sngd", batch_size=16, epochs=0.5, eval_every=0.25, lr=0.01)
    _, alone, together = alone_and_together(differing(config), tmp_path, lambda: load_problem(name))
    assert_equal_to_rounding([rows for _, rows in alone], [rows for _, rows in together], 1e-4)


def test_augmented_and_prepared_inputs(tmp_path):
    """Images moved and mirrored at random, a convolution, and bytes that become floats."""
    from sngd.problems.augment import random_crop_and_flip

    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 1, 8, 8), generator=chance, dtype=torch.uint8)
    labels = torch.randint(3, (60,), generator=chance)
    problem = Problem(
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)).double(),
        nn.functional.cross_entropy,
        (images, labels),
        augment=random_crop_and_flip,
        prepare=lambda x: x.double() / 255,
    )
    for method in ("sngd", "svrg", "gd"):
        configs = differing(config_of(method, epochs=4))
        _, alone, together = alone_and_together(configs, tmp_path / method, lambda: problem)
        assert_equal_to_rounding(alone, together)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("grad_norm", [True, False])
def test_attention_in_eval_mode_has_gradients_too(tmp_path, grad_norm):
    """Where torch's attention thinks that no gradient is wanted, it takes a way that has none."""

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.layer(x).mean(1))

    chance = torch.Generator().manual_seed(0)
    samples = torch.randn(60, 5, 4, generator=chance, dtype=torch.float64), torch.randint(3, (60,), generator=chance)
    problem = Problem(lambda: Attending().double(), nn.functional.cross_entropy, samples)
    config = config_of("sngd", epochs=2, grad_norm=grad_norm)
    assert reason_against(config, problem) is None
    _, alone, together = alone_and_together(differing(config), tmp_path, lambda: problem)
    assert_equal_to_rounding(alone, together)
    assert torch.backends.mha.get_fastpath_enabled()


def test_one_that_diverges_leaves_the_others_alone(tmp_path, plain):
    configs = [replace(config_of("sgd"), seed=seed, lr=lr) for seed, lr in enumerate((0.1, 1e300, 0.2))]
    rows, alone, together = alone_and_together(configs, tmp_path, plain)
    assert [row["diverged"] for row in rows] == [False, True, False]
    assert rows[1]["step"] < rows[0]["step"]
    for index in (0, 2):
        assert_equal_to_rounding(alone[index], together[index])
    assert together[1][0]["finished"]


def test_the_last_row_of_one_is_of_all_samples_though_another_has_not_ended(tmp_path):
    """After an estimate that is not finite the next one is an anchor, for which this run has no calls left."""
    samples, size = 20, 5
    first = torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:size].tolist()
    bad = next(index for index in range(samples) if index not in first)  # and not among the samples of other rows
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[bad] = nan

    def problem():
        return Problem(lambda: nn.Linear(3, 2).double(), nn.functional.cross_entropy, (x, torch.arange(samples) % 2))

    config = config_of("spider-sfo", batch_size=2, epochs=1.25, curve_samples=size, grad_norm=False, weight_decay=0.0)
    config = replace(config, params={"anchor_batch_size": 8.0, "period": 100.0})
    places = [torch.randperm(samples, generator=_generator(s, "samples")).tolist().index(bad) for s in range(100)]
    configs = [replace(config, seed=places.index(place)) for place in (samples - 1, 12)]
    rows, alone, together = alone_and_together(configs, tmp_path, problem)
    assert [row["diverged"] for row in rows] == [True, True]
    last = [[outcomes[index][1][-1] for index in (0, 1)] for outcomes in (alone, together)]
    assert str(last[0]) == str(last[1])  # nan is no number that equals another


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sngd", "nsgd-momentum", "sngm", "capped-sngd"])
@pytest.mark.parametrize("scale", [0.0, 1e-160, 1e160])
def test_gradients_of_any_size_step_as_they_do_alone(tmp_path, method, scale):
    """Squares of the last two leave float64's range, and the first one gives no direction."""
    x = torch.ones(60, 3, dtype=torch.float64)

    def problem():
        return Problem(lambda: nn.Linear(3, 1).double(), lambda out, y: scale * out.mean() * y.mean(), (x, x[:, :1]))

    config = config_of(method, weight_decay=0.0, epochs=2, grad_norm=False)
    _, alone, together = alone_and_together(differing(config), tmp_path, problem)
    assert_equal_to_rounding(alone, together)
    assert together[0][1][-1]["skipped_steps"] == (together[0][1][-1]["step"] if scale == 0 else 0)


@pytest.mark.parametrize("method", ["spider-sfo", "svrg", "scsg"])
def test_a_gradient_that_is_not_finite_makes_the_next_estimate_an_anchor(plain, method):
    """Of the run that had it; the others keep their periods."""
    problem = plain()
    configs = [config.resolved(problem.n) for config in differing(config_of(method, lr=1e-3))]
    configs = [replace(c, params={**c.params, "anchor_batch_size": 14.0}) if method != "svrg" else c for c in configs]
    alone, together = ([RunState(config, problem) for config in configs] for _ in range(2))
    stack = Stack(together)
    for step in range(6):
        if step == 2:
            for run in (alone[1], together[1]):
                next(run.model.parameters()).data[0, 0] = torch.nan
        for run in alone:
            run.step()
        stack.step([0, 1, 2])
        assert [r.loop.estimator.age for r in alone] == [r.loop.estimator.age for r in together]
    for index in (0, 2):
        assert_equal_to_rounding(alone[index].loop.state_dict(), together[index].loop.state_dict())


# --- interrupted


class Killed(BaseException):
    """Stands in for the end of the process: nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sngd", "adamw", "spider-sfo", "scsg", "saddle-ngd", "scion"])
def test_killed_between_any_two_checkpoints_all_end_bit_for_bit(tmp_path, plain, monkeypatch, method):
    """Some runs have saved and others have not: those behind catch up, as rows of a stack of the same size."""
    configs = differing(config_of(method, output="random", epochs=8 if method == "saddle-ngd" else 4))
    kill_and_resume(configs, tmp_path, plain, monkeypatch, kills=5)


@pytest.mark.slow
def test_killed_when_one_run_has_ended_and_others_are_behind(tmp_path, plain, monkeypatch):
    """A run of a larger anchor takes fewer steps; one of a huge learning rate diverges."""
    configs = [replace(config_of("scsg", epochs=3), seed=s, params={"anchor_batch_size": 7.0 + 8 * s}) for s in SEEDS]
    kill_and_resume(configs, tmp_path / "scsg", plain, monkeypatch, kills=9)
    configs = [replace(config_of("sgd", epochs=3), seed=seed, lr=lr) for seed, lr in enumerate((0.1, 1e300, 0.2))]
    kill_and_resume(configs, tmp_path / "sgd", plain, monkeypatch, kills=13)


def test_runs_that_were_begun_with_other_measurements_keep_them(tmp_path, plain):
    """As runs of an early version, which had other defaults."""
    configs = differing(config_of("sngd"))
    for how in ("alone", "together"):
        for index, begun in ((1, {"curve_samples": 10, "grad_norm": True}), (2, {"eval_samples": 10})):
            with pytest.raises(Interrupted):
                train(
                    replace(configs[index], **begun),
                    tmp_path / how / str(index),
                    problem=plain,
                    should_stop=lambda: True,
                )
    places = [folders(tmp_path / how, configs) for how in ("alone", "together")]
    for config, folder in zip(configs, places[0], strict=True):
        train(config, folder, problem=plain, resume=True)
    train_together(configs, places[1], plain, resume=True)
    assert_equal_to_rounding(*([outcome(folder) for folder in some] for some in places))


def test_runs_of_two_kinds_are_not_trained_as_one(tmp_path, plain):
    configs = differing(config_of("gd"))
    configs[1] = replace(configs[1], params={"chunk_size": 7.0})
    with pytest.raises(ValueError, match="must differ in seed, lr, params other than chunk_size, and label alone"):
        train_together(configs, folders(tmp_path, configs), plain)


def test_many_samples_are_evaluated_run_by_run_unless_passes_are_written_out(tmp_path, plain, monkeypatch):
    """Through vmap that would take longer."""
    monkeypatch.setattr("sngd.training.replicas.stack.gains_in_evaluation", lambda _: False)
    measure, measured = Stack.measure, []
    monkeypatch.setattr(Stack, "measure", lambda *given, **how: measured.append(1) or measure(*given, **how))
    train_together(differing(config_of("sngd")), folders(tmp_path / "written out", SEEDS), plain)
    assert measured
    measured.clear()
    inputs = plain().train[0].shape[1]
    normalized = replace(
        plain(), build_model=lambda: nn.Sequential(nn.LayerNorm(inputs), plain().build_model()).double()
    )
    _, alone, together = alone_and_together(differing(config_of("sngd")), tmp_path, lambda: normalized)
    assert_equal_to_rounding(alone, together)
    assert not measured


def kill_and_resume(configs, path, problem, monkeypatch, kills):
    """Kill at ``kills`` moments, from the first checkpoint to the last."""
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)  # after every step
    whole, save, saves = folders(path / "whole", configs), RunFolder.save_checkpoint, []

    def save_and_count(self, state):
        saves.append(self.path)
        save(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save_and_count)
    train_together(configs, whole, problem)
    true = [outcome(folder) for folder in whole]
    for number in {round(1 + kill * (len(saves) - 2) / (kills - 1)) for kill in range(kills)}:
        killed, count = folders(path / f"fatal-{number}", configs), iter(range(10000))

        def save_or_die(self, state, count=count, number=number):
            if next(count) == number:
                raise Killed
            save(self, state)

        monkeypatch.setattr(RunFolder, "save_checkpoint", save_or_die)
        with pytest.raises(Killed):
            train_together(configs, killed, problem)
        monkeypatch.setattr(RunFolder, "save_checkpoint", save)
        train_together(configs, killed, problem, resume=True)
        assert_bitwise_equal([outcome(folder) for folder in killed], true)


def test_asked_to_stop_all_save_and_either_way_goes_on(tmp_path, plain):
    """Begun together, a run goes on by itself, and the other way round."""
    configs = differing(config_of("nsgd-momentum", output="random"))
    _, alone, _ = alone_and_together(configs, tmp_path, plain)
    calls = iter(range(100))
    places = folders(tmp_path / "stopped", configs)
    with pytest.raises(Interrupted, match="stopped after 21 steps; --resume goes on"):
        train_together(configs, places, plain, should_stop=lambda: next(calls) == 20)
    train(configs[1], places[1], problem=plain, resume=True)
    calls = iter(range(100))
    with pytest.raises(Interrupted):
        train(configs[2], places[2], problem=plain, resume=True, should_stop=lambda: next(calls) == 9)
    rows = train_together(configs, places, plain, resume=True)
    assert all(row["final"] for row in rows)
    assert_equal_to_rounding([outcome(folder) for folder in places], alone)


def test_finished_runs_are_read_and_nothing_is_loaded(tmp_path, plain):
    configs = differing(config_of("sngd", epochs=1))
    rows = train_together(configs, folders(tmp_path, configs), plain)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train_together(configs, folders(tmp_path, configs), lambda: 1 / 0, resume=True) == rows
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_each_run_is_followed_to_its_end(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(engine, "PROGRESS_SECONDS", 0.0)
    configs, seen = differing(config_of("sngd", epochs=1)), {}
    train_together(
        configs,
        folders(tmp_path, configs),
        plain,
        on_progress=lambda index, progress: seen.setdefault(index, []).append(progress),
    )
    for progress in seen.values():
        assert progress[0].loss is None
        assert progress[1].loss > 0
        assert progress[-1].oracle_calls == progress[-1].budget
    assert len({progress[1].loss for progress in seen.values()}) == len(SEEDS)


def test_a_checkpoint_holds_one_run_and_not_its_neighbours(tmp_path, plain):
    configs = differing(config_of("spider-sfo", epochs=1))
    train(configs[0], tmp_path / "alone", problem=plain)
    train_together(configs, folders(tmp_path, configs), plain)
    sizes = [(tmp_path / name / "checkpoint.pt").stat().st_size for name in ("alone", "0")]
    assert abs(sizes[1] - sizes[0]) < 500


def _train_together(configs, places, problem):
    torch.set_num_threads(1)
    engine.CHECKPOINT_SECONDS = 0.01
    train_together(configs, places, problem, resume=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["s-sngd", "scsg"])
def test_killed_at_random_moments_all_end_bit_for_bit(tmp_path, plain, method):
    configs = differing(config_of(method, epochs=30, eval_every=0.5, output="random"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sngd.training.replicas.train"])

    def start(name):
        process = context.Process(target=_train_together, args=(configs, folders(tmp_path / name, configs), plain))
        process.start()
        return process

    whole = start("whole")
    while not (tmp_path / "whole" / "0" / "checkpoint.pt").exists():
        time.sleep(0.001)
    began = time.monotonic()
    whole.join()
    duration = time.monotonic() - began
    true = [outcome(folder) for folder in folders(tmp_path / "whole", configs)]
    chance = random.Random(0)
    for attempt in range(4):
        for _ in range(2):
            process = start(f"killed-{attempt}")
            time.sleep(chance.uniform(0.1, 0.8) * duration)
            process.kill()
            process.join()
        places = folders(tmp_path / f"killed-{attempt}", configs)
        train_together(configs, places, plain, resume=True)
        assert_bitwise_equal([outcome(folder) for folder in places], true)
