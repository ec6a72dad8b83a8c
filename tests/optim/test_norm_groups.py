"""Where SNGD sees that it steps a part of the model, it says so; the sums themselves are in tests/distributed."""

import warnings

import pytest
import torch
from torch import nn

from sngd import SNGD
from sngd.optim import norm_groups

MESSAGE = r"^SNGD steps inside backward, where an optimizer usually has one parameter or one layer: "


@pytest.fixture(autouse=True)
def nothing_told_before(monkeypatch):
    monkeypatch.setattr(norm_groups, "_told", set())


def step_in_hooks(params, lr):
    for p in params:
        optimizer = SNGD([p], lr=lr)

        def step(_, optimizer=optimizer):
            optimizer.step()
            optimizer.zero_grad()

        p.register_post_accumulate_grad_hook(step)


def test_in_hooks_each_parameter_moves_by_lr_and_it_is_told_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    before = [p.detach().clone() for p in model.parameters()]
    step_in_hooks(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=MESSAGE) as told:
        model(torch.ones(5, 3, dtype=torch.float64)).square().sum().backward()
    assert len(told) == 1
    assert told[0].filename == __file__
    for p, b in zip(model.parameters(), before, strict=True):
        assert (p - b).norm().item() == pytest.approx(0.1, rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(5, 3, dtype=torch.float64)).square().sum().backward()


def test_torchs_own_optimizer_in_backward_is_seen():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of torch.jit.script
        from torch.distributed.optim import _apply_optimizer_in_backward
    layer = nn.Linear(3, 1)
    _apply_optimizer_in_backward(SNGD, layer.parameters(), {"lr": 0.1})
    with pytest.warns(UserWarning, match=MESSAGE):
        layer(torch.ones(1, 3)).sum().backward()


@pytest.mark.filterwarnings("error")
def test_steps_after_backward_and_with_a_closure_are_as_they_should_be():
    w = nn.Parameter(torch.ones(3))
    optimizer = SNGD([w])

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step()


def test_without_process_groups_param_groups_hold_none():
    w, v = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = SNGD([w])
    optimizer.add_param_group({"params": [v], "norm_group": []})
    assert [group["norm_group"] for group in optimizer.param_groups] == [None, None]
    assert [group["norm_group"] for group in optimizer.state_dict()["param_groups"]] == [None, None]
