"""The global norm: one number over tensors of any shape, dtype and size of entry."""

import pytest
import torch

from sngd.norms.global_norm import Unmade, global_norm, merged, norm_here


def test_one_norm_over_all_tensors():
    tensors = [torch.full((2, 3), 2.0), torch.full((5,), -1.0), torch.tensor(4.0)]
    assert global_norm(tensors).item() == pytest.approx((6 * 4 + 5 + 16) ** 0.5)


def test_nothing_has_norm_zero():
    assert global_norm([]).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_squares_are_summed_in_float32(dtype):
    # 300² overflows float16, and a running sum of 65,536 ones stalls at 256 in bfloat16
    norm = global_norm([torch.full((4,), 300.0, dtype=dtype), torch.ones(65536, dtype=dtype)])
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx((4 * 300.0**2 + 65536) ** 0.5, rel=1e-2 if dtype is torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_long_sums_keep_their_digits(dtype):
    long = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = long.double().norm().item()
    assert global_norm([long, torch.zeros(7, dtype=dtype)]).item() == pytest.approx(exact, rel=5e-7)
    assert global_norm([long[:-1].view(3, -1).t()]).item() == pytest.approx(exact, rel=5e-7)


def test_the_norm_of_long_converted_tensors_can_be_differentiated():
    long = torch.randn(600_000, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    global_norm([long]).backward()
    torch.testing.assert_close(long.grad.float(), (long / long.double().norm()).detach().float(), rtol=1e-2, atol=1e-5)


def test_any_float64_tensor_makes_it_float64():
    norm = global_norm([torch.ones(3), torch.full((1,), 1e-9, dtype=torch.float64)])
    assert norm.dtype == torch.float64
    assert norm.item() == pytest.approx((3 + 1e-18) ** 0.5, rel=1e-15)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e-20, 1e-12, 1.0, 1e12, 1e25, 1e37])
def test_no_entry_is_too_small_or_too_large_for_the_cpu(size):
    assert global_norm([torch.full((4,), size)]).item() == pytest.approx(2 * torch.tensor(size).item(), rel=1e-6)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_bad_entry_makes_it_non_finite(bad):
    assert not torch.isfinite(global_norm([torch.ones(3), torch.tensor([1.0, bad])]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("entries", [140_000, 3_000_001])
def test_a_tensor_made_in_pieces_has_the_norm_of_the_whole(dtype, entries):
    whole, short = (
        torch.randn(entries, generator=torch.Generator().manual_seed(0)).to(dtype),
        torch.ones(5, dtype=dtype),
    )
    unmade = Unmade(torch.empty_like(whole), lambda: iter(whole.split(2048)))
    assert torch.equal(norm_here([[unmade, short]]), norm_here([[whole, short]]))


@pytest.mark.parametrize("counts", [[], [1], [3], [1, 5, 70_000], [70_000, 9, 65_536, 1], [70_000, 80_000]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_small_tensors_are_merged_for_an_accelerator(dtype, counts):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(count, generator=generator).to(dtype) for count in counts]
    tensors = [*tensors, torch.randn(6, 4, generator=generator).to(dtype)]
    tensors.append(tensors[-1].t())  # which is not contiguous, and would be copied once more
    found = merged(tensors)
    assert len(found) == sum(count > 65_536 for count in counts) + 2
    assert {t.dtype for t in found} == {dtype}
    entries = [torch.cat([t.flatten() for t in some]).sort().values for some in (tensors, found)]
    assert torch.equal(*entries)


def test_the_norm_of_merged_tensors_can_be_differentiated():
    tensors = [torch.tensor([3.0], requires_grad=True), torch.full((70_000,), 1e-3), torch.tensor(4.0)]
    norm_here([merged(tensors)]).backward()
    assert tensors[0].grad.item() == pytest.approx(3 / (25 + 0.07) ** 0.5)
