"""FSDP2: parameters, gradients and buffers are shards; only the norm hears of the other ranks."""

from itertools import product

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from regression import FEW, LR, VARIANTS, assert_equal_weights, assert_trains_as_alone, data, net, share, train, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import sngd
from sngd.norms.global_norm import global_norm


def sharded(model, **options):
    fully_shard(model.first, **options)
    return fully_shard(model, **options)


def on_one_mesh_dimension(names):
    for name in names:
        model, optimizer = assert_trains_as_alone(sharded, VARIANTS[name], samples=share(), all_reduces=1)
    assert dist.get_rank() == 0 or model.scale.to_local().numel() == 0  # a rank without a shard has been tested
    buffer = optimizer.state[model.first.weight]["momentum_buffer"]
    assert isinstance(buffer, DTensor)
    assert buffer.placements == model.first.weight.placements


@pytest.mark.parametrize(("world_size", "names"), [(2, tuple(VARIANTS)), (3, FEW), (4, FEW)])
def test_trains_as_one_process_with_one_all_reduce(world_size, names):
    on_ranks(world_size, on_one_mesh_dimension, names)


def hybrid():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for name in FEW:
        assert_trains_as_alone(lambda model: sharded(model, mesh=mesh), VARIANTS[name], samples=share(), all_reduces=1)


def test_hybrid_sharding_sums_over_the_sharding_dimension_alone():
    on_ranks(4, hybrid)


def one_process():
    for name in FEW:
        assert_trains_as_alone(sharded, VARIANTS[name], samples=share(), all_reduces=0)


def test_a_mesh_of_one_process_needs_no_sum():
    on_ranks(1, one_process)


def low_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(3)
        wholes = [100 * torch.randn(size, generator=generator) for size in (70_001, 3, 1)]
        tensors = [tensor.to(dtype) for tensor in wholes]
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        parts = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in tensors]
        exact = sum(tensor.double().square().sum() for tensor in tensors).sqrt().item()
        assert global_norm(parts).item() == pytest.approx(exact, rel=1e-6)


def test_the_norm_of_shards_is_accumulated_wide():
    on_ranks(3, low_precision)


def mixed_precision():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(net(dtype=torch.float32), mp_policy=policy)
    before = [whole(p) for p in model.parameters()]
    train(model, sngd.SNGD(model.parameters(), lr=LR), share(), steps=1)
    moved = [whole(p) - b for p, b in zip(model.parameters(), before, strict=True)]
    assert global_norm(moved).item() == pytest.approx(LR, rel=1e-5)


def test_mixed_precision_keeps_the_length_of_the_step():
    on_ranks(2, mixed_precision)


def small_steps_of_bfloat16():
    model = sharded(net(dtype=torch.bfloat16))
    optimizer = sngd.SNGD(model.parameters(), lr=1e-3, kahan_sum=True)
    before = [whole(p).float() for p in model.parameters()]
    for _ in range(200):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    moved = [whole(p).float() - b for p, b in zip(model.parameters(), before, strict=True)]
    assert global_norm(moved).item() == pytest.approx(0.2, rel=0.02)
    buffer = optimizer.state[model.first.weight]["kahan_buffer"]
    assert buffer.placements == model.first.weight.placements


def test_kahan_summation_of_shards():
    on_ranks(2, small_steps_of_bfloat16)


def tiny_huge_and_bad_gradients():
    for size, capturable in product((1e-44, 1e-30, 1e35), (False, True)):
        model = sharded(net(dtype=torch.float32))
        optimizer = sngd.SNGD(model.parameters(), lr=LR, momentum=0.9, capturable=capturable)
        before = [whole(p) for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.full_like(p, size)
        optimizer.step()
        moved = [whole(p) - b for p, b in zip(model.parameters(), before, strict=True)]
        assert global_norm(moved).item() == pytest.approx(LR, rel=1e-4)

        for bad in (torch.nan, torch.inf, 0.0):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            if dist.get_rank() == 1:  # bad on one rank only: all of them skip
                model.first.weight.grad.to_local().fill_(bad)
            before = [whole(p) for p in model.parameters()]
            optimizer.step()
            assert all(torch.equal(whole(p), b) for p, b in zip(model.parameters(), before, strict=True))
        assert optimizer.skipped_steps == 3


def test_tiny_gradients_count_and_all_ranks_skip_together():
    on_ranks(2, tiny_huge_and_bad_gradients)


def a_gradient_on_one_rank_only():
    mesh = init_device_mesh("cpu", (2,))
    experts = [nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)])) for _ in range(2)]
    optimizer = sngd.SNGD(experts, lr=1.0)
    if dist.get_rank() == 0:
        experts[0].grad = DTensor.from_local(torch.ones(2), mesh, [Shard(0)])
    optimizer.step()
    expected = torch.ones(2) - (0.5**0.5 if dist.get_rank() == 0 else 0)
    torch.testing.assert_close(experts[0].to_local().detach(), expected)
    assert optimizer.last_norm.item() == pytest.approx(2**0.5)


