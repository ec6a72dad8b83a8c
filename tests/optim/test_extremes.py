"""Gradients whose squares no float holds: from the smallest subnormal number to the largest finite one."""

from math import inf

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import sngd
from sngd.norms.global_norm import global_norm

IMPLEMENTATIONS = {
    "default": {},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "capturable loop": {"capturable": True, "foreach": False},
    "capturable fused": {"capturable": True, "fused": True},
}
RULES = {
    "plain": {},
    "sngm": {"momentum": 0.9},
    "nsgd-momentum": {"momentum": 0.9, "normalize": "momentum"},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "kahan": {"kahan_sum": True},
}
# Smallest and largest decimal exponent of entries, and how exactly a step of that dtype can be taken.
RANGES = {
    torch.float32: (-45, 37, 2e-6),
    torch.float64: (-323, 307, 1e-12),
    torch.bfloat16: (-40, 37, 1e-2),
    torch.float16: (-7, 4, 2e-3),
}
LR = 0.1


def random_gradient(dtype, exponent, seed):
    """Shape (70,), entries about 10^exponent in size, of both signs; at least one is not zero."""
    draws = np.random.default_rng(seed).uniform(-1, 1, 70)
    draws[0] = 1.0
    exact = draws.astype(np.longdouble) * np.longdouble(10) ** exponent
    return torch.from_numpy(exact.astype(np.float64)).to(dtype)


def exact(tensor):
    """The same numbers in numpy's extended precision, whose range holds every square here."""
    return tensor.detach().to(torch.float64).numpy().astype(np.longdouble)


def exact_norm(vector):
    return np.sqrt((vector * vector).sum())


@given(
    dtype=st.sampled_from(list(RANGES)),
    implementation=st.sampled_from(list(IMPLEMENTATIONS)),
    rule=st.sampled_from(list(RULES)),
    where=st.floats(0, 1),
    cap_exponent=st.one_of(st.none(), st.integers(-60, 60)),
    maximize=st.booleans(),
    seed=st.integers(0, 10_000),
)
@example(torch.float32, "fused", "sngm", 0.0, None, False, 0)
@example(torch.float64, "loop", "nsgd-momentum", 1.0, 60, False, 0)
def test_a_finite_gradient_of_any_size_takes_its_step(dtype, implementation, rule, where, cap_exponent, maximize, seed):
    low, high, tolerance = RANGES[dtype]
    gradient = random_gradient(dtype, round(low + where * (high - low)), seed)
    max_scale = inf if cap_exponent is None else 10.0**cap_exponent
    w = nn.Parameter(torch.zeros(70, dtype=dtype))
    w.grad = gradient.clone()
    options = {"max_scale": max_scale, "maximize": maximize, **RULES[rule], **IMPLEMENTATIONS[implementation]}
    optimizer = sngd.SNGD([w], lr=LR, **options)
    optimizer.step()

    v = exact(gradient) * (1 - np.longdouble(0.9) if rule == "nsgd-momentum" else 1)
    step = min(np.longdouble(LR) / exact_norm(v), np.longdouble(max_scale)) * v * (1 if maximize else -1)
    least = torch.finfo(dtype).smallest_normal  # below it entries of the weights are rounded more coarsely
    if dtype == torch.float16 and rule == "nsgd-momentum":  # so are those of a mean of small gradients
        tolerance += 70**0.5 * 3e-8 / float(exact_norm(v))
    assert optimizer.skipped_steps == 0
    assert exact_norm(exact(w) - step) <= tolerance * exact_norm(step) + least


@given(
    dtype=st.sampled_from(list(RANGES)),
    implementation=st.sampled_from(list(IMPLEMENTATIONS)),
    rule=st.sampled_from(list(RULES)),
    exponents=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    decay=st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_no_sequence_of_finite_gradients_spoils_the_weights(dtype, implementation, rule, exponents, decay):
    low, high, _ = RANGES[dtype]
    w = nn.Parameter(torch.ones(70, dtype=dtype))
    options = {"weight_decay": decay, **RULES[rule], **IMPLEMENTATIONS[implementation]}
    optimizer = sngd.SNGD([w], lr=LR, **options)
    for seed, where in enumerate(exponents):
        before = exact(w)
        w.grad = random_gradient(dtype, round(low + where * (high - low)), seed) * (-1) ** seed
        optimizer.step()
        moved = exact_norm(exact(w) - before)
        longest = LR / (1 - options.get("momentum", 0.0)) + LR * options["weight_decay"] * exact_norm(before)
        rounding = torch.finfo(dtype).eps * (exact_norm(before) + longest)
        assert moved <= longest * 1.02 + rounding
    assert torch.isfinite(w).all()
    assert all(torch.isfinite(buffer).all() for buffer in optimizer.state[w].values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_largest_and_the_smallest_number_share_a_gradient(implementation):
    w = nn.Parameter(torch.zeros(3))
    w.grad = torch.tensor([torch.finfo(torch.float32).max, 1e-45, 0.0])
    sngd.SNGD([w], lr=LR, **IMPLEMENTATIONS[implementation]).step()
    assert w.tolist() == pytest.approx([-LR, 0.0, 0.0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_direction_over_two_dtypes(implementation):
    params = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float64, torch.float32)]
    params[0].grad, params[1].grad = torch.tensor([3e-200, 4e-200], dtype=torch.float64), torch.zeros(2)
    optimizer = sngd.SNGD(params, lr=LR, **IMPLEMENTATIONS[implementation])
    optimizer.step()
    assert params[0].tolist() == pytest.approx([-0.06, -0.08])
    assert params[1].tolist() == [0, 0]
    assert optimizer.last_norm.item() == pytest.approx(5e-200)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [0.0, inf, -inf, torch.nan])
def test_no_direction_changes_nothing(bad, implementation):
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.tensor([bad, 0.0])
    optimizer = sngd.SNGD([w], lr=LR, momentum=0.9, **IMPLEMENTATIONS[implementation])
    optimizer.step()
    assert w.tolist() == [1, 1]
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e-160, 1e160, 1e300])
def test_the_global_norm_of_float64_has_no_gaps(size):
    assert global_norm([torch.full((4,), size, dtype=torch.float64)]).item() == pytest.approx(2 * size, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_where_the_host_is_not_asked_a_step_is_right_or_skipped(rule):
    """As on an accelerator: a compiled step reads no number back."""
    torch._dynamo.reset()
    w = nn.Parameter(torch.zeros(4))
    w.grad = torch.zeros(4)
    optimizer = sngd.SNGD([w], lr=torch.tensor(LR), **RULES[rule])
    step = torch.compile(optimizer.step, backend="eager")
    for size in [1e-45, 1e-39, 1e-30, 1e-17, 1e-14, 1.0, 1e18, 1e30, 3e38]:
        optimizer.state.clear()  # each is a first step, of the graph that was compiled for the first
        w.detach().zero_()
        w.grad.fill_(size)
        before = optimizer.skipped_steps
        step()
        skipped = optimizer.skipped_steps - before
        taken = [pytest.approx([-LR / 2] * 4, rel=1e-5), [0.0] * 4]
        assert w.tolist() == taken[skipped], size
        assert skipped == (0 if 1e-14 <= size <= 1e18 else 1), size
