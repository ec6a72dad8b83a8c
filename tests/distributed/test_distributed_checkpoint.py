"""``torch.distributed.checkpoint``: saved on two ranks, continued on one, two or three as if nothing had happened."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import on_ranks
from regression import LR, STEPS, N, assert_equal_weights, data, net, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import sngd
from sngd import stages
from sngd.estimators import Spider

HALF = STEPS // 2
PLAN = stages.multistep(0.1, STEPS, (8, 14), steps_per_epoch=1)


def sharded(model):
    fully_shard(model.first)
    return fully_shard(model)


class Training:
    """Spider, Saddle-NGD with momentum, a stage plan and a random iterate, on the same samples on every rank."""

    def __init__(self, model, seed):
        self.model = model
        inner = sngd.SNGD(model.parameters(), lr=LR, momentum=0.9)
        self.optimizer = sngd.Perturbed(inner, std=0.01, every=3, generator=torch.Generator().manual_seed(seed))
        self.parts = {
            "scheduler": sngd.StagewiseLR(self.optimizer, PLAN),
            "iterate": sngd.RandomIterate(model.parameters(), torch.Generator().manual_seed(seed)),
            "estimator": Spider(model, anchor_batch_size=12, batch_size=6, period=4),
        }

    def run(self, steps):
        x, y = data()
        estimator = self.parts["estimator"]
        for step in steps:
            batch = torch.randint(N, (estimator.next_batch_size,), generator=torch.Generator().manual_seed(1000 + step))
            estimator.estimate(lambda i: nn.functional.mse_loss(self.model(x[i]), y[i]), batch)
            self.parts["iterate"].update(PLAN.iterate_weight(step))
            self.optimizer.step()
            self.parts["scheduler"].step()

    def state(self):
        self.optimizer.zero_grad()  # as most do before they save: then torch takes a step of its own to create state
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, **{name: p.state_dict() for name, p in self.parts.items()}}

    def save(self, folder):
        dcp.save(self.state(), checkpoint_id=folder)

    def load(self, folder):
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        set_model_state_dict(self.model, state["model"])
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"])
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def begin(folder, wrap):
    training = Training(wrap(net()), seed=5)
    training.run(range(HALF))
    training.save(folder)
    training.run(range(HALF, STEPS))
    assert_is_whole_run(training)


def go_on(folder):
    torch.manual_seed(3)
    model = sharded(net())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    training = Training(model, seed=99)
    training.load(folder)
    training.run(range(HALF, STEPS))
    assert_is_whole_run(training)


def assert_is_whole_run(training):
    alone = Training(net(), seed=5)
    alone.run(range(STEPS))
    assert_equal_weights(training.model, alone.model, rtol=1e-9, atol=1e-11)
    assert training.optimizer.steps == STEPS
    assert training.parts["estimator"].oracle_calls == alone.parts["estimator"].oracle_calls
    for t in (training, alone):
        t.parts["iterate"].swap()
    assert_equal_weights(training.model, alone.model, rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module", params=[sharded, DistributedDataParallel], ids=["fsdp", "ddp"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks")
    on_ranks(2, begin, folder, request.param)
    return folder


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_run_saved_on_two_ranks_goes_on_under_fsdp(saved, world_size):
    on_ranks(world_size, go_on, saved)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_run_saved_on_two_ranks_goes_on_without_torch_distributed(saved):
    training = Training(net(), seed=99)
    training.load(saved)
    training.run(range(HALF, STEPS))
    assert_is_whole_run(training)


def full_state():
    options = StateDictOptions(full_state_dict=True, cpu_offload=False)
    training = Training(sharded(net()), seed=5)
    training.run(range(HALF))
    training.optimizer.zero_grad()
    states = [get_optimizer_state_dict(training.model, training.optimizer, options=options)]
    weights = get_model_state_dict(training.model, options=options)
    buffer = states[0]["state"]["first.weight"]["momentum_buffer"]
    assert not isinstance(buffer, DTensor)
    assert buffer.shape == (5, 3)

    alone = net()  # into one process's optimizer, and back into a sharded one
    optimizer = sngd.SNGD(alone.parameters(), lr=LR, momentum=0.9)
    set_optimizer_state_dict(alone, optimizer, states[0])
    assert torch.equal(optimizer.state[alone.first.weight]["momentum_buffer"], buffer)
    again = Training(sharded(net()), seed=99)
    set_model_state_dict(again.model, weights, options=options)
    set_optimizer_state_dict(again.model, again.optimizer, states[0], options=options)
    assert torch.equal(whole(again.optimizer.state[again.model.first.weight]["momentum_buffer"]), buffer)
    assert again.optimizer.steps == HALF
    assert torch.equal(again.optimizer.generator.get_state(), training.optimizer.generator.get_state())


def test_full_state_dicts():
    on_ranks(2, full_state)


def nothing_moves():
    model = sharded(net())
    before = [whole(p) for p in model.parameters()]
    for make in (
        lambda: sngd.SNGD(model.parameters(), lr=LR),
        lambda: sngd.SNGD(model.parameters(), lr=torch.tensor(LR)),
        lambda: sngd.Perturbed(torch.optim.SGD(model.parameters(), lr=LR), std=1.0),
    ):
        optimizer = make()
        for _ in range(2):
            get_optimizer_state_dict(model, optimizer)
        assert all(torch.equal(whole(p), b) for p, b in zip(model.parameters(), before, strict=True))
        assert getattr(optimizer, "skipped_steps", 0) == 0
        assert getattr(optimizer, "steps", 0) == 0


def test_taking_a_state_dict_is_no_step():
    on_ranks(2, nothing_moves)


def a_whole_iterate():
    alone, model = net(), sharded(net())
    iterate = sngd.RandomIterate(alone.parameters())
    iterate.update()
    for load in (sngd.RandomIterate(model.parameters()), sngd.RandomIterate(alone.parameters())):
        load.load_state_dict(iterate.state_dict())
    iterate = sngd.RandomIterate(model.parameters())
    iterate.load_state_dict(load.state_dict())
    iterate.swap()
    assert_equal_weights(model, alone)
    with pytest.raises(
        ValueError, match=r"^a tensor of shape \(1,\) is a DTensor on .*, but wanted is a plain tensor: "
    ):
        load.load_state_dict(iterate.state_dict())


def test_a_random_iterate_saved_by_one_process_is_dealt_out():
    on_ranks(2, a_whole_iterate)
