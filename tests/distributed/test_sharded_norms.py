"""Every norm on sharded weights: the same steps as one process, and no more messages than the norm needs."""

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import on_ranks
from regression import LR, assert_equal_weights, data, share, train, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import sngd
from sngd.norms import Norm, find_norm
from sngd.norms.norm import Weight

pytestmark = pytest.mark.slow

STEPS = 10


@dataclass(frozen=True)
class Largest(Norm):
    """A user's norm that says nothing of how it may be sharded: ‖W‖ = Σ|W_ij|, whose unit has one entry."""

    name: ClassVar[str] = "largest"

    def bare_unit(self, m):
        flat = m.reshape(*m.shape[:-2], -1)
        at = flat.abs().argmax(-1, keepdim=True)
        return torch.zeros_like(flat).scatter(-1, at, flat.gather(-1, at).sign()).reshape(m.shape)

    def bare_size(self, m):
        return m.abs().sum((-2, -1))

    def bare_kappa(self, rows, columns):
        return 1.0

    def factor(self, weight: Weight):
        return 1.0


NORMS = {
    "sign": "sign",
    "layer": "layer",
    "row": "row",
    "col": "col",
    "spectral": "spectral",
    "svd": "spectral(coefficients=svd)",
    "user's": Largest(),
}
VARIANTS = (
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "normalize": "momentum", "weight_decay": 0.01},
    {"max_scale": 0.05, "weight_decay": 0.01, "decoupled_weight_decay": True},
    {"momentum": 0.9, "foreach": False, "maximize": True},
)


