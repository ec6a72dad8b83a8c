"""Every norm on sharded weights: the same steps as one process, and no more messages than the norm needs."""

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
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import sngd
from sngd.norms import Norm, Row, find_norm
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

    def bare_kappa(self, rows, columns):  # noqa: ARG002
        return 1.0

    def factor(self, weight: Weight):  # noqa: ARG002
        return 1.0


@dataclass(frozen=True)
class Peaks(Row):
    """A user's norm made of ``row``, whose unit needs more of the row than its 2-norm."""

    def bare_unit(self, m):
        return super().bare_unit(m) * (m.abs() == m.abs().amax(-1, keepdim=True))


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
        (4, two_dimensions, 6, half, each_with_some(4)),
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
    for norm in ("sign", "layer", "row", "col(table=True)", "spectral(scaled=max)", Largest(), Peaks()):
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
                stepped, norm_here = steps_of(norm, wholes, grads, placing(mesh, [placement]), kahan_sum=True)
                torch.testing.assert_close(norm_here, expected_norm, rtol=1e-5, atol=0)
                torch.testing.assert_close(stepped, expected, rtol=tolerance, atol=tolerance * LR)


def test_tiny_and_huge_gradients_and_narrow_dtypes():
    on_ranks(2, sizes_and_dtypes, timeout=120)


def messages(norm, mesh, placements, shape=(8, 6), **options):
    """Collectives of the second step of several equal tensors, by name."""
    params = [nn.Parameter(distribute_tensor(torch.randn(shape), mesh, placements)) for _ in range(3)]
    optimizer = sngd.SNGD(params, lr=LR, norm=norm, **options)
    for _ in range(2):
        for p in params:
            p.grad = p.detach().clone()
        with CommDebugMode() as communication:
            optimizer.step()
    names = {"allreduce_": "reduce", "alltoall_base_": "exchange"}
    counts = {str(operation): count for operation, count in communication.get_comm_counts().items() if count}
    return {names[operation.removeprefix("c10d.")]: count for operation, count in counts.items()}


def few_messages():
    line = init_device_mesh("cpu", (4,))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
    one, two = {"reduce": 1}, {"reduce": 2}  # for the sums of dual norms, one for each mesh dimension that shards
    normalized, gathered = {"reduce": 3}, {"reduce": 1, "exchange": 2}
    for norm, mesh, placements, expected in (
        ("sign", line, [Shard(0)], one),
        ("sign", grid, [Shard(0), Shard(1)], two),
        ("row", line, [Shard(0)], one),
        ("row", line, [Shard(1)], normalized),
        ("row", grid, [Shard(0), Shard(1)], {"reduce": 4}),
        ("row", grid, [Replicate(), Shard(0)], one),
        ("col", line, [Shard(0)], normalized),
        ("col", line, [Shard(1)], one),
        ("layer", line, [Shard(1)], normalized),
        ("layer", grid, [Shard(0), Shard(1)], {"reduce": 6}),
        ("layer", grid, [Replicate(), Shard(1)], normalized),
        ("spectral", line, [Shard(0)], gathered),
        ("spectral", grid, [Shard(0), Shard(1)], {"reduce": 2, "exchange": 4}),
        ("spectral", grid, [Shard(0), Replicate()], gathered),
        ("spectral", grid, [Replicate(), Replicate()], {}),
        (Largest(), line, [Shard(0)], gathered),
    ):
        for foreach in (False, True):
            assert messages(norm, mesh, placements, foreach=foreach) == expected, (norm, placements)


def test_no_norm_sends_more_than_it_needs():
    on_ranks(4, few_messages)


@dataclass(frozen=True)
class Counting(Largest):
    """Appends the shapes that this rank computes units of."""

    computed: ClassVar[list] = []

    def units(self, vs):
        self.computed.extend(tuple(v.shape) for v in vs)
        return super().units(vs)


def shared_work():
    mesh = init_device_mesh("cpu", (2, 2))
    for placements, each in (([Shard(0), Shard(1)], 2), ([Replicate(), Shard(0)], 4), ([Replicate()] * 2, 8)):
        Counting.computed.clear()
        messages(Counting(), mesh, placements, shape=(8, 8))
        everyone = [None] * 4
        dist.all_gather_object(everyone, len(Counting.computed))
        assert sum(everyone) == {2: 6, 4: 12, 8: 24}[each]  # two steps of three tensors, by each replica
        assert max(everyone) <= {2: 2, 4: 4, 8: 6}[each]


def test_ranks_share_the_work_and_replicas_repeat_it():
    on_ranks(4, shared_work)


