"""Lengths of tensors, rows and columns, and the unit steps that divide by them."""

import pytest
import torch

from sngd.norms import Col, Layer, Row
from sngd.norms.lengths import divisors, joined, lengths
from sngd.norms.norm import as_matrix

SHAPES = [(3, 70), (5,), (1,), (), (0, 4), (4, 0), (2, 3, 2, 2), (500, 300), (90000,), (400, 3, 20, 20)]
OVER = {"layer": (-2, -1), "row": (-1,), "col": (-2,)}


def drawn(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("over", OVER.values(), ids=OVER)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_are_those_of_the_matrix(shape, over, dtype):
    v = drawn(shape, dtype)
    (length,) = lengths([v], over)
    assert length.dtype == dtype
    expected = as_matrix(v.double()).square().sum(over, keepdim=True).sqrt()
    broadcast = length.expand(shape) if v.dim() else length.reshape(())
    torch.testing.assert_close(as_matrix(broadcast).double(), expected.expand(as_matrix(v).shape), rtol=1e-6, atol=0)


@pytest.mark.parametrize("over", OVER.values(), ids=OVER)
def test_images_that_lie_channels_last_have_them_too(over):
    v = drawn((8, 5, 3, 3))
    (length,), (other,) = lengths([v], over), lengths([v.to(memory_format=torch.channels_last)], over)
    torch.testing.assert_close(length, other)


@pytest.mark.parametrize("over", OVER.values(), ids=OVER)
@pytest.mark.parametrize("shape", [(3000, 200), (2, 60_000)], ids=str)
def test_equal_entries_lose_no_digits(shape, over):
    """The worst for a sum in float32: every addition rounds the same way."""
    v = torch.full(shape, 0.1)
    (length,) = lengths([v], over)
    expected = v.double().square().sum(over, keepdim=True).sqrt()
    torch.testing.assert_close(length.double().expand(expected.shape), expected, rtol=5e-5, atol=0)


@pytest.mark.parametrize("norm", [Layer(), Row(), Col(), Row(table=True), Col(scaled=False)], ids=str)
def test_quotients_are_unit_steps_and_the_dual_norm_is_theirs(norm):
    vs = [drawn(shape) for shape in SHAPES]
    vs[0][1] = 0  # a row of zeros
    vs[7][:, 2] = 0  # a column of zeros
    found = divisors(lengths(vs, norm.reduced), norm.factors_of(vs))
    for v, divisor in zip(vs, found.each, strict=True):
        torch.testing.assert_close(v / divisor, norm.unit(v), rtol=1e-5, atol=1e-6)
    assert found.dual.item() == pytest.approx(sum(norm.dual(v).item() for v in vs if v.numel()), rel=1e-6)


@pytest.mark.parametrize("over", OVER.values(), ids=OVER)
@pytest.mark.parametrize("size", [1e-30, 1e-16, 1e16, 1e30])
def test_squares_out_of_range_are_noticed(over, size):
    """Those of 1e-30 are 0 in float32, those of 1e-16 have lost digits, and those of 1e30 are infinite."""
    vs = [drawn((4, 3)), size * torch.ones(3, 4)]
    measured = lengths(vs, over)
    assert measured is None or divisors(measured, [1.0, 1.0]) is None
    assert divisors(lengths(vs[:1], over), [1.0]) is not None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("over", OVER.values(), ids=OVER)
def test_what_is_not_finite_is_noticed(over, bad):
    v = drawn((4, 3))
    v[1, 1] = bad
    assert divisors(lengths([v], over), [1.0]) is None


def test_joined_parts_have_the_length_of_the_whole():
    v = drawn((30, 7))
    whole = lengths([v], (-2,))[0]
    torch.testing.assert_close(joined([lengths([part], (-2,))[0] for part in v.split(8)]), whole)
    assert joined([whole]) is whole


def test_the_column_that_a_long_vector_is_keeps_its_digits():
    (length,) = lengths([torch.full((4_000_000,), 0.3)], OVER["col"])
    assert length.item() == pytest.approx(0.3 * 2000, rel=1e-5)
