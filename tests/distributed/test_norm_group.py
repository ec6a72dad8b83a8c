"""``norm_group``: sums over process groups, by param group; experts; what is saved, copied and refused."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import on_ranks
from regression import LR, assert_equal_weights, counted, net, train
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import sngd
from sngd.sharding import max_over_ranks, sum_over_ranks


def values_over_ranks():
    """Rank r of 4 holds 10^r and more; rows are (0, 1) and (2, 3), columns (0, 2) and (1, 3)."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("column", "row"))
    column, row = (mesh[name].get_group() for name in ("column", "row"))
    rank = dist.get_rank()
    own = torch.tensor(10.0**rank)
    in_row, in_column, everywhere = (
        [sum(10.0**r for r in ranks) for ranks in part]
        for part in ([(0, 1), (0, 1), (2, 3), (2, 3)], [(0, 2), (1, 3), (0, 2), (1, 3)], [range(4)] * 4)
    )
    same = torch.tensor(5.0)
    shards = (mesh, (1,))  # over the row, as the mesh says
    for values, total, largest in (
        ({(None, ()): same}, 5, 5),
        ({(None, (row,)): own}, in_row[rank], max(own.item(), 10.0 ** (rank ^ 1))),
        ({(None, (column, row)): own, (None, (column,)): same}, everywhere[rank] + 2 * 5, 1000),
        ({(None, (column,)): same, (None, (column, row)): own, (None, ()): same}, everywhere[rank] + 3 * 5, 1000),
        ({(shards, (column,)): own, (None, (column,)): same}, everywhere[rank] + 2 * 5, 1000),
        ({(shards, ()): own, (None, (column,)): same}, in_row[rank] + 2 * 5, max(own.item(), 10.0 ** (rank ^ 1))),
        ({(None, (dist.group.WORLD,)): -own}, -everywhere[rank], -1),
        ({(None, (column,)): own, (None, (row,)): own}, in_column[rank] + in_row[rank], None),
    ):
        assert sum_over_ranks(values).item() == total
        if largest is not None:
            assert max_over_ranks(values).item() == largest
    # a rank without rows' values goes along with one that has them
    unlike = {(None, (column, row)): own, (None, (column,)): same} if rank < 2 else {(None, (column,)): same}
    assert sum_over_ranks(unlike).item() == 11 + 2 * 5
    assert max_over_ranks(unlike).item() == 10
    with pytest.raises(
        ValueError, match=r"^norm_group has a process group of .*, whose DTensors are added up anyway: "
    ):
        sum_over_ranks({(shards, (row,)): own})


def test_sums_and_maxima_over_meshes_and_groups():
    on_ranks(4, values_over_ranks)


def bad_values():
    for bad, found in ((torch.nan, torch.inf), (torch.inf, torch.inf), (-torch.inf, 1.0)):
        for where in range(2):
            value = torch.tensor(bad if dist.get_rank() == where else 1.0)
            assert max_over_ranks({(None, (dist.group.WORLD,)): value}).item() == found
    value = torch.tensor(torch.nan if dist.get_rank() == 0 else 1.0)
    assert sum_over_ranks({(None, (dist.group.WORLD,)): value}).isnan()


def test_what_is_not_finite_reaches_all_ranks():
    on_ranks(2, bad_values)


class Experts(nn.Module):
    """A dense layer, and experts that each see the samples of one class; all of them, or only some."""

    def __init__(self, held):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(3, 4).double() for _ in range(5)]
        self.dense = layers[0]
        self.experts = nn.ModuleDict({str(i): layers[1 + i] for i in held})

    def forward(self, x):
        hidden = torch.tanh(self.dense(x))
        return sum(expert(x[int(i) :: 4]).mul(hidden[int(i) :: 4]).square().sum() for i, expert in self.experts.items())