def test_a_rank_without_gradients_joins_the_sum():
    on_ranks(2, a_gradient_on_one_rank_only)


def frozen_and_groups():
    def groups(model):
        model.second.requires_grad_(False)
        return [{"params": model.first.parameters(), "lr": 0.1}, {"params": [*model.second.parameters(), model.scale]}]

    alone = net()
    train(alone, sngd.SNGD(groups(alone), lr=LR, momentum=0.5))
    model = sharded(net())
    train(model, sngd.SNGD(groups(model), lr=LR, momentum=0.5), share())
    assert_equal_weights(model, alone)


def test_param_groups_and_frozen_layers():
    on_ranks(2, frozen_and_groups)


def accumulated():
    alone = net()
    train(alone, sngd.SNGD(alone.parameters(), lr=LR), steps=5)
    model = sharded(net())
    optimizer = sngd.SNGD(model.parameters(), lr=LR)
    x, y = (tensor[share()] for tensor in data())
    for _ in range(5):
        optimizer.zero_grad()
        for part, last in ((slice(0, 6), False), (slice(6, 12), True)):
            model.set_requires_gradient_sync(last)
            (nn.functional.mse_loss(model(x[part]), y[part]) / 2).backward()
        optimizer.step()
    assert_equal_weights(model, alone)


def test_gradient_accumulation():
    on_ranks(2, accumulated)


def scaled():
    model, scaled_model = sharded(net(dtype=torch.float32)), sharded(net(dtype=torch.float32))
    x, y = (tensor[share()] for tensor in data(torch.float32))
    optimizers = [sngd.SNGD(m.parameters(), lr=LR) for m in (model, scaled_model)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(5):
        train(model, optimizers[0], share(), steps=1) if step != 2 else None
        optimizers[1].zero_grad()
        loss = nn.functional.mse_loss(scaled_model(x), y)
        scaler.scale(loss * (torch.inf if step == 2 and dist.get_rank() == 0 else 1)).backward()
        scaler.step(optimizers[1])
        scaler.update()
    assert optimizers[1].skipped_steps == 1
    assert scaler.get_scale() == 2.0**9
    for ours, theirs in zip(scaled_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), whole(theirs), rtol=1e-5, atol=1e-6)


def test_a_grad_scaler_skips_on_all_ranks():
    on_ranks(2, scaled)


def flattened():
    model = FullyShardedDataParallel(net(), use_orig_params=True, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^params has one of shape .* that FullyShardedDataParallel flattened, which"):
        sngd.SNGD(model.parameters())


def test_the_first_fsdp_is_refused():
    on_ranks(1, flattened)


def beside_a_plain_weight():
    """Steps that need little else, which a single process takes in a short way."""
    mesh = init_device_mesh("cpu", (2,))
    for options in ({"weight_decay": 0.1}, {"max_scale": 0.01}, {"momentum": 0.9}):
        plain = nn.Parameter(torch.ones(3))
        shards = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
        optimizer = sngd.SNGD([plain, shards], lr=0.1, **options)
        for _ in range(2):
            plain.grad = torch.ones(3)
            shards.grad = None
            if dist.get_rank() == 0:
                shards.grad = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)])
            optimizer.step()
        norms = [torch.zeros(()) for _ in range(2)]
        dist.all_gather(norms, optimizer.last_norm.float())
        assert norms[0] == norms[1] > 2.9  # of 3 and 6 entries of about 1


def test_a_rank_without_a_gradient_of_its_shard_takes_part_in_the_norm():
    on_ranks(2, beside_a_plain_weight)
