"""SNGD and its plan in Lightning: the example's model under the real Trainer."""

from functools import partial

import pytest
from lightning.pytorch.loggers import Logger

import sngd
from ecosystem.observe import assert_same_weights, load_example, observed_steps
from sngd.monitor import lightning_callback

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")
EPOCH = 29  # steps
TOLD = pytest.mark.filterwarnings("ignore:the gradients of 5 steps in a row had the norm 0.01")


@pytest.fixture(scope="module")
def digits():
    return load_example("lightning_digits")


@pytest.fixture(scope="module")
def two_epochs(digits, tmp_path_factory):
    with observed_steps() as steps:
        model = digits.train(tmp_path_factory.mktemp("lightning"), epochs=2)
    steps.assert_played(digits.PLAN, range(2 * EPOCH))  # although there were twice as many micro-batches
    return model


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"batch_size": 64, "accumulate_grad_batches": 1}, id="accumulation is the large batch"),
        pytest.param({"gradient_clip_val": 0.01}, id="clipping cancels", marks=TOLD),
    ],
)
def test_the_same_steps(changes, digits, two_epochs, tmp_path):
    with observed_steps() as steps:
        model = digits.train(tmp_path, epochs=2, **changes)
    steps.assert_played(digits.PLAN, range(2 * EPOCH))
    assert_same_weights(model, two_epochs, atol=1e-4)


def test_resumes(digits, two_epochs, tmp_path):
    digits.train(tmp_path, epochs=1)
    with observed_steps() as steps:
        model = digits.train(tmp_path, epochs=2, resume=True)
    steps.assert_played(digits.PLAN, range(EPOCH, 2 * EPOCH))
    assert_same_weights(model, two_epochs)


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(partial(sngd.SNGD, momentum=0.9), id="momentum"),
        pytest.param(lambda params: sngd.Perturbed(SNGD(params), std=1e-3), id="perturbed"),
    ],
)
def test_what_an_optimizer_remembers_resumes(optimizer, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sngd, "SNGD", optimizer)
    whole = digits.train(tmp_path / "whole", epochs=2)
    digits.train(tmp_path, epochs=1)
    assert_same_weights(digits.train(tmp_path, epochs=2, resume=True), whole)


SNGD = sngd.SNGD  # which the test above replaces


class Recorder(Logger):
    """A logger that keeps what it is given."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.logged = []

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))


def test_the_callback_logs_norm_rate_and_skipped_steps(digits, tmp_path):
    recorder = Recorder()
    with observed_steps() as steps:
        digits.train(tmp_path, epochs=1, logger=[recorder], callbacks=[lightning_callback()], log_every_n_steps=5)
    logged = [(step, metrics) for step, metrics in recorder.logged if "optimizer/last_norm" in metrics]
    assert [step for step, _ in logged] == list(range(5, EPOCH + 1, 5))
    for step, metrics in logged:
        assert metrics["optimizer/last_norm"] > 0
        assert metrics["optimizer/skipped_steps"] == 0
        assert metrics["optimizer/lr"] == digits.PLAN.lr_at(step)  # of the step that comes
    assert len(steps.lrs) == EPOCH
