"""The pass of linear layers and activations that is written out, against autograd's of one model after the other."""

import pytest
import torch
from torch import nn

from sngd.problems import Problem
from sngd.problems.augment import unit_interval
from sngd.training.replicas.layers import _BY_ENTRY, layers_of
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
    found, outputs = losses.add_gradient(weights, batch, into, share=share, add=add)
    ours = (found(), outputs, *into)
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


USUAL = problem_of(lambda: nn.Linear(6, CLASSES, dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [
        {"prepare": lambda x: x.flip(0)},  # not each number by itself
        {"augment": lambda x, _: x},  # which may change targets, too
        {"loss": nn.functional.multi_margin_loss},
        {"build_model": lambda: nn.Sequential(nn.Linear(6, CLASSES), nn.ReLU(inplace=True))},
        {"build_model": lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, CLASSES))},
        {"build_model": nn.Sequential},
    ],
)
def test_what_is_not_known_goes_another_way(change):
    settings = {"build_model": USUAL.build_model, "loss": USUAL.loss, "train": USUAL.train} | change
    assert layers_of(USUAL.build_model(), USUAL) is not None
    assert layers_of(settings["build_model"](), Problem(**settings)) is None


def ignore(*_):
    return None


def registered_again(model):
    weight = model[0].weight
    del model[0].weight
    model[0].weight = weight  # behind the bias


def bias_as_buffer(model):
    bias = model[0].bias.detach()
    del model[0].bias
    model[0].register_buffer("bias", bias)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.register_forward_hook(ignore),
        lambda model: model[1].register_forward_pre_hook(ignore),
        lambda model: model[0].register_full_backward_hook(ignore),
        lambda model: model[0].weight.register_hook(ignore),
        lambda model: model[2].bias.register_post_accumulate_grad_hook(ignore),
        lambda model: model[2].bias.requires_grad_(False),
        lambda model: nn.utils.parametrizations.weight_norm(model[0]),
        lambda model: model.register_parameter("scale", nn.Parameter(torch.ones(4, 6))),
        lambda model: model[1].register_parameter("scale", nn.Parameter(torch.ones(4, 6))),
        lambda model: model[0].add_module("more", nn.Linear(2, 2)),
        lambda model: setattr(model, "forward", ignore),
        lambda model: setattr(model[0], "forward", ignore),
        lambda model: setattr(model[0].weight, "data", model[0].weight.data.double()),
        lambda model: setattr(model[2].bias, "data", torch.ones(0)),
        registered_again,
        bias_as_buffer,
    ],
)
def test_what_a_user_changed_in_a_model_is_not_passed_over(change):
    inputs = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    problem = Problem(nn.Identity, nn.functional.cross_entropy, (inputs, (inputs[:, 0] > 0).long()))
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4))
    assert layers_of(model, problem) is not None
    change(model)
    assert layers_of(model, problem) is None


def test_what_a_user_set_for_all_modules_is_not_passed_over():
    with torch.autocast("cpu", torch.bfloat16):
        assert layers_of(USUAL.build_model(), USUAL) is None
    hook = nn.modules.module.register_module_forward_hook(ignore)
    try:
        assert layers_of(USUAL.build_model(), USUAL) is None
    finally:
        hook.remove()
