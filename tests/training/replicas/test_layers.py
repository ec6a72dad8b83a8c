"""The pass of linear layers and activations that is written out, against autograd's of one model after the other."""

import pytest
import torch
from torch import nn

from sngd.problems import Problem
from sngd.problems.augment import unit_interval
from sngd.training.replicas.layers import _BY_ENTRY
from sngd.training.replicas.losses import Batch, Losses

ROWS, SIZE, CLASSES = 3, 5, 4


def problem_of(model, *, as_bytes=False, dtype=torch.float64):
    chance = torch.Generator().manual_seed(0)
    numbers = torch.randint(256, (20, 6), generator=chance, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (20,), generator=chance)
    inputs = numbers if as_bytes else numbers.to(dtype) / 100 - 1
    prepare = unit_interval if as_bytes else None
    return Problem(model, nn.functional.cross_entropy, (inputs, labels), prepare=prepare)


def compared(problem, *, shared, share=1.0, add=False):
    """Losses, outputs and gradients of both, of the same weights and samples."""
    models = [problem.build_model() for _ in range(ROWS)]
    losses = Losses(problem, models[0])
    assert losses._layers is not None
    weights = losses.layout.pieces(losses.layout.matrix([list(model.parameters()) for model in models]))
    into = losses.layout.pieces(losses.layout.matrix([list(model.parameters()) for model in models]))  # added to
    batches = [tuple(part[(0 if shared else row * SIZE) :][:SIZE] for part in problem.train) for row in range(ROWS)]
    batch = Batch(*batches[0], shared=True) if shared else Batch(*map(torch.stack, zip(*batches, strict=True)))
    before = [piece.clone() for piece in into]
    ours = (*losses.add_gradient(weights, batch, into, share=share, add=add), *into)
    for plain, value in zip(losses.losses(weights, batch), (ours[0] / share, ours[1]), strict=True):
        torch.testing.assert_close(plain, value)

    theirs = []
    for model, own in zip(models, batches, strict=True):
        loss = problem.mean_loss(model, own) * share
        theirs.append([loss, problem.outputs(model, own[0]), *torch.autograd.grad(loss, list(model.parameters()))])
    expected = [torch.stack(parts).detach() for parts in zip(*theirs, strict=True)]
    if add:
        expected[2:] = [gradient + old for gradient, old in zip(expected[2:], before, strict=True)]
    return ours, expected


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", _BY_ENTRY, ids=lambda kind: kind.__name__)
def test_every_activation(activation, bias, shared):
    def model():
        return nn.Sequential(
            nn.Linear(6, 7, bias),
            activation(),
            activation(),
            nn.Linear(7, 5, bias),
            activation(),
            nn.Linear(5, CLASSES),
        ).double()

    for how in ({}, {"share": 0.3, "add": True}):
        torch.testing.assert_close(*compared(problem_of(model), shared=shared, **how))


@pytest.mark.parametrize("ends_in", [(), (nn.ReLU(),)])
@pytest.mark.parametrize("shared", [False, True])
def test_bytes_and_one_layer(shared, ends_in):
    def model():
        return nn.Sequential(nn.Linear(6, CLASSES), *ends_in)

    torch.testing.assert_close(*compared(problem_of(model, as_bytes=True), shared=shared))
    torch.testing.assert_close(*compared(problem_of(model, dtype=torch.float32), shared=shared))


@pytest.mark.parametrize(
    "change",
    [
        {"prepare": lambda x: x.flip(0)},  # not each number by itself
        {"loss": nn.functional.multi_margin_loss},
        {"build_model": lambda: nn.Sequential(nn.Linear(6, CLASSES), nn.ReLU(inplace=True))},
        {"build_model": lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, CLASSES))},
    ],
)
def test_what_is_not_known_goes_another_way(change):
    usual = problem_of(lambda: nn.Linear(6, CLASSES, dtype=torch.float64))
    settings = {"build_model": usual.build_model, "loss": usual.loss, "train": usual.train} | change
    assert Losses(usual, usual.build_model())._layers is not None
    assert Losses(Problem(**settings), settings["build_model"]())._layers is None
