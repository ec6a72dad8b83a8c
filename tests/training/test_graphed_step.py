"""Whole steps as CUDA graphs: which are recorded, and that runs end as they do without.

On the CPU a stand-in does what a graph does: it repeats the same work on the same memory. Tests marked cuda have the
real one.
"""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from as_graphs import assert_graphs_change_nothing, images, repeating, replaying, waiting_is_an_error
from outcomes import assert_bitwise_equal, outcome

from sngd.problems import Problem
from sngd.training import Interrupted, RunConfig, engine, graphed, graphed_step, train
from sngd.training.graphed import Recorded
from sngd.training.repeatable import repeatable
from sngd.training.run_state import RunState

CONFIG = RunConfig("tiny", "sngd", lr=0.05, batch_size=7, epochs=4, threads=1)
STEPS = 4 * 60 // 7
METHODS = (
    "sgd",
    "sgd-momentum",
    "sngd",
    "capped-sngd",
    "sngm",
    "nsgd-momentum",
    "signum",
    "sngd-layer",
    "scion",
    "muon",
)
OTHERS = ("adamw", "gd", "spider-sfo", "scsg", "noisy-gd", "natasha2")


@pytest.fixture
def notes(monkeypatch):
    """Runs on the CPU record their steps, with the stand-in; the list has a "step" for each whole step repeated."""
    notes = []
    for recording in (graphed.GraphedLoss, graphed_step.WholeSteps):
        monkeypatch.setattr(recording.__init__, "__defaults__", (lambda functions: repeating(functions, notes),))
    monkeypatch.setattr(engine, "_records", lambda _: True)
    monkeypatch.setattr(graphed_step, "ENOUGH", 5)
    return notes


def plain(config, folder, monkeypatch, **options):
    """What the run leaves without graphs."""
    monkeypatch.setattr(engine, "_records", lambda _: False)
    train(config, folder, problem=images, **options)
    return outcome(folder)


@pytest.mark.parametrize("method", METHODS)
def test_the_run_has_the_same_weights_rows_and_random_numbers(method, tmp_path, monkeypatch, notes):
    config = replace(CONFIG, method=method, output="random", weight_decay=0.01)
    warned = []
    train(config, tmp_path / "graphed", problem=images, on_warning=warned.append)
    assert not warned
    assert notes.count("step") == 1 + (STEPS - 1)  # one on trial, and all but the first
    notes.clear()
    expected = plain(config, tmp_path / "plain", monkeypatch)
    assert not notes
    assert_bitwise_equal(outcome(tmp_path / "graphed"), expected)


def test_each_long_stage_is_recorded_and_short_ones_are_not(tmp_path, monkeypatch, notes):
    stages = [[0.1, 9], [0.05, 3], [0.02, 12], [0.01, STEPS - 24]]
    config = replace(CONFIG, method="s-sngd", lr=0.1, plan=json.dumps(stages))
    train(config, tmp_path / "graphed", problem=images)
    assert notes.count("step") == (1 + 8) + (1 + 12) + (1 + STEPS - 24)
    assert_bitwise_equal(outcome(tmp_path / "graphed"), plain(config, tmp_path / "plain", monkeypatch))


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("s-sgd", [[0.1, 9], [0.05, 9], [0.02, STEPS - 18]]),
        ("sgd-momentum", [[0.1, 9, 1, 0.5], [0.05, 9, 1, 0.9], [0.02, STEPS - 18, 1, 0.7]]),
    ],
)
def test_a_stage_has_its_own_learning_rate_and_momentum(method, stages, tmp_path, monkeypatch, notes):
    record = partial(replaying, notes=notes)
    monkeypatch.setattr(graphed_step.WholeSteps.__init__, "__defaults__", (record,))
    config = replace(CONFIG, method=method, plan=json.dumps(stages), weight_decay=0.01)
    train(config, tmp_path / "graphed", problem=images)
    assert notes.count("step") == 3 + STEPS - 1
    assert_bitwise_equal(outcome(tmp_path / "graphed"), plain(config, tmp_path / "plain", monkeypatch))


@pytest.mark.parametrize(("left", "due"), [(4, False), (5, True), (6, True)])
@pytest.mark.parametrize("stages_after", [[], [[0.01, 50]]])
def test_a_stage_is_recorded_if_enough_steps_are_left(left, due, stages_after, notes):
    plan = json.dumps([[0.1, 2], [0.05, left], *stages_after])
    run = RunState(replace(CONFIG, method="s-sgd", plan=plan).resolved(60), images())
    assert run.record() is None
    for expected in (False, False, due):
        assert run.whole.due is expected
        run.step()
    assert "step" not in notes


@pytest.mark.parametrize("method", ["sgd-momentum", "sngd"])
def test_it_goes_on_bit_for_bit(method, tmp_path, monkeypatch, notes):
    config = replace(CONFIG, method=method)
    steps = iter([False] * 12 + [True])
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", problem=images, should_stop=lambda: next(steps))
    assert notes.count("step") == 1 + 12
    train(config, tmp_path / "run", problem=images, resume=True)
    assert notes.count("step") == (1 + 12) + (1 + STEPS - 14)
    assert_bitwise_equal(outcome(tmp_path / "run"), plain(config, tmp_path / "whole", monkeypatch))


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_have_no_whole_steps(method):
    assert not graphed_step.can_be_whole(RunState(replace(CONFIG, method=method).resolved(60), images()).loop, images())


