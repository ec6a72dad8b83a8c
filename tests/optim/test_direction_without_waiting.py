"""On an accelerator the host does not read the norm: whether it is a direction is decided there, in few operations."""

import pytest
import torch

from sngd.norms.global_norm import least_exact_norm
from sngd.optim import whole_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_answer_is_that_of_the_host_but_for_norms_whose_squares_have_lost_digits(monkeypatch, dtype):
    least, largest = least_exact_norm(dtype), torch.finfo(dtype).max
    sizes = [0.0, -0.0, 1e-30, 1.0, 1e30, largest, torch.inf, torch.nan, 1e-44, least * 0.99, least * 1.01]
    norms = [torch.tensor(size, dtype=dtype) for size in sizes]
    here = [whole_norm.is_no_direction(norm) for norm in norms]
    monkeypatch.setattr(whole_norm, "host_may_read", lambda _: False)
    there = [whole_norm.is_no_direction(norm) for norm in norms]
    assert {(answer.dtype, answer.shape) for answer in there} == {(torch.bool, ())}
    assert [bool(answer) for answer in there] == [
        answer or bool(norm < least) for answer, norm in zip(here, norms, strict=True)
    ]
