"""A step of every norm goes along its unit step, for wide and tall weights, with and without momentum."""

import pytest
import torch

from sngd import SNGD
from sngd.norms import NORMS, Sign, Spectral

STEPPED = [*(kind() for kind in NORMS.values()), Spectral(coefficients="svd")]


@pytest.mark.parametrize("norm", STEPPED, ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shape", [(2, 3), (4, 3), (3, 3), (3,), (2, 3, 2, 2), (2, 1, 2, 2)])
def test_the_first_step_is_the_unit_step(norm, momentum, shape):
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
    before, w.grad = w.detach().clone(), torch.randn(shape, dtype=torch.float64, generator=generator)
    SNGD([w], lr=0.5, norm=norm, momentum=momentum, normalize="momentum").step()
    torch.testing.assert_close(before - w.detach(), 0.5 * norm.unit(w.grad), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", STEPPED, ids=str)
def test_units_are_contiguous_and_those_of_each_tensor(norm):
    shapes = [(2, 3), (3, 2), (4, 3), (3, 4), (5,), (3, 2, 2, 1)]
    vs = [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    for v, unit in zip(vs, norm.units(vs), strict=True):
        assert unit.is_contiguous()
        torch.testing.assert_close(unit, norm.unit(v), rtol=1e-9, atol=1e-9)


class Transposed(Sign):
    """A user's norm that is right, but whose unit steps lie in memory column by column."""

    name = "transposed"

    def bare_unit(self, m):
        return m.sign().mT.contiguous().mT

    def units(self, vs):
        return [self.unit(v) for v in vs]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_kernel_is_asked_about_the_tensors_that_it_gets(momentum):
    w = torch.nn.Parameter(torch.zeros(3, 4))
    w.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    SNGD([w], lr=0.5, norm=Transposed(scaled=False), momentum=momentum, normalize="momentum").step()
    assert torch.equal(w.detach(), -0.5 * w.grad.sign())