def train_experts(model, optimizer):
    x = torch.randn(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    norms = []
    for _ in range(20):
        optimizer.zero_grad()
        model(x).backward()
        if dist.is_initialized() and len(model.experts) < 4:
            for p in model.dense.parameters():
                dist.all_reduce(p.grad)
        optimizer.step()
        norms.append(optimizer.last_norm.item())
    return norms


def parallel_experts():
    rank, size = dist.get_rank(), dist.get_world_size()
    alone, model = Experts(range(4)), Experts(range(rank, 4, size))
    reference = sngd.SNGD(alone.parameters(), lr=LR, momentum=0.9)
    groups = [
        {"params": model.dense.parameters()},
        {"params": model.experts.parameters(), "norm_group": dist.group.WORLD},
    ]
    optimizer = sngd.SNGD(groups, lr=LR, momentum=0.9)
    expected = train_experts(alone, reference)
    torch.testing.assert_close(train_experts(model, optimizer), expected, rtol=1e-9, atol=0)
    assert_equal_weights(model.dense, alone.dense)
    for i, expert in model.experts.items():
        assert_equal_weights(expert, alone.experts[i])
    assert counted(optimizer) == 1
    assert groups[1]["norm_group"] is dist.group.WORLD  # the caller's dict makes another optimizer
    assert sngd.SNGD(groups)._norm_groups.known() == [(), (dist.group.WORLD,)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_experts_count_once_and_dense_layers_too(world_size):
    on_ranks(world_size, parallel_experts)


def stages_of_experts():
    """Stages (0, 1) and (2, 3); the second has two experts on each of its ranks, and the first none."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "expert"))
    stage, expert = (mesh[name].get_group() for name in ("stage", "expert"))
    rank = dist.get_rank()
    dense, own = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [dense]}]
    if rank >= 2:
        groups.append({"params": [own], "norm_group": (stage, expert)})
    optimizer = sngd.SNGD(groups, lr=1.0, norm_group=stage)
    dense.grad = torch.full_like(dense, 1.0 if rank < 2 else 2.0)
    own.grad = torch.full_like(own, rank)
    optimizer.step()
    norm = (2 * (1 + 4) + 2 * (4 + 9)) ** 0.5
    assert optimizer.last_norm.item() == pytest.approx(norm, rel=1e-12)
    torch.testing.assert_close(dense.detach(), -dense.grad / norm)
    torch.testing.assert_close(own.detach(), -own.grad / norm * (rank >= 2))
    assert counted(optimizer) == (1 if rank < 2 else 2)
    norms = [torch.empty_like(optimizer.last_norm) for _ in range(4)]
    dist.all_gather(norms, optimizer.last_norm)
    assert all(torch.equal(norm, norms[0]) for norm in norms)  # to the last bit: replicas must not drift apart


def test_experts_in_one_stage_only():
    on_ranks(4, stages_of_experts)


def replicated_tensors_once():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))
    params = [
        nn.Parameter(distribute_tensor(torch.ones(4), mesh["data"], [placement]))
        for placement in (Replicate(), Shard(0))
    ]
    optimizer = sngd.SNGD(params, lr=1.0, norm_group=mesh["stage"].get_group())
    if dist.get_rank() < 2:
        params[0].grad = params[0].detach().clone()
    elif dist.get_rank() == 2:
        params[1].grad = DTensor.from_local(torch.ones(2), mesh["data"], [Shard(0)])
    optimizer.step()
    assert optimizer.last_norm.item() == pytest.approx(6**0.5)


def test_stages_with_gradients_of_different_kinds():
    on_ranks(4, replicated_tensors_once)


def idle_ranks():
    w = nn.Parameter(torch.ones(2))
    optimizer = sngd.SNGD([w], lr=1.0, norm_group=dist.group.WORLD)
    for step in range(3):
        w.grad = torch.full((2,), 3e-30) if dist.get_rank() == step else None
        optimizer.step()
    assert torch.allclose(w, torch.full((2,), 1 - 0.5**0.5))
    w.grad = torch.full((2,), torch.nan) if dist.get_rank() == 0 else torch.ones(2)
    before = w.detach().clone()
    optimizer.step()
    assert torch.equal(w, before)
    assert optimizer.skipped_steps == 1


def test_ranks_without_gradients_take_part_and_all_skip_together():
    on_ranks(3, idle_ranks)


def saved_and_copied(folder):
    world = dist.group.WORLD
    mine = net()

    def make(model, **options):
        groups = [
            {"params": [*model.first.parameters()], "norm_group": world},
            {"params": [*model.second.parameters()]},
        ]
        return sngd.SNGD(groups, lr=LR, momentum=0.9, **options)

    optimizer = make(mine)
    train(mine, optimizer, steps=3)
    state = optimizer.state_dict()
    assert pickle.loads(pickle.dumps(state))["param_groups"][0]["lr"] == LR
    torch.save(state, io.BytesIO())

    # a load leaves the process groups of the optimizer that loads
    other = sngd.SNGD(mine.first.parameters(), lr=LR, momentum=0.9)
    other.add_param_group({"params": [*mine.second.parameters()], "norm_group": [world]})
    other.load_state_dict(state)
    assert other._norm_groups.known() == [(), (world,)]
    assert [group["norm_group"] is None for group in other.param_groups] == [True, False]

    twin_model, twin = copy.deepcopy((mine, optimizer))
    assert twin._norm_groups.known() == [(world,), ()]
    for p in twin_model.parameters():  # copies have no gradients, and a norm of 0 is looked at twice
        p.grad = torch.ones_like(p)
    twin.param_groups[1]["norm_group"] = world  # taken out again, and of the copy alone
    assert counted(twin) == 1
    torch.save(twin.state_dict(), io.BytesIO())
    assert [*map(len, twin._norm_groups.known())] == [1, 1]
    assert optimizer._norm_groups.known() == [(world,), ()]
    assert train(twin_model, copy.deepcopy(optimizer), steps=1)

    # a pickle cannot have them, and its step would silently be another one
    lost = pickle.loads(pickle.dumps(optimizer))
    with pytest.raises(RuntimeError, match=r"^norm_group of this optimizer is lost, because pickles cannot hold"):
        lost.step()
    lost.param_groups[0]["norm_group"] = world
    for p in [p for group in lost.param_groups for p in group["params"]]:
        p.grad = torch.ones_like(p)
    assert counted(lost) == 1
    plain = pickle.loads(pickle.dumps(sngd.SNGD(mine.parameters())))
    plain.step()

    for options in (StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)):
        where = folder / f"{dist.get_rank()}-{options.flatten_optimizer_state_dict}"
        saved = get_optimizer_state_dict(mine, optimizer, options=options)
        dcp.save({"optimizer": saved}, checkpoint_id=where, no_dist=True)
        model = net()
        loading = make(model)
        loaded = {"optimizer": get_optimizer_state_dict(model, loading, options=options)}
        dcp.load(loaded, checkpoint_id=where, no_dist=True)
        set_optimizer_state_dict(model, loading, loaded["optimizer"], options=options)
        assert loading._norm_groups.known() == [(world,), ()]
        buffers = [o.state[m.first.weight]["momentum_buffer"] for o, m in ((optimizer, mine), (loading, model))]
        assert torch.equal(*buffers)
        model.load_state_dict(mine.state_dict())
        assert train(model, loading, steps=2) == train(*copy.deepcopy((mine, optimizer)), steps=2)


def test_process_groups_are_neither_saved_nor_lost(tmp_path):
    on_ranks(2, saved_and_copied, tmp_path)


def refused():
    w, v = (nn.Parameter(torch.ones(2)) for _ in range(2))
    world, first = dist.group.WORLD, dist.new_group([0])
    with pytest.raises(TypeError, match=r"^norm_group must be a process group or a sequence of process groups, got 3$"):
        sngd.SNGD([w], norm_group=3)
    with pytest.raises(TypeError, match=r"^norm_group must be a process group or a .*, got 'held by the optimizer"):
        sngd.SNGD([{**sngd.SNGD([w], norm_group=world).param_groups[0], "params": [w]}])
    with pytest.raises(ValueError, match=r"^norm_group has a process group twice, and would count its ranks twice: "):
        sngd.SNGD([w], norm_group=[world, world])
    if dist.get_rank() == 1:
        with pytest.raises(ValueError, match=r"^norm_group has a process group that this rank is not part of: give"):
            sngd.SNGD([w], norm_group=first)
    optimizer = sngd.SNGD([w], norm_group=world)
    with pytest.raises(TypeError, match=r"^norm_group must be"):
        optimizer.add_param_group({"params": [v], "norm_group": {world}})
    with pytest.raises(ValueError, match=r"some parameters appear in more than one"):
        optimizer.add_param_group({"params": [w]})
    optimizer.add_param_group({"params": [v], "norm_group": None})
    assert optimizer._norm_groups.known() == [(world,), ()]
    optimizer.param_groups[0]["norm_group"] = ()
    assert counted(optimizer) == 0


def test_what_is_no_norm_group_is_refused():
    on_ranks(2, refused)


def compiled():
    w = nn.Parameter(torch.ones(2))
    optimizer = sngd.SNGD([w], lr=torch.tensor(0.5), norm_group=dist.group.WORLD)
    step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        w.grad = torch.full((2,), 1.0 + dist.get_rank())
        step()
    torch.testing.assert_close(w.detach(), 1 - w.grad / 10**0.5)


def test_a_compiled_step_sums_too():
    on_ranks(2, compiled)
