"""Pipeline parallelism: each rank has a stage of the model, and ``norm_group`` makes the stages one."""

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from regression import FEW, LR, STEPS, VARIANTS, assert_equal_weights, data
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import sngd

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

CHUNKS = 4
WIDTH = 8


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, outputs)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(*(Block(3 if i == 0 else 5, 2 if i == 3 else 5) for i in range(4))).double()


def train_alone(options):
    model = blocks()
    optimizer = sngd.SNGD(model.parameters(), lr=LR, **options)
    x, y = data()
    norms = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        norms.append(float(optimizer.last_norm))
    return model, norms


def train_stage(stage, optimizer, group, samples=slice(None)):
    """Steps of this rank's stage; the stages of one pipeline are the ranks of a process group."""
    x, y = (tensor[samples] for tensor in data())
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    schedule = ScheduleGPipe(
        PipelineStage(stage, rank, size, torch.device("cpu"), group=group), CHUNKS, loss_fn=nn.functional.mse_loss
    )
    norms = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        schedule.step(*([x] if rank == 0 else []), **({"target": y} if rank == size - 1 else {}))
        optimizer.step()
        norms.append(float(optimizer.last_norm))
    return norms


def assert_trains_as_alone(options, pipe, wrap=lambda stage: stage, samples=slice(None), all_reduces=1):
    alone, expected = train_alone(options)
    each = 4 // dist.get_world_size(pipe)
    own = slice(dist.get_rank(pipe) * each, (dist.get_rank(pipe) + 1) * each)
    stage = wrap(blocks()[own])
    optimizer = sngd.SNGD(stage.parameters(), lr=LR, norm_group=pipe, **options)
    torch.testing.assert_close(train_stage(stage, optimizer, pipe, samples), expected, rtol=1e-9, atol=0)
    assert_equal_weights(stage, alone[own])
    with CommDebugMode() as communication:
        optimizer.step()
    assert communication.get_total_counts() == all_reduces


def stages(names):
    for name in names:
        assert_trains_as_alone(VARIANTS[name], dist.group.WORLD)


@pytest.mark.parametrize(("world_size", "names"), [(2, (*FEW, "capped", "capturable, sngm")), (4, FEW)])
def test_stages_train_as_one_process_with_one_all_reduce(world_size, names):
    on_ranks(world_size, stages, names)


def two_by_two(wrap, all_reduces, share):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "inner"))
    samples = slice(mesh.get_local_rank("inner"), None, 2) if share else slice(None)
    for name in FEW:
        assert_trains_as_alone(
            VARIANTS[name], mesh["stage"].get_group(), lambda stage: wrap(stage, mesh["inner"]), samples, all_reduces
        )


def replicated(stage, mesh):
    # with unused parameters to find, buckets stay: torch does not rebuild them over several forward passes
    return DistributedDataParallel(stage, process_group=mesh.get_group(), find_unused_parameters=True)


def sharded(stage, mesh):
    for block in stage:
        fully_shard(block, mesh=mesh)
    return fully_shard(stage, mesh=mesh)


def tensor_parallel(stage, mesh):
    for block in stage:
        parallelize_module(block, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})
    return stage


def of_two_kinds(stage, mesh):
    """The first stage holds DTensors, and the last plain tensors."""
    return tensor_parallel(stage, mesh) if stage[0].first.in_features == 3 else stage


@pytest.mark.parametrize(
    ("wrap", "all_reduces", "share"),
    [(replicated, 1, True), (sharded, 2, True), (tensor_parallel, 2, False)],
    ids=["ddp", "fsdp2", "tensor-parallel"],
)
def test_two_stages_of_two_processes(wrap, all_reduces, share):
    on_ranks(4, two_by_two, wrap, all_reduces, share)


def unlike_stages():
    first = dist.get_rank() < 2
    two_by_two(of_two_kinds, 2 if first else 1, False)


def test_a_stage_of_dtensors_and_one_without():
    on_ranks(4, unlike_stages)
