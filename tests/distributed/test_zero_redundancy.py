"""``ZeroRedundancyOptimizer``: each rank steps a part of the parameters, and ``norm_group`` makes the parts one."""

import io
import warnings

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from regression import FEW, LR, STEPS, VARIANTS, assert_equal_weights, net, share, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

import sngd

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of torch.jit.script
    from torch.distributed.optim import ZeroRedundancyOptimizer


class Zero(ZeroRedundancyOptimizer):
    """With the norm of the optimizer inside, which `train` reads."""

    @property
    def last_norm(self):
        return self.optim.last_norm


def zero(params, **options):
    return Zero(params, optimizer_class=sngd.SNGD, **{"lr": LR, "norm_group": dist.group.WORLD, **options})


def groups(model):
    return [
        {"params": [*model.first.parameters()], "lr": 0.1},
        {"params": [*model.second.parameters(), model.scale], "momentum": 0.5},
    ]


def as_alone(names):
    for name in names:
        for params in (groups, nn.Module.parameters) if name == "plain" else (groups,):
            alone, model = net(), DistributedDataParallel(net())
            expected = train(alone, sngd.SNGD(params(alone), lr=LR, **VARIANTS[name]))
            optimizer = zero(params(model.module), **VARIANTS[name])
            torch.testing.assert_close(train(model, optimizer, share()), expected, rtol=1e-9, atol=0)
            assert_equal_weights(model.module, alone)
            held = sum(p.numel() for group in optimizer.optim.param_groups for p in group["params"])
            assert held < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("world_size", "names"), [(2, (*FEW, "capturable, sngm")), (4, FEW)])
def test_trains_as_one_process(world_size, names):
    on_ranks(world_size, as_alone, names)


def a_rank_without_parameters():
    weights = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    optimizer = zero(weights)
    assert dist.get_rank() < 2 or not optimizer.optim.param_groups[0]["params"]
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    assert all(torch.allclose(w, torch.full_like(w, 1 - LR / 2)) for w in weights)
    assert optimizer.last_norm.item() == 2


def test_more_ranks_than_parameters():
    on_ranks(3, a_rank_without_parameters)


def continued():
    alone = net()
    schedule = LambdaLR(optimizer := sngd.SNGD(groups(alone), lr=LR, momentum=0.9), lambda step: 0.9**step)
    for _ in range(STEPS):
        train(alone, optimizer, steps=1)
        schedule.step()

    model = net()
    optimizer = zero(groups(model), momentum=0.9)
    schedule = LambdaLR(optimizer, lambda step: 0.9**step)
    for step in range(STEPS):
        if step == STEPS // 2:
            optimizer.consolidate_state_dict(to=0)
            saved = [io.BytesIO()]
            if dist.get_rank() == 0:
                torch.save([optimizer.state_dict(), model.state_dict()], saved[0])
            dist.broadcast_object_list(saved)
            model = net()
            optimizer = zero(groups(model), momentum=0.9)
            saved[0].seek(0)
            optimizer_state, model_state = torch.load(saved[0], weights_only=True)
            model.load_state_dict(model_state)
            optimizer.load_state_dict(optimizer_state)
            schedule.optimizer = optimizer  # the schedule goes on
        train(model, optimizer, steps=1)
        schedule.step()
    assert_equal_weights(model, alone)


def test_a_consolidated_state_is_saved_and_continued():
    on_ranks(2, continued)


def added():
    alone, model = net(), net()
    ours, theirs = zero(model.first.parameters()), sngd.SNGD(alone.first.parameters(), lr=LR)
    for m, optimizer in ((model, ours), (alone, theirs)):
        train(m, optimizer, steps=2)
        optimizer.add_param_group({"params": [*m.second.parameters(), m.scale], "lr": 0.1})
        train(m, optimizer, steps=3)
    assert_equal_weights(model, alone)
    ours.consolidate_state_dict()
    if dist.get_rank() == 0:
        torch.save(ours.state_dict(), io.BytesIO())


def test_a_group_that_is_added_later():
    on_ranks(2, added)


def warned(world_size):
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    if world_size == 1:
        zero(weights, norm_group=None)
        return
    for params in (weights, [{"params": weights[:1], "norm_group": dist.group.WORLD}, {"params": weights[1:]}]):
        with pytest.warns(UserWarning, match=r"^ZeroRedundancyOptimizer shows each rank's SNGD only a part of") as told:
            optimizer = zero(params, norm_group=None)
        assert len(told) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero(weights)
        sngd.SNGD(weights)


@pytest.mark.parametrize("world_size", [1, 2])
def test_without_a_group_it_warns_where_there_are_others(world_size):
    on_ranks(world_size, warned, world_size)
