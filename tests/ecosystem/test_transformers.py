"""SNGD and its plan in Hugging Face's Trainer, given as `optimizers` and as `optimizer_cls_and_kwargs`."""

from functools import partial

import pytest
import transformers

import sngd
from ecosystem.observe import assert_same_weights, load_example, observed_steps
from sngd.monitor import watch_trainer

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
WAYS = ["optimizers", "optimizer_cls_and_kwargs"]
STEPS = 40  # an epoch has 29
TOLD = pytest.mark.filterwarnings("ignore:the gradients of 5 steps in a row had the norm 0.01")


@pytest.fixture(scope="module")
def digits():
    return load_example("hugging_face_trainer")


@pytest.fixture(scope="module")
def forty_steps(digits, tmp_path_factory):
    trainer = digits.train(str(tmp_path_factory.mktemp("trainer")), "optimizers", max_steps=STEPS)
    return trainer.model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="two micro-batches a step"),
        pytest.param(
            {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1}, id="accumulation is the large batch"
        ),
        pytest.param({"max_grad_norm": 0.01}, id="clipping cancels", marks=TOLD),
    ],
)
def test_the_same_steps(changes, way, digits, forty_steps, tmp_path):
    with observed_steps() as steps:
        trainer = digits.train(str(tmp_path), way, max_steps=STEPS, **changes)
    steps.assert_played(digits.PLAN, range(STEPS))
    assert_same_weights(trainer.model, forty_steps, atol=1e-4)


def test_groups_and_schedule_of_the_trainers_own(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "StagewiseTrainer", digits.Trainer)
    with observed_steps() as steps:
        trainer = digits.train(str(tmp_path), "optimizer_cls_and_kwargs", max_steps=5, weight_decay=0.1)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    assert steps.lrs == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])  # linear, from the lr in optimizer_cls_and_kwargs
    assert steps.lengths == pytest.approx(steps.lrs, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_resumes_in_mid_epoch(way, digits, forty_steps, tmp_path):
    digits.train(str(tmp_path), way, max_steps=10, save_steps=10)
    with observed_steps() as steps:
        trainer = digits.train(str(tmp_path), way, resume=True, max_steps=STEPS)
    steps.assert_played(digits.PLAN, range(10, STEPS))
    assert_same_weights(trainer.model, forty_steps, atol=0 if way == "optimizers" else 1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(partial(sngd.SNGD, momentum=0.9), id="momentum"),
        pytest.param(lambda params: sngd.Perturbed(SNGD(params), std=1e-3), id="perturbed"),
    ],
)
def test_what_an_optimizer_remembers_resumes(optimizer, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sngd, "SNGD", optimizer)
    whole = digits.train(str(tmp_path / "whole"), "optimizers", max_steps=STEPS)
    digits.train(str(tmp_path), "optimizers", max_steps=10, save_steps=10)
    resumed = digits.train(str(tmp_path), "optimizers", resume=True, max_steps=STEPS)
    assert_same_weights(resumed.model, whole.model)


SNGD = sngd.SNGD  # which the test above replaces


def test_a_watched_trainer_logs_norm_rate_and_skipped_steps(digits, tmp_path, monkeypatch):
    seen = []

    class Reporter(transformers.TrainerCallback):
        """As those of TensorBoard, Weights & Biases and MLflow, which a Trainer has from the start."""

        def on_log(self, _args, state, _control, logs=None, **_):
            seen.append((state.global_step, dict(logs)))

    class Watched(digits.Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, callbacks=[Reporter()], **kwargs)
            watch_trainer(self)

    monkeypatch.setattr(digits, "Trainer", Watched)
    trainer = digits.train(str(tmp_path), "optimizers", max_steps=20, logging_steps=5)
    logged = [(step, logs) for step, logs in seen if "loss" in logs]
    assert [step for step, _ in logged] == [5, 10, 15, 20]
    for step, logs in logged:
        assert logs["optimizer/last_norm"] > 0
        assert logs["optimizer/skipped_steps"] == 0
        assert logs["optimizer/lr"] == digits.PLAN.lr_at(step)
    assert [entry["optimizer/last_norm"] for entry in trainer.state.log_history if "loss" in entry] == [
        logs["optimizer/last_norm"] for _, logs in logged
    ]