def fallback():
    """Rows 0, 2 and 1, 3: no contiguous blocks."""
    mesh = init_device_mesh("cpu", (2,))
    wholes, grads = ([torch.randn(4, 3, generator=torch.Generator().manual_seed(i)).double()] for i in range(2))

    def place(tensor):
        local = tensor[dist.get_rank() :: 2].clone()
        return DTensor.from_local(local, mesh, [_StridedShard(0, split_factor=2)], run_check=False)

    for norm in NORMS.values():
        expected, expected_norm = steps_of(norm, wholes, grads, lambda t: t.clone())
        stepped, size = steps_of(norm, wholes, grads, place)
        torch.testing.assert_close(size, expected_norm, rtol=1e-12, atol=0)
        torch.testing.assert_close(stepped, expected, rtol=1e-12, atol=1e-13)


def test_placements_without_contiguous_blocks_are_gathered_everywhere():
    on_ranks(2, fallback)


def absent_and_bad_gradients():
    mesh = init_device_mesh("cpu", (2,))
    rank = dist.get_rank()
    for norm, foreach, up in product(NORMS.values(), (False, True), (False, True)):
        params = [nn.Parameter(distribute_tensor(torch.zeros(4, 3), mesh, [Shard(1)])) for _ in range(3)]
        options = {"norm": norm, "foreach": foreach, "maximize": up}
        optimizer = sngd.SNGD([{"params": params[:1]}, {"params": params[1:]}], lr=1.0, **options)
        grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        for p in params[:2]:  # the first group has no gradient on rank 0, and the third parameter on no rank
            p.grad = distribute_tensor(grad.clone(), mesh, [Shard(1)])
        if rank == 0:
            params[0].grad = None
        optimizer.step()
        first = grad.clone()
        first[:, :2] = 0
        u = [find_norm(norm).unit(g) * (1 if up else -1) for g in (first, grad)]
        placed = [distribute_tensor(unit, mesh, [Shard(1)]).to_local() for unit in u]
        torch.testing.assert_close(params[0].to_local().detach(), placed[0] * rank, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(params[1].to_local().detach(), placed[1], rtol=1e-5, atol=1e-6)
        assert not whole(params[2]).any()

        for bad in (torch.nan, torch.inf, 0.0):
            for p in params:
                p.grad = torch.zeros_like(p)
            if rank == 1:  # bad on one rank only: all of them skip
                params[0].grad.to_local().fill_(bad)
            before = [whole(p) for p in params]
            optimizer.step()
            assert all(torch.equal(whole(p), b) for p, b in zip(params, before, strict=True))
        assert optimizer.skipped_steps == 3


def test_a_rank_without_gradients_takes_part_and_all_ranks_skip_together():
    on_ranks(2, absent_and_bad_gradients)


def overflow():
    """g + λw is finite, but not its sum with momentum, on one rank only."""
    mesh = init_device_mesh("cpu", (2,))
    most = torch.finfo(torch.float32).max
    for norm in NORMS.values():
        grad = torch.full((4, 3), 1e30)
        grad[0] = 0.9 * most
        weight = torch.zeros(4, 3)
        weight[0] = 0.9 * most
        results = []
        for place in (lambda t: t.clone(), placing(mesh, [Shard(0)])):
            w = nn.Parameter(place(weight))
            w.grad = place(grad)
            optimizer = sngd.SNGD([w], lr=1.0, norm=norm, weight_decay=1.0)
            optimizer.step()
            assert optimizer.skipped_steps == 0
            results.append((whole(w), optimizer.last_norm.double()))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_sums_beyond_the_range_on_one_rank_are_scaled_on_all():
    on_ranks(2, overflow)


def scaled():
    """A step of which one rank's loss is inf is skipped by all; the loss scale does not reach the others."""
    for norm in ("sign", "layer", "spectral"):
        model, scaled_model = fsdp(net(dtype=torch.float32)), fsdp(net(dtype=torch.float32))
        x, y = (tensor[share()] for tensor in data(torch.float32))
        optimizers = [sngd.SNGD(m.parameters(), lr=LR, norm=norm, weight_decay=0.1) for m in (model, scaled_model)]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(4):
            norms = train(model, optimizers[0], share(), steps=1) if step != 2 else [None]
            optimizers[1].zero_grad()
            loss = nn.functional.mse_loss(scaled_model(x), y)
            scaler.scale(loss * (torch.inf if step == 2 and dist.get_rank() == 0 else 1)).backward()
            scaler.step(optimizers[1])
            scaler.update()
            assert norms[0] in (None, pytest.approx(optimizers[1].last_norm.item(), rel=1e-4))
        assert optimizers[1].skipped_steps == 1
        for ours, theirs in zip(scaled_model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(whole(ours), whole(theirs), rtol=1e-4, atol=1e-4)


def test_a_grad_scaler():
    on_ranks(2, scaled)


def checked(optimizer, params, expected, expected_norm):
    optimizer.step()
    assert optimizer.last_norm.item() == pytest.approx(expected_norm, rel=1e-12)
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(whole(p), e, rtol=1e-12, atol=1e-13)


def balls_in_one_stage():
    """Ranks 0 and 1 have an l2 group, ranks 2 and 3 balls, sharded over their own mesh dimension."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "inner"))
    stage, inner = mesh["stage"].get_group(), mesh["inner"]
    wholes, grads = random_tensors(torch.float64)
    first, second = slice(0, 4), slice(4, None)
    for norm, size in product(NORMS.values(), (1.0, 1e-300)):
        scaled = [size * g for g in grads]
        alone = [nn.Parameter(w.clone()) for w in wholes]
        for p, g in zip(alone, scaled, strict=True):
            p.grad = g.clone()
        reference = sngd.SNGD([{"params": alone[first], "norm": "l2"}, {"params": alone[second]}], lr=LR, norm=norm)
        reference.step()
        own = first if dist.get_rank() < 2 else second
        place = placing(inner, [Shard(0)])
        params = [nn.Parameter(place(w)) for w in wholes[own]]
        for p, g in zip(params, scaled[own], strict=True):
            p.grad = place(g)
        optimizer = sngd.SNGD(params, lr=LR, norm="l2" if own is first else norm, norm_group=stage)
        checked(optimizer, params, [p.detach() for p in alone[own]], reference.last_norm.item())


def test_stages_with_and_without_balls():
    on_ranks(4, balls_in_one_stage, timeout=120)


def groups_of(model):
    return [
        {"params": [model.first.weight], "norm": "row"},
        {"params": [model.middle.weight, model.second.weight], "norm": "spectral(coefficients=svd)"},
        {"params": [model.conv.weight], "norm": "col"},
        {"params": [model.first.bias, model.middle.bias, model.conv.bias, model.second.bias], "norm": "sign"},
        {"params": [model.scale], "norm": "l2"},
    ]


def optimizer_of(model):
    return sngd.SNGD(groups_of(model), lr=LR, momentum=0.9)


def save(folder):
    model = fsdp(net())
    optimizer = optimizer_of(model)
    train(model, optimizer, share(), steps=5)
    optimizer.zero_grad()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)


def load(folder, wrap, samples):
    alone = net()
    train(alone, optimizer_of(alone), steps=STEPS)
    model = wrap(net())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    before = [whole(p) for p in model.parameters()]
    optimizer = optimizer_of(model)
    model_state, optimizer_state = get_state_dict(model, optimizer)  # torch takes a step of zeros to make the state
    assert all(torch.equal(whole(p), b) for p, b in zip(model.parameters(), before, strict=True))
    assert optimizer.skipped_steps == 0
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(model, optimizer, samples, steps=STEPS - 5)
    assert_equal_weights(model, alone, rtol=1e-10, atol=1e-12)


def load_on_ranks(folder):
    load(folder, fsdp, share())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_norms_by_group_saved_on_two_ranks_go_on_on_three_and_on_one(tmp_path):
    on_ranks(2, save, tmp_path)
    on_ranks(3, load_on_ranks, tmp_path)
    load(tmp_path, lambda model: model, slice(None))


def compiled():
    mesh = init_device_mesh("cpu", (2,))
    wholes, grads = ([torch.randn(4, 3, generator=torch.Generator().manual_seed(i))] for i in range(2))
    for name, placement in product(("sign", "layer", "row", "spectral"), (Shard(0), Shard(1))):
        expected, _ = steps_of(name, wholes, grads, lambda t: t.clone())
        w = nn.Parameter(placing(mesh, [placement])(wholes[0]))
        w.grad = placing(mesh, [placement])(grads[0])
        optimizer = sngd.SNGD([w], lr=torch.tensor(LR), norm=name)
        step = torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)
        if name == "sign":
            step()
            torch.testing.assert_close(whole(w), expected[0], rtol=1e-5, atol=1e-5)
            continue
        before = whole(w).clone()
        with pytest.raises(
            torch._dynamo.exc.Unsupported, match=f"torch.compile cannot take a step with norm {name} on sharded weights"
        ):
            step()
        assert torch.equal(whole(w), before)
        optimizer.step()
        torch.testing.assert_close(whole(w), expected[0], rtol=1e-5, atol=1e-5)


def test_only_steps_without_exchanges_are_compiled():
    on_ranks(2, compiled, timeout=200)
