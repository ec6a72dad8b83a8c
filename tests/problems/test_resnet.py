"""Residual networks: sizes, the shortcut in closed form, initialization, and the whole against its naive twin."""

import re

import pytest
import torch
from torch import nn

from reference.resnet import resnet_scores
from sngd.problems.resnet import Block, cifar_resnet


@pytest.mark.parametrize(
    ("depth", "parameters", "millions"), [(8, 75_290, 0.08), (20, 269_722, 0.27), (56, 853_018, 0.85)]
)
def test_sizes(depth: int, parameters: int, millions: float) -> None:
    model = cifar_resnet(depth)
    count = sum(p.numel() for p in model.parameters())
    assert count == parameters
    assert round(count / 1e6, 2) == millions
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == depth
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_heights_and_widths() -> None:
    sizes = []
    model = cifar_resnet(14)
    for layer in model:
        if isinstance(layer, Block):
            layer.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2


@pytest.mark.parametrize("depth", [8, 20])
def test_against_the_naive_twin(depth: int) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(depth).double()
    for param in model.parameters():  # so that no scale is 1 and no shift 0
        nn.init.normal_(param, std=0.3)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), resnet_scores(model.parameters(), x))


def test_shortcut_in_closed_form() -> None:
    block = Block(2, 5)
    nn.init.zeros_(block.residual[-1].weight)  # the residual is zero now
    x = torch.rand(3, 2, 6, 6)
    y = block(x)
    assert y.shape == (3, 5, 3, 3)
    assert torch.equal(y[:, :2], x[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert not y[:, 2:].any()


def test_images_stay_channels_last_backwards() -> None:
    model, gradients = cifar_resnet(8), []
    for layer in model:
        if isinstance(layer, Block):
            layer.register_forward_hook(lambda _, __, output: output.register_hook(gradients.append) and None)
    model(torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert [g.is_contiguous(memory_format=torch.channels_last) for g in gradients] == [True] * 3


def test_convolutions_are_drawn_as_he_et_al_do() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(20)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][-1]
    assert last.weight.mean().item() == pytest.approx(0, abs=2e-3)
    assert last.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.03)


@pytest.mark.parametrize("depth", [-4, 2, 18, 21])
def test_wrong_depth(depth: int) -> None:
    message = f"depth must be 6n + 2 with n of at least 1 (8, 14, 20, …), got {depth}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cifar_resnet(depth)
