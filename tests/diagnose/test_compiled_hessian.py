"""Compiled products with the Hessian are those of ``Objective``, and others are refused."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sngd.diagnose import Objective
from sngd.diagnose.compiled_hessian import CompiledHessian

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # dynamo's own


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).double()


def samples(n=20):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 4, 4, generator=generator).double(), torch.randint(3, (n,), generator=generator)


def loss(model, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def objective(model, chunk_size=8):
    return Objective(model, lambda batch: loss(model, batch), samples(), chunk_size=chunk_size)


@pytest.mark.slow
def test_they_are_the_objectives_at_the_weights_of_each_network():
    """In chunks of 8, 8 and 4, each of which BatchNorm normalizes by itself."""
    compiled = CompiledHessian(network(0), loss)
    for seed in (0, 1):
        at = objective(network(seed))
        before = {name: buffer.clone() for name, buffer in at.model.named_buffers()}
        assert compiled.reason_against(at, samples()) is None
        vector = torch.randn(at.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert_close(compiled(at, samples(), vector), at.hessian_vector(vector), rtol=1e-8, atol=1e-10)
        assert all(torch.equal(buffer, before[name]) for name, buffer in at.model.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_another_loss_is_refused(factor):
    compiled = CompiledHessian(network(0), lambda model, batch: factor * loss(model, batch))
    assert (
        compiled.reason_against(objective(network(0)), samples()) == "they come out differently when they are compiled"
    )


@pytest.mark.slow
def test_without_a_compiler_it_is_said(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda *_: 1 / 0)
    compiled = CompiledHessian(network(0), loss)
    assert compiled.reason_against(objective(network(0)), samples()) == "they cannot be compiled (division by zero)"