def test_samples_that_are_read_and_variations_that_draw_are_not_recorded():
    def possible(problem):
        return graphed_step.can_be_whole(RunState(CONFIG.resolved(60), problem).loop, problem)

    problem = images()
    assert possible(problem)
    assert possible(replace(problem, augment=None))
    assert not possible(replace(problem, augment=lambda x, generator: problem.augment(x, generator)))
    dataset = torch.utils.data.TensorDataset(torch.rand(60, 3, 6, 6), problem.train[1])
    assert not possible(replace(problem, train=dataset, augment=None))


@pytest.mark.usefixtures("notes")
def test_the_trial_leaves_no_trace():
    run, twin = (RunState(replace(CONFIG, method="nsgd-momentum").resolved(60), images()) for _ in range(2))
    assert run.record() is None
    assert not run.whole.due
    for state in (run, twin):
        torch.manual_seed(0)
        state.step()
    assert run.whole.due
    before = torch.get_rng_state()
    assert run.record_whole_step() is None
    assert torch.equal(torch.get_rng_state(), before)
    assert run.whole.ready
    assert not run.whole.due
    found, expected = (state.state_dict(False) | {"seconds": 0} for state in (run, twin))
    assert_bitwise_equal(found, expected)


def waits(_functions):
    raise RuntimeError("\noperation not permitted when stream is capturing\nand much more")


def moves(functions):
    (step,) = repeating(functions)

    def repeat():
        step.repeat()
        functions[0].func.__self__._model[0].weight.data.mul_(1 + 2**-20)  # the owner's weight

    return [Recorded(repeat, step.results)]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            waits,
            "steps are no longer CUDA graphs, because a CUDA graph cannot hold them "
            "(operation not permitted when stream is capturing)",
        ),
        (
            moves,
            "steps are more than one CUDA graph each, because weights or the optimizer's state come out differently "
            "when recorded",
        ),
    ],
)
def test_what_cannot_be_recorded_is_trained_as_before_with_one_warning(monkeypatch, tmp_path, record, reason, notes):
    monkeypatch.setattr(graphed_step.WholeSteps.__init__, "__defaults__", (record,))
    warned = []
    train(CONFIG, tmp_path / "run", problem=images, on_warning=warned.append)
    assert warned == [f"tiny: {reason}"]
    assert (notes.count("_backward") > 2) is (record is moves)
    assert_bitwise_equal(outcome(tmp_path / "run"), plain(CONFIG, tmp_path / "plain", monkeypatch))


@pytest.mark.usefixtures("notes")
def test_an_optimizer_that_replaces_its_tensors_is_not_recorded(monkeypatch):
    run = RunState(replace(CONFIG, method="sgd-momentum").resolved(60), images())
    assert run.record() is None
    run.step()
    step_weights = run.loop.step_weights

    def replacing(loss, batch):
        value = step_weights(loss, batch)
        for entry in run.loop.optimizer.state.values():
            entry["momentum_buffer"] = entry["momentum_buffer"].clone()
        return value

    before = run.state_dict(False)
    before = {**before, "loop": deepcopy(before["loop"]), "model": deepcopy(before["model"])}
    monkeypatch.setattr(run.loop, "step_weights", replacing)
    assert run.record_whole_step() == "the model or the optimizer replaces tensors, and does not change them in place"
    assert run.whole is None
    assert run.graphed is not None
    assert_bitwise_equal(run.state_dict(False), before)


# ---- on a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graph_gives_the_numbers_of_single_operations(method, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(graphed_step, "ENOUGH", 5)
    config = replace(CONFIG, method=method, device="cuda", weight_decay=0.01, precision=precision, plan="poly")
    assert_graphs_change_nothing(config, tmp_path, monkeypatch)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_step_does_not_wait_for_the_gpu(method):
    with repeatable(threads=1):
        run = RunState(replace(CONFIG, method=method, device="cuda").resolved(60), images())
        assert run.record() is None
        run.step()
        assert run.record_whole_step() is None
        with waiting_is_an_error():
            for _ in range(3):
                run.step()


@pytest.mark.cuda
@pytest.mark.parametrize("fails", [lambda: torch.ones((), device="cuda").item(), lambda: [][0]])
def test_a_recording_that_fails_leaves_the_run_as_it_was(fails, tmp_path, monkeypatch):
    """The images' model draws masks for its dropout, from a generator that the recording had changed."""

    def recording(functions):
        def failing():
            value = functions[0]()
            if torch.cuda.is_current_stream_capturing():
                fails()
            return value

        return graphed.record([failing])

    monkeypatch.setattr(graphed_step.WholeSteps.__init__, "__defaults__", (recording,))
    monkeypatch.setattr(graphed_step, "ENOUGH", 5)
    config, warned = replace(CONFIG, device="cuda"), []
    train(config, tmp_path / "tried", problem=images, on_warning=warned.append)
    assert len(warned) == 1
    assert "steps are no longer CUDA graphs, because a CUDA graph cannot hold them" in warned[0]
    monkeypatch.setenv(engine.GRAPHS, "0")
    train(config, tmp_path / "plain", problem=images)
    assert_bitwise_equal(outcome(tmp_path / "tried"), outcome(tmp_path / "plain"))


@pytest.mark.cuda
def test_numbers_that_the_host_draws_are_not_recorded(tmp_path):
    class Deep(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1 if torch.rand(()).item() > 0.5 else 2)

    x = torch.linspace(-1, 1, 240).reshape(60, 4)
    problem = Problem(lambda: Deep(4, 2), torch.nn.functional.cross_entropy, (x, (x[:, 0] > 0).long()))
    warned = []
    train(replace(CONFIG, device="cuda"), tmp_path / "run", problem=lambda: problem, on_warning=warned.append)
    assert len(warned) == 1
    assert "numbers are drawn at random on the host" in warned[0]
