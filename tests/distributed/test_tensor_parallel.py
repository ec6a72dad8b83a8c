"""Tensor parallelism, alone and with FSDP2; DTensors beside plain tensors, and on several meshes."""

import re

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from regression import FEW, LR, VARIANTS, assert_equal_weights, assert_trains_as_alone, counted
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import sngd
from sngd.norms.global_norm import global_norm

HIDDEN = 8  # torch wants it to be divisible
PLAN = {"first": ColwiseParallel(), "second": RowwiseParallel()}


def tensor_parallel():
    mesh = init_device_mesh("cpu", (2,))
    for options in VARIANTS.values():
        model, _ = assert_trains_as_alone(
            lambda model: parallelize_module(model, mesh, PLAN), options, hidden=HIDDEN, all_reduces=1
        )
    kinds = [type(p) for p in model.parameters()]
    assert kinds.count(DTensor) == 4  # sharded ones, and the replicated bias
    assert kinds.count(nn.Parameter) == 1  # model.scale


def test_sharded_replicated_and_plain_parameters_make_one_norm():
    on_ranks(2, tensor_parallel)


def two_dimensions():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def distribute(model):
        parallelize_module(model, mesh["tensor"], PLAN)
        fully_shard(model.second, mesh=mesh["data"])
        return fully_shard(model, mesh=mesh["data"])

    samples = slice(mesh.get_local_rank("data"), None, 2)
    for name in FEW:
        # model.scale is sharded on the data dimension's own mesh; the others, on the mesh of both
        assert_trains_as_alone(distribute, VARIANTS[name], hidden=HIDDEN, samples=samples, all_reduces=2)


def test_with_fsdp_there_is_one_sum_for_each_dimension():
    on_ranks(4, two_dimensions)


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, HIDDEN), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 4)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def sequence_parallel():
    torch.manual_seed(0)
    alone, model = Normalized().double(), Normalized().double()
    model.load_state_dict(alone.state_dict())
    plan = {
        "first": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "second": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    for m in (alone, model):
        optimizer = sngd.SNGD(m.parameters(), lr=LR, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    assert isinstance(model.norm.weight.grad.placements[0], Partial)
    assert_equal_weights(model, alone)


def test_partial_gradients_of_sequence_parallelism_are_summed():
    on_ranks(2, sequence_parallel)


def several_meshes():
    line = init_device_mesh("cpu", (4,), mesh_dim_names=("all",))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
    generator = torch.Generator().manual_seed(0)
    wholes = [torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(6)]
    placed = [
        wholes[0],
        distribute_tensor(wholes[1], line, [Shard(0)]),
        distribute_tensor(wholes[2], grid, [Shard(0), Shard(1)]),
        distribute_tensor(wholes[3], grid, [Replicate(), Shard(1)]),
        distribute_tensor(wholes[4], grid["row"], [Shard(1)]),
        distribute_tensor(wholes[5], grid, [Replicate(), Replicate()]),
    ]
    exact = torch.cat(wholes).norm().item()
    assert global_norm(placed).item() == pytest.approx(exact, rel=1e-12)
    params = [nn.Parameter(tensor) for tensor in placed]
    for param in params:
        param.grad = param.detach().clone()
    optimizer = sngd.SNGD(params, lr=LR)
    assert counted(optimizer) == 3  # all, row, column
    assert optimizer.last_norm.item() == pytest.approx(exact, rel=1e-12)
    norms = [torch.empty_like(optimizer.last_norm) for _ in range(4)]
    dist.all_gather(norms, optimizer.last_norm)
    assert all(torch.equal(norm, norms[0]) for norm in norms)  # to the last bit: replicas must not drift apart


def test_several_meshes_and_placements():
    on_ranks(4, several_meshes)


def refused():
    mesh = init_device_mesh("cpu", (2,))
    with pytest.raises(
        RuntimeError, match=r"^a tensor of shape \(4,\) has placements \(Partial\(sum\),\), but a parti"
    ):
        global_norm([DTensor.from_local(torch.ones(4), mesh, [Partial()])])

    param = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    param.grad = torch.ones(4)
    message = f"a parameter of shape (4,) is a DTensor on {mesh} but its gradient is a plain tensor"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        sngd.SNGD([param]).step()

    elsewhere = init_device_mesh("cpu", (1,))  # rank 0 alone
    param = nn.Parameter(DTensor.from_local(torch.ones(4), elsewhere, [Shard(0)], run_check=False))
    param.grad = param.detach().clone()
    if dist.get_rank() == 1:
        with pytest.raises(
            RuntimeError, match=r"^a tensor of shape \(.\,\) lies on .*, which this rank is not part of"
        ):
            sngd.SNGD([param]).step()


def test_what_has_no_global_norm_is_refused():
    on_ranks(2, refused)
