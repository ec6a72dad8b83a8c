"""SNGD and its plan in Accelerate: the example's loop, in one process and in two."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import sngd
from ecosystem.observe import assert_same_weights, load_example, observed_steps

EPOCH = 28  # steps


@pytest.fixture(scope="module")
def digits():
    return load_example("accelerate_digits")


@pytest.fixture(scope="module")
def two_epochs(digits, tmp_path_factory):
    with observed_steps() as steps:
        model = digits.train(tmp_path_factory.mktemp("accelerate"), range(2))
    steps.assert_played(digits.PLAN, range(2 * EPOCH))  # although there were twice as many micro-batches
    return model


def test_accumulation_is_the_large_batch(digits, two_epochs, tmp_path):
    with observed_steps() as steps:
        model = digits.train(tmp_path, range(2), batch_size=64, accumulate=1)
    steps.assert_played(digits.PLAN, range(2 * EPOCH))
    assert_same_weights(model, two_epochs, atol=1e-4)


def test_resumes(digits, two_epochs, tmp_path):
    digits.train(tmp_path, range(1))
    with observed_steps() as steps:
        model = digits.train(tmp_path, range(1, 2))
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
    whole = digits.train(tmp_path / "whole", range(2))
    digits.train(tmp_path, range(1))
    assert_same_weights(digits.train(tmp_path, range(1, 2)), whole)


TWO_PROCESSES = """
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from ecosystem.observe import load_example, observed_steps

import sngd

folder, digits = Path(sys.argv[1]), load_example("accelerate_digits")
with observed_steps() as steps:
    digits.train(folder, range(1))
    model = digits.train(folder, range(1, 2))
steps.assert_played(digits.PLAN, range(56))
accelerator = Accelerator()  # without split_batches
assert accelerator.num_processes == 2
torch.save(model.state_dict(), folder / f"rank{accelerator.process_index}.pt")

optimizer = sngd.SNGD(model.parameters())
scheduler = sngd.StagewiseLR(optimizer, digits.PLAN)
accelerator.prepare(optimizer, scheduler)[1].step()
assert scheduler.last_epoch == 2
"""


def test_two_processes_take_the_same_steps(two_epochs, tmp_path):
    script = tmp_path / "two_processes.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n{TWO_PROCESSES}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    cpu = os.environ | {"ACCELERATE_USE_CPU": "1"}  # as does `accelerate launch --cpu`
    ran = subprocess.run([*torchrun, script, tmp_path], capture_output=True, text=True, timeout=240, env=cpu)
    assert ran.returncode == 0, ran.stderr
    for rank in range(2):
        weights = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, weight in two_epochs.state_dict().items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)


SNGD = sngd.SNGD  # which a test above replaces
