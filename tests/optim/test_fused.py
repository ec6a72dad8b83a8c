"""The fused kernel: what it computes of momentum, and which tensors it takes on a GPU.

These are asked of tensors that have a device and a layout, and no memory.
"""

from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from sngd import SNGD
from sngd.optim.fused import fused_is_right, fused_sngd


def tensors(dtype=torch.float32, layout=torch.contiguous_format):
    shapes = [(40, 20), (40,)]
    images = torch.empty(8, 3, 3, 3, device="cuda", dtype=dtype).to(memory_format=layout)
    return [*(torch.empty(shape, device="cuda", dtype=dtype) for shape in shapes), images]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "without_momentum", "with_momentum"),
    [(torch.float32, True, True), (torch.bfloat16, True, False), (torch.float64, False, False)],
)
def test_on_a_gpu_it_depends_on_dtype_and_momentum(layout, dtype, without_momentum, with_momentum):
    with FakeTensorMode():
        params, vectors, buffers = (tensors(dtype, layout) for _ in range(3))
        assert fused_is_right(params, vectors, []) is without_momentum
        assert fused_is_right(params, vectors, buffers) is with_momentum


def test_on_a_gpu_it_needs_one_layout():
    with FakeTensorMode():
        params, others = tensors(), tensors(layout=torch.channels_last)
        assert not fused_is_right(params, others, [])
        assert not fused_is_right(params, params, others)
        gaps = [torch.empty_strided((40, 20), (80, 2), device="cuda"), *params[1:]]
        assert not fused_is_right(gaps, gaps, [])


# --- momentum of normalized gradients, u ← βu + c v and w ← w − αu


@given(
    c=st.floats(-37, 37).map(lambda e: torch.tensor(10**e).item()) | st.just(1.0),  # of float32
    dtype=st.sampled_from([torch.float32, torch.float64]),
    entries=st.sampled_from([1, 7, 64, 1000]),
)
def test_the_kernel_multiplies_by_any_factor_and_leaves_the_vectors(c, dtype, entries):
    draws = torch.Generator().manual_seed(entries)
    w, v, u = (torch.randn(entries, generator=draws, dtype=dtype) for _ in range(3))
    v = v.clamp(-3, 3)
    new = 0.9 * u.double() + c * v.double()
    params, vectors, buffers = [w.clone()], [v.clone()], [u.clone()]
    options = {"skip": None, "lr": 0.1, "momentum": 0.9, "normalize": "gradient", "new_averages": []}
    fused_sngd(params, vectors, buffers, c=torch.tensor(c, dtype=dtype), **options)
    eps = torch.finfo(dtype).eps
    size = 0.9 * u.abs().double() + c * v.abs().double()  # of the sum that is rounded
    assert ((buffers[0].double() - new).abs() <= 2 * eps * size).all()
    assert ((params[0].double() - (w.double() - 0.1 * new)).abs() <= 4 * eps * (w.abs().double() + 0.1 * size)).all()
    assert torch.equal(vectors[0], v)


def test_a_step_that_is_skipped_on_the_host_leaves_momentum():
    params, vectors, buffers = ([torch.ones(20)] for _ in range(3))
    options = {"lr": 0.1, "momentum": 0.9, "normalize": "gradient", "new_averages": []}
    fused_sngd(params, vectors, buffers, c=torch.tensor(inf), skip=torch.tensor(True), **options)
    for tensors_ in (params, vectors, buffers):
        assert_close(tensors_[0], torch.ones(20), rtol=0, atol=0)


def test_a_gradient_that_torch_has_not_negated_yet_takes_its_step():
    """The kernel refuses it, as part of a list that it may change."""
    w = torch.nn.Parameter(torch.ones(1))
    w.grad = torch.tensor([1 + 2j]).conj().imag
    assert w.grad.is_neg()
    SNGD([w], lr=0.1, momentum=0.9).step()
    assert w.item() == pytest.approx(1.1)
