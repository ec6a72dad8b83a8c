"""State, learning rates and devices that do not fit: one clear error instead of a wrong step or a crash."""

import copy
from math import inf, nan

import pytest
import torch
from torch import nn

from sngd import SNGD

IMPLEMENTATIONS = {"default": {}, "loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
RULES = {
    "sngm": {"momentum": 0.9},
    "nsgd-momentum": {"momentum": 0.9, "normalize": "momentum"},
    "kahan": {"kahan_sum": True},
}


def stepped(shape, dtype=torch.float32, **options):
    w = nn.Parameter(torch.ones(shape, dtype=dtype))
    w.grad = torch.ones_like(w)
    optimizer = SNGD([w], lr=0.1, **options)
    optimizer.step()
    return w, optimizer


# --- buffers of another shape or kind


@pytest.mark.parametrize("saved", [(4,), (5,), (1, 8), (8, 8), ()])
@pytest.mark.parametrize("rule", RULES)
def test_loading_refuses_a_buffer_of_another_shape_and_changes_nothing(rule, saved):
    dtype = torch.bfloat16 if rule == "kahan" else torch.float32
    _, other = stepped(saved, dtype, **RULES[rule])
    w, optimizer = stepped((8,), dtype, **RULES[rule])
    before = copy.deepcopy(optimizer.state_dict())
    name = "kahan_buffer" if rule == "kahan" else "momentum_buffer"
    with pytest.raises(ValueError, match=rf"the {name} must have shape \(8,\) for parameter 0, got ") as error:
        optimizer.load_state_dict(other.state_dict())
    assert str(saved) in str(error.value)
    assert str(optimizer.state_dict()) == str(before)
    w.grad = torch.ones_like(w)
    optimizer.step()


def test_the_error_names_the_parameter():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = SNGD(list(model.named_parameters()), momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][2]["momentum_buffer"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"must have shape \(2, 4\) for parameter 2 \(1\.weight\), got \(5,\)"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("buffer", [torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.complex64), "x", 1.0])
def test_loading_refuses_a_buffer_of_another_kind(buffer):
    _, optimizer = stepped((8,), momentum=0.9)
    state = optimizer.state_dict()
    state["state"][0]["momentum_buffer"] = buffer
    with pytest.raises(ValueError, match=r"the momentum_buffer must be .* for parameter 0, got"):
        optimizer.load_state_dict(state)


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_loading_refuses_an_option_out_of_range():
    _, optimizer = stepped((8,), momentum=0.9)
    for option, value in {"lr": nan, "momentum": 1.0, "max_scale": 0.0, "weight_decay": -1.0}.items():
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0][option] = value
        with pytest.raises(ValueError, match=option):
            optimizer.load_state_dict(state)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(1000,), (4,), (8, 1), (1,)])
def test_a_step_refuses_weights_that_were_replaced_by_others(rule, implementation, shape):
    dtype = torch.bfloat16 if rule == "kahan" else torch.float32
    w, optimizer = stepped((8,), dtype, **RULES[rule], **IMPLEMENTATIONS[implementation])
    w.data = torch.ones(shape, dtype=dtype)
    w.grad = torch.ones_like(w)
    with pytest.raises(ValueError, match=r"_buffer must have shape .* for parameter 0, got \(8,\)"):
        optimizer.step()
    assert (w == 1).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_step_refuses_a_gradient_of_earlier_weights(implementation):
    w = nn.Parameter(torch.ones(4))
    w.grad = torch.ones(4)
    w.data = torch.ones(1000)
    with pytest.raises(ValueError, match=r"the gradient must have shape \(1000,\) for parameter 0, got \(4,\)"):
        SNGD([w], **IMPLEMENTATIONS[implementation]).step()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rule", ["sngm", "nsgd-momentum"])
def test_a_model_made_double_trains_on(rule, implementation):
    """As with torch.optim.SGD: the momentum goes on, in the new dtype."""
    torch.manual_seed(0)
    narrow = nn.Linear(9, 3)
    wide = copy.deepcopy(narrow).double()
    optimizers = [SNGD(m.parameters(), 0.1, **RULES[rule], **IMPLEMENTATIONS[implementation]) for m in (narrow, wide)]
    x = torch.randn(5, 9)
    for step in range(4):
        for model, optimizer in zip((narrow, wide), optimizers, strict=True):
            optimizer.zero_grad()
            model(x.to(model.weight.dtype)).square().mean().backward()
            optimizer.step()
        if step == 0:
            narrow.double()
    torch.testing.assert_close(narrow.weight, wide.weight, rtol=1e-6, atol=1e-6)
    assert optimizers[0].state[narrow.weight]["momentum_buffer"].dtype == torch.float64


# --- learning rates


@pytest.mark.parametrize("lr", [nan, inf, -1.0, -inf])
def test_a_tensor_lr_out_of_range_is_refused_when_given(lr):
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="lr must be finite and at least 0"):
        SNGD([w], lr=torch.tensor(lr))
    with pytest.raises(ValueError, match="lr must be finite and at least 0"):
        SNGD([{"params": [w], "lr": torch.tensor(lr)}])


@pytest.mark.parametrize("lr", [nan, inf, -1.0])
@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("capturable", [False, True])
def test_an_lr_that_went_out_of_range_is_refused_at_the_step(kind, lr, capturable):
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SNGD([{"params": [a]}, {"params": [b]}], lr=kind(0.1), momentum=0.9, capturable=capturable)
    optimizer.param_groups[1]["lr"] = kind(lr)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    with pytest.raises(ValueError, match="lr must be finite and at least 0"):
        optimizer.step()
    assert a.tolist() == [1, 1]
    assert not optimizer.state


# --- tensors without numbers


def test_an_optimizer_made_under_the_meta_device_steps():
    w = nn.Parameter(torch.ones(4))
    with torch.device("meta"):
        optimizer = SNGD([w], lr=0.1, momentum=0.9)
    w.grad = torch.ones(4)
    optimizer.step()
    assert w.tolist() == pytest.approx([1 - 0.05] * 4)
    w.grad = torch.zeros(4)
    optimizer.step()
    assert optimizer.skipped_steps == optimizer.state_dict()["skipped_steps"] == 1


@pytest.mark.parametrize("options", [{}, *RULES.values(), {"foreach": False}, {"max_scale": 1.0}, {"capturable": True}])
def test_a_model_on_the_meta_device_steps_and_is_saved(options):
    model = nn.Linear(3, 2, device="meta")
    optimizer = SNGD(model.parameters(), lr=0.1, **options)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["skipped_steps"] == 0
    optimizer.load_state_dict(state)
