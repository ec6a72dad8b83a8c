"""torch's Muon with torch's AdamW as one optimizer."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from sngd import StagewiseLR, stages
from sngd.training.muon_adamw import MuonWithAdamW

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def split(net):
    return [p for p in net.parameters() if p.dim() == 2], [p for p in net.parameters() if p.dim() < 2]


def take_steps(net, optimizers, steps, schedule=None):
    for step in range(steps):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step * 100 + p.numel()))
        for optimizer in optimizers:
            optimizer.step()
        if schedule:
            schedule.step()


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_both_step_as_they_do_alone():
    ours, theirs = model(), model()
    optimizer = MuonWithAdamW(*split(ours), 0.02, 0.003, 0.1)
    matrices, others = split(theirs)
    alone = [torch.optim.Muon(matrices, 0.02, weight_decay=0.1), AdamW(others, 0.003, weight_decay=0.1)]
    take_steps(ours, [optimizer], 5)
    take_steps(theirs, alone, 5)
    assert same(ours, theirs)


def test_a_plan_keeps_the_ratio_of_the_learning_rates():
    net = model()
    optimizer = MuonWithAdamW(*split(net), 0.02, 0.003, 0.0)
    schedule = StagewiseLR(optimizer, stages.StagePlan.from_list([[0.02, 1], [0.01, 5]]))
    take_steps(net, [optimizer], 2, schedule)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.0015])


def test_it_goes_on_from_its_state():
    whole, first = model(), model()
    take_steps(whole, [MuonWithAdamW(*split(whole), 0.02, 0.003, 0.1)], 6)
    begun = MuonWithAdamW(*split(first), 0.02, 0.003, 0.1)
    for step in range(6):
        for p in first.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step * 100 + p.numel()))
        if step == 3:
            state, second = copy.deepcopy(begun.state_dict()), MuonWithAdamW(*split(first), 0.5, 0.5, 0.5)
            second.load_state_dict(state)
            begun = second
        begun.step()
    assert same(whole, first)


def test_a_model_without_matrices_is_refused():
    with pytest.raises(ValueError, match="at least one hidden matrix"):
        MuonWithAdamW([], list(model().parameters()), 0.1, 0.1, 0.0)
