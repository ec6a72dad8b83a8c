"""Which tensors on a GPU the fused kernel takes, asked of tensors that have a device and a layout, and no memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sngd.optim.fused import fused_is_right


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