class Net(nn.Module):
    """Linear layers and a convolution; of 5 rows and of 1 number, some ranks have little or nothing."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, hidden)
        self.middle = nn.Linear(hidden, hidden)
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.second = nn.Linear(2 * hidden, 2)
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.middle(torch.tanh(self.first(x))))
        return self.second(self.conv(h.unsqueeze(1)).flatten(1)) * self.scale


def net(hidden=5, dtype=torch.float64):
    torch.manual_seed(0)
    return Net(hidden).to(dtype)


def fsdp(model, **options):
    for layer in (model.first, model.middle):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def hsdp(model):
    return fsdp(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))


def tensor_parallel(model, mesh=None):
    mesh = mesh or init_device_mesh("cpu", (2,))
    return parallelize_module(model, mesh, {"first": ColwiseParallel(), "middle": RowwiseParallel()})


def two_dimensions(model):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return fsdp(tensor_parallel(model, mesh["tensor"]), mesh=mesh["data"])


def everything():
    return slice(None)


def half():
    return slice(dist.get_rank() // 2, None, 2)


def trains_as_alone(distribute, hidden, samples, pairs):
    for name, options in pairs:
        alone = net(hidden)
        expected = train(alone, sngd.SNGD(alone.parameters(), lr=LR, norm=NORMS[name], **options), steps=STEPS)
        model = distribute(net(hidden))
        optimizer = sngd.SNGD(model.parameters(), lr=LR, norm=NORMS[name], **options)
        norms = train(model, optimizer, samples(), steps=STEPS)
        torch.testing.assert_close(norms, expected, rtol=1e-10, atol=0, msg=lambda text, n=name: f"{n}: {text}")
        assert_equal_weights(model, alone, rtol=1e-10, atol=1e-12)


def each_with_some(offset):
    """Each norm with one of the variants, another one for each offset."""
    return [(name, VARIANTS[(i + offset) % len(VARIANTS)]) for i, name in enumerate(NORMS)]


@pytest.mark.parametrize(
    ("world_size", "distribute", "hidden", "samples", "pairs"),
    [
        (2, fsdp, 5, share, [*product(NORMS, VARIANTS)]),
        (3, fsdp, 5, share, each_with_some(0)),
        (4, fsdp, 5, share, each_with_some(1)),
        (4, hsdp, 5, share, each_with_some(2)),
        (2, tensor_parallel, 8, everything, each_with_some(3)),
        (4, two_dimensions, 8, half, each_with_some(4)),
    ],
    ids=["fsdp-2", "fsdp-3", "fsdp-4", "hsdp", "tensor-parallel", "fsdp-tensor-parallel"],
)
def test_trains_as_one_process(world_size, distribute, hidden, samples, pairs):
    on_ranks(world_size, trains_as_alone, distribute, hidden, samples, pairs, timeout=240)


SHAPES = ((7, 5), (5, 7), (3, 2), (8, 4, 3, 3), (6,), (1,), (), (1, 9), (9, 1), (4, 4))


def steps_of(norm, wholes, grads, place, **options):
    """Weights and dual norm after a step."""
    params = [nn.Parameter(place(w)) for w in wholes]
    for param, grad in zip(params, grads, strict=True):
        param.grad = place(grad)
    optimizer = sngd.SNGD(params, lr=LR, norm=norm, **options)
    optimizer.step()
    return [whole(p) for p in params], optimizer.last_norm.double().cpu()


def random_tensors(dtype, size=1.0):
    generator = torch.Generator().manual_seed(4)
    some = [[torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES] for _ in range(2)]
    return [w.to(dtype) for w in some[0]], [(size * g).to(dtype) for g in some[1]]


def placing(mesh, placements):
    def place(tensor):
        fit = [p if isinstance(p, Replicate) or p.dim < tensor.dim() else Replicate() for p in placements]
        return distribute_tensor(tensor.clone(), mesh, fit)

    return place


def many_placements():
    line = init_device_mesh("cpu", (4,))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
    flipped = init_device_mesh("cpu", (1, 4))
    wholes, grads = random_tensors(torch.float64)
    for norm in (*NORMS.values(), "row(table=True)", "col(table=True)", "spectral(scaled=max)", "layer(scaled=False)"):
        expected, expected_norm = steps_of(norm, wholes, grads, lambda t: t.clone())
        for mesh, placements in (
            (line, [Shard(0)]),
            (line, [Shard(1)]),
            (line, [Shard(2)]),
            (line, [Replicate()]),
            (grid, [Shard(0), Shard(0)]),
            (grid, [Shard(1), Shard(0)]),
            (grid, [Shard(0), Shard(1)]),
            (grid, [Shard(1), Replicate()]),
            (grid["column"], [Shard(1)]),
            (flipped, [Shard(0), Shard(1)]),
        ):
            stepped, size = steps_of(norm, wholes, grads, placing(mesh, placements))
            torch.testing.assert_close(size, expected_norm, rtol=1e-12, atol=0, msg=f"{norm} {placements}: {size}")
            torch.testing.assert_close(stepped, expected, rtol=1e-12, atol=1e-13)


def test_uneven_and_empty_shards_in_any_dimension():
    on_ranks(4, many_placements, timeout=120)


def sizes_and_dtypes():
    mesh = init_device_mesh("cpu", (2,))
    for (dtype, tolerance), norm in product(((torch.float32, 1e-5), (torch.bfloat16, 0.02)), NORMS.values()):
        for size in (1e-44, 1e-30, 1.0, 1e30):
            wholes, grads = random_tensors(dtype, size)
            wholes = [0 * w for w in wholes]  # so that nothing of the step is rounded away
            expected, expected_norm = steps_of(norm, wholes, grads, lambda t: t.clone())
            for placement in (Shard(0), Shard(1)):
                stepped, norm_here = steps_of(norm, wholes, grads, placing(mesh, [placement]))
                torch.testing.assert_close(norm_here, expected_norm, rtol=1e-5, atol=0)
                torch.testing.assert_close(stepped, expected, rtol=tolerance, atol=tolerance * LR)


def test_tiny_and_huge_gradients_and_narrow_dtypes():
    on_ranks(2, sizes_and_dtypes, timeout=120)
