"""Weights that hold several matrices, and weights that are stored transposed, in the spectral norm."""

from math import sqrt

import pytest
import torch
from torch import nn

from sngd.norms import Spectral, find_norm

EXACT = Spectral(coefficients="svd")


@pytest.fixture
def v():
    return torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_each_part_takes_the_step_that_it_would_take_alone(v):
    parts = v.split(4)
    fused = Spectral(coefficients="svd", parts=3)
    torch.testing.assert_close(fused.unit(v), torch.cat([EXACT.unit(part) for part in parts]))
    torch.testing.assert_close(fused.dual(v), sum(EXACT.dual(part) for part in parts))
    torch.testing.assert_close(fused.size(v), max(EXACT.size(part) for part in parts))
    assert not torch.allclose(fused.unit(v), EXACT.unit(v))


def test_newton_schulz_of_a_part_is_that_of_the_part_alone(v):
    fused = Spectral(parts=3)
    torch.testing.assert_close(fused.unit(v), torch.cat([Spectral().unit(part) for part in v.split(4)]))


def test_kappa_is_attained_by_parts_that_are_orthogonal():
    fused = Spectral(coefficients="svd", parts=3)
    v = torch.cat([torch.eye(4, 5, dtype=torch.float64)] * 3)
    assert fused.dual(v).item() == pytest.approx(fused.kappa(v.shape) * v.norm().item())
    assert fused.kappa((12, 5)) == pytest.approx(sqrt(4 / 5) * sqrt(3 * 4))


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (4, 6, 3), (4, 6, 3, 3)])
def test_a_transposed_weight_takes_the_transposed_step(shape):
    v = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stored = Spectral(coefficients="svd", transposed=True)
    torch.testing.assert_close(stored.unit(v.transpose(0, 1)), EXACT.unit(v).transpose(0, 1))
    torch.testing.assert_close(stored.size(v.transpose(0, 1)), EXACT.size(v))
    assert stored.unit(v).is_contiguous()
    swapped = (shape[1], shape[0], *shape[2:])
    assert stored.kappa(swapped) == pytest.approx(EXACT.kappa(shape))
    assert stored.factor_of(swapped) == pytest.approx(EXACT.factor_of(shape))


def test_parts_of_a_transposed_weight_are_its_columns(v):
    fused, stored = (Spectral(coefficients="svd", parts=3, transposed=t) for t in (False, True))
    torch.testing.assert_close(stored.unit(v.mT), fused.unit(v).mT)


def test_groups_of_a_convolution_are_parts():
    conv = nn.Conv2d(6, 8, 3, groups=2)
    fused = Spectral(coefficients="svd", parts=2)
    alone = [EXACT.unit(part) for part in conv.weight.split(4)]  # (4, 3, 3, 3)
    torch.testing.assert_close(fused.unit(conv.weight), torch.cat(alone))


@pytest.mark.parametrize("parts", [1, 3])
def test_many_tensors_at_once_take_the_steps_of_each(parts):
    generator = torch.Generator().manual_seed(0)
    norm = Spectral(parts=parts)
    vs = [
        torch.randn(shape, generator=generator) for shape in [(12, 4), (12, 4), (3 * 4, 12), (9,), (6, 2, 3), (12, 4)]
    ]
    for together, v in zip(norm.units(vs), vs, strict=True):
        torch.testing.assert_close(together, norm.unit(v), atol=1e-4, rtol=1e-4)
        assert together.shape == v.shape


def test_vectors_and_scalars_are_what_they_were():
    for v in (torch.tensor([3.0, 4.0]), torch.tensor(-2.0)):
        torch.testing.assert_close(Spectral(transposed=True).unit(v), Spectral().unit(v))
    assert Spectral().unit(torch.tensor(-2.0)).item() == -1


def test_rows_that_are_not_equal_parts_are_refused():
    with pytest.raises(ValueError, match=r"parts must divide the 4 outputs of a weight of shape \(4, 2\), got 3"):
        Spectral(parts=3).unit(torch.ones(4, 2))


@pytest.mark.parametrize(
    ("option", "message"), [({"parts": 0}, "parts must be"), ({"transposed": 1}, "transposed must")]
)
def test_options_out_of_range(option, message):
    with pytest.raises(ValueError, match=message):
        Spectral(**option)


def test_they_have_a_text():
    norm = Spectral(parts=3, transposed=True)
    assert str(norm) == "spectral(parts=3, transposed=True)"
    assert find_norm(str(norm)) == norm
