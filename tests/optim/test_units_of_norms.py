"""The implementations of the step get what a norm's unit is: its dtype and memory layout, not the gradient's."""

import pytest
import torch
from torch import nn

import sngd
from sngd.norms import NORMS, Norm, Sign, find_norm


class Transposed(Sign):
    """A user's norm whose unit is laid out column by column."""

    def units(self, vs):
        return [v.sign().mT.contiguous().mT for v in vs]


@pytest.mark.parametrize("norm", [*map(find_norm, NORMS), Transposed(scaled=False)], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_implementation_takes_the_same_steps(norm: Norm, momentum):
    stepped = []
    for options in ({}, {"foreach": False}, {"foreach": True}, {"fused": True}):
        generator = torch.Generator().manual_seed(0)
        ws = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (3, 5), (64, 65))]
        optimizer = sngd.SNGD(ws, lr=0.1, norm=norm, momentum=momentum, **options)
        for _ in range(2):
            for w in ws:
                w.grad = torch.randn(w.shape, generator=generator)
            optimizer.step()
        stepped.append(ws)
    for ws in stepped[1:]:
        for w, expected in zip(ws, stepped[0], strict=True):
            torch.testing.assert_close(w, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [*NORMS, "spectral(coefficients=svd)"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_skipped(norm, bad):
    w = nn.Parameter(torch.zeros(3, 2))
    w.grad = torch.ones(3, 2)
    w.grad[1, 0] = bad
    optimizer = sngd.SNGD([w], lr=0.1, norm=norm)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert not w.any()
