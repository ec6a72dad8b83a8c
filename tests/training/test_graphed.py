"""A step's loss and gradient as CUDA graphs: what is recorded, and that steps repeat it with their own batches.

On the CPU a stand-in does what a graph does: it repeats the same work on the same memory. Tests marked cuda have the
real one.
"""

from dataclasses import replace

import pytest
import torch
from as_graphs import assert_graphs_change_nothing, images, repeating, waiting_is_an_error
from outcomes import assert_bitwise_equal, outcome
from torch import nn

from sngd.problems import Problem
from sngd.training import Interrupted, RunConfig, engine, graphed, run_state, train
from sngd.training.graphed import GraphedLoss, Recorded
from sngd.training.ranks import Ranks
from sngd.training.run_state import RunState

CONFIG = RunConfig("tiny", "sngd", lr=0.05, batch_size=7, epochs=4, threads=1)
METHODS = {
    "sngd": {},
    "gd": {"chunk_size": 25},
    "spider-sfo": {"anchor_batch_size": 30, "period": 3, "chunk_size": 10},
    "svrg": {"chunk_size": 25},
    "scsg": {"anchor_batch_size": 20},
    "adamw": {},
    "noisy-gd": {},
    "saddle-ngd": {},
}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Runs on the CPU record loss and gradient, with the stand-in; the list has an entry for each that is repeated."""
    notes = []
    monkeypatch.setattr(run_state, "can_be_whole", lambda *_: False)  # see test_graphed_step.py
    monkeypatch.setattr(graphed.GraphedLoss.__init__, "__defaults__", (lambda functions: repeating(functions, notes),))
    monkeypatch.setattr(engine, "_records", lambda _: True)
    return notes


def recorded(config):
    """A run whose steps are recorded, and a batch of the size that they are."""
    run = RunState(config.resolved(60), images())
    assert run.record() is None
    return run, tuple(part[:7] for part in run.problem.train)


@pytest.mark.parametrize("method", METHODS)
def test_the_run_has_the_same_weights_rows_and_random_numbers(method, tmp_path, monkeypatch, as_on_a_gpu):
    config = replace(CONFIG, method=method, params=METHODS[method], output="random")
    warned = []
    train(config, tmp_path / "graphed", problem=images, on_warning=warned.append)
    assert as_on_a_gpu
    assert not warned
    monkeypatch.setattr(engine, "_records", lambda _: False)
    as_on_a_gpu.clear()
    train(config, tmp_path / "plain", problem=images)
    assert not as_on_a_gpu
    assert_bitwise_equal(outcome(tmp_path / "graphed"), outcome(tmp_path / "plain"))


@pytest.mark.parametrize("method", ["sngd", "spider-sfo"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_it_goes_on_bit_for_bit(method, tmp_path):
    config = replace(CONFIG, method=method, params=METHODS[method])
    train(config, tmp_path / "whole", problem=images)
    steps = iter([False] * 5 + [True])
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", problem=images, should_stop=lambda: next(steps))
    train(config, tmp_path / "run", problem=images, resume=True)
    assert_bitwise_equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_batches_of_other_sizes_go_the_old_way(as_on_a_gpu):
    problem = images()
    run = RunState(CONFIG.resolved(60), problem)
    assert run.record() is None
    as_on_a_gpu.clear()
    inputs, targets = problem.train
    for size in (7, 6):
        run.loss_of((inputs[:size], targets[:size])).backward()
    assert as_on_a_gpu == ["_forward", "_backward"]
    other = problem.build_model()
    assert run.graphed is not None
    run.graphed(other, (inputs[:7], targets[:7]))
    assert as_on_a_gpu == ["_forward", "_backward"]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_trial_leaves_no_trace():
    run, twin = (RunState(CONFIG.resolved(60), images()) for _ in range(2))
    before = torch.get_rng_state()
    assert run.record() is None
    assert torch.equal(torch.get_rng_state(), before)
    states = run.state_dict(False), twin.state_dict(False)
    assert all(map(torch.equal, states[0]["model"].values(), states[1]["model"].values()))
    assert torch.equal(states[0]["augmentation"], states[1]["augmentation"])
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_gradient_is_times_what_the_loss_is_multiplied_by():
    run, batch = recorded(CONFIG)
    params = [p for p in run.model.parameters() if p.shape != (2,)]
    found = []
    for times in (1, 3):
        torch.manual_seed(0)  # the same dropout
        found.append(torch.autograd.grad(times * run.loss_of(batch), params))
    for once, thrice in zip(*found, strict=True):
        torch.testing.assert_close(3 * once, thrice)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_gradient_that_was_overwritten_is_an_error():
    run, batch = recorded(CONFIG)
    first = run.loss_of(batch)
    run.loss_of(batch)
    with pytest.raises(RuntimeError, match="lost, because another one was computed before backward"):
        first.backward()


def waits(_functions):
    raise RuntimeError("\noperation not permitted when stream is capturing\nand much more")


def adds_one(functions):
    evaluated, differentiated = repeating(functions)

    def repeat():
        evaluated.repeat()
        evaluated.results.add_(1)

    return [Recorded(repeat, evaluated.results), differentiated]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (waits, "a CUDA graph cannot hold them (operation not permitted when stream is capturing)"),
        (adds_one, "its loss or gradient comes out differently when recorded"),
    ],
)
def test_what_cannot_be_recorded_is_trained_as_before_with_one_warning(monkeypatch, tmp_path, tiny, record, reason):
    monkeypatch.setattr(engine, "_records", lambda _: True)
    monkeypatch.setattr(graphed.GraphedLoss.__init__, "__defaults__", (record,))
    warned = []
    train(CONFIG, tmp_path / "run", problem=tiny, on_warning=warned.append)
    assert warned == [f"tiny: steps are not CUDA graphs, because {reason}"]
    monkeypatch.setattr(engine, "_records", lambda _: False)
    train(CONFIG, tmp_path / "plain", problem=tiny)
    assert_bitwise_equal(outcome(tmp_path / "run"), outcome(tmp_path / "plain"))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_model_that_replaces_its_buffers_is_not_recorded(tiny):
    class Averaging(nn.Linear):
        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return super().forward(x)

    def model():
        found = Averaging(6, 2)
        found.register_buffer("mean", torch.zeros(6))
        return found

    run = RunState(CONFIG.resolved(60), replace(tiny(), build_model=model))
    assert run.record() == "the model replaces its buffers, and does not change them in place"
    assert run.graphed is None
    assert torch.equal(run.model.mean, torch.zeros(6))


def test_methods_with_second_derivatives_and_several_processes_are_not_recorded(tiny):
    run = RunState(replace(CONFIG, method="natasha2").resolved(60), tiny())
    assert run.record() == "natasha2 needs second derivatives"
    run = RunState(CONFIG.resolved(60), tiny(), Ranks(0, 2))
    assert run.record() == "several processes train together"


@pytest.mark.parametrize(
    ("device", "value", "expected"), [("cuda", None, True), ("cuda", "0", False), ("cpu", None, False)]
)
def test_steps_are_recorded_on_a_gpu_unless_the_environment_says_no(monkeypatch, tiny, device, value, expected):
    run = RunState(CONFIG.resolved(60), tiny())
    run.device = torch.device(device)
    if value is not None:
        monkeypatch.setenv(engine.GRAPHS, value)
    assert engine._records(run) is expected


# ---- on a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_gives_the_numbers_of_single_operations(method, tmp_path, monkeypatch):
    monkeypatch.setattr(run_state, "can_be_whole", lambda *_: False)  # see test_graphed_step.py
    config = replace(CONFIG, method=method, params=METHODS[method], device="cuda")
    assert_graphs_change_nothing(config, tmp_path, monkeypatch)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_repeating_does_not_wait_for_the_gpu():
    run, batch = recorded(replace(CONFIG, device="cuda"))
    with waiting_is_an_error():
        for _ in range(3):
            run.loss_of(batch).backward()


@pytest.mark.cuda
def test_a_model_that_makes_the_host_wait_is_trained_as_before(tmp_path, monkeypatch):
    """Also if it draws random numbers: a recording that fails would leave their generator unusable."""

    class Waiting(nn.Linear):
        def forward(self, x):
            x = nn.functional.dropout(x, 0.1)
            return super().forward(x) * (1 if x.sum().item() > 0 else 2)

    x = torch.linspace(-1, 1, 240).reshape(60, 4)
    problem = Problem(lambda: Waiting(4, 2), nn.functional.cross_entropy, (x, (x[:, 0] > 0).long()))
    warned, stream = [], torch.cuda.current_stream()
    config = replace(CONFIG, device="cuda")
    row = train(config, tmp_path / "tried", problem=lambda: problem, on_warning=warned.append)
    assert row["train_loss"] < 1
    assert len(warned) == 1
    assert "a CUDA graph cannot hold them" in warned[0]
    assert torch.cuda.current_stream() == stream
    monkeypatch.setenv(engine.GRAPHS, "0")
    train(config, tmp_path / "plain", problem=lambda: problem)
    assert_bitwise_equal(outcome(tmp_path / "tried"), outcome(tmp_path / "plain"))


def test_a_loss_that_was_not_tried_on_is_the_plain_one(tiny):
    problem = tiny()
    model = problem.build_model()
    calls = []
    loss = GraphedLoss(lambda _, batch: calls.append(len(batch[0])) or torch.zeros(()), model)
    loss(model, tuple(part[:5] for part in problem.train))
    assert calls == [5]
