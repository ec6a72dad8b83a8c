"""Noise, random iterates and variance-reduced gradients under DDP and FSDP2: as in one process, alike on all ranks."""

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from regression import LR, STEPS, N, assert_equal_weights, data, net, share, whole
from test_tensor_parallel import PLAN
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

import sngd
from sngd import stages
from sngd.estimators import SCSG, SVRG, Full, MiniBatch, Spider


def sharded(model):
    fully_shard(model.first)
    return fully_shard(model)


def with_bucket_views(model):
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


WRAPPERS = {"ddp": DistributedDataParallel, "ddp with bucket views": with_bucket_views, "fsdp": sharded}


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def seeded_by_rank(model):
    """Many scripts do that, for their data."""
    torch.manual_seed(100 + dist.get_rank())
    return model


def assert_same_on_all_ranks(value):
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    assert all(others == value for others in everyone)


# --- noise


def perturbed(model, samples, **options):
    inner = sngd.SNGD(model.parameters(), lr=LR, momentum=0.9)
    optimizer = sngd.Perturbed(inner, std=0.01, every=3, **options)
    x, y = (tensor[samples] for tensor in data())
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return model


def noise_as_alone():
    alone = perturbed(net(hidden=8), slice(None), generator=generator())
    for wrap in WRAPPERS.values():
        assert_equal_weights(perturbed(wrap(net(hidden=8)), share(), generator=generator()), alone)
    parallel = parallelize_module(net(hidden=8), init_device_mesh("cpu", (dist.get_world_size(),)), PLAN)
    assert_equal_weights(perturbed(parallel, slice(None), generator=generator()), alone)


def test_noise_does_not_depend_on_how_parameters_are_distributed():
    on_ranks(2, noise_as_alone)


def noise_on_two_dimensions():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    alone = perturbed(net(hidden=8), slice(None), generator=generator())
    model = parallelize_module(net(hidden=8), mesh["tensor"], PLAN)
    fully_shard(model, mesh=mesh["data"])
    assert_equal_weights(perturbed(model, slice(mesh.get_local_rank("data"), None, 2), generator=generator()), alone)


def test_noise_on_two_mesh_dimensions():
    on_ranks(4, noise_on_two_dimensions)


def own_noise():
    model = perturbed(seeded_by_rank(DistributedDataParallel(net())), share())
    assert_same_on_all_ranks(nn.utils.parameters_to_vector(model.parameters()).tolist())


def test_replicas_seeded_differently_get_the_same_noise():
    on_ranks(2, own_noise)


# --- random iterate and stages


def drawn(model, samples, plan, **options):
    """The random iterate of a stagewise run, and the learning rates that it had."""
    optimizer = sngd.SNGD(model.parameters(), lr=9.0)
    scheduler = sngd.StagewiseLR(optimizer, plan)
    iterate = sngd.RandomIterate(model.parameters(), **options)
    x, y = (tensor[samples] for tensor in data())
    rates = []
    for step in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        iterate.update(plan.iterate_weight(step))
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return iterate, rates


def iterates_as_alone():
    plan = stages.multistep(0.1, STEPS, (8, 14), steps_per_epoch=1)
    alone = net()
    iterate, expected = drawn(alone, slice(None), plan, generator=generator())
    iterate.swap()
    for wrap in WRAPPERS.values():
        model = wrap(net())
        iterate, rates = drawn(model, share(), plan, generator=generator())
        assert rates == expected
        last = [whole(p) for p in model.parameters()]
        with iterate.swapped():
            assert_equal_weights(model, alone)
        assert all(torch.equal(whole(p), w) for p, w in zip(model.parameters(), last, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_random_iterate_of_a_stagewise_run(world_size):
    on_ranks(world_size, iterates_as_alone)


def own_draws():
    for wrap in WRAPPERS.values():
        model = seeded_by_rank(wrap(net()))
        iterate = sngd.RandomIterate(model.parameters())
        kept = []
        for step in range(30):
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(step)
            iterate.update()
            kept.append(whole(iterate.state_dict()["iterate"][0]).flatten()[0].item())
        assert_same_on_all_ranks(kept)


def test_ranks_seeded_differently_draw_the_same_iterate():
    on_ranks(2, own_draws)


def evaluated():
    x, _ = data()
    model = sharded(net())
    iterate = sngd.RandomIterate(model.parameters())
    iterate.update()
    with torch.no_grad():
        first = model(x)
        model.reshard()
        for p in model.parameters():
            p.mul_(2)
        second = model(x)
        model.reshard()
        with iterate.swapped():
            assert torch.equal(model(x), first)
            model.reshard()
        assert torch.equal(model(x), second)
    assert not torch.equal(first, second)


def test_evaluation_at_the_random_iterate_under_fsdp():
    on_ranks(2, evaluated)


# --- estimators


def estimators(model, ranks):
    """Each with the sizes that one of ``ranks`` ranks needs, and a period that is drawn alike."""
    sizes = {"anchor_batch_size": 12 // ranks, "batch_size": 6 // ranks, "chunk_size": 4}
    return {
        "mini-batch": MiniBatch(model, 6 // ranks),
        "full": Full(model, N // ranks, chunk_size=5),
        "spider": Spider(model, period=4, **sizes),
        "svrg": SVRG(model, n=N // ranks, batch_size=6 // ranks, period=4, chunk_size=5),
        "scsg": SCSG(model, generator=generator(), **sizes),
    }


def estimated(name, model, ranks, rank, bad=()):
    """Oracle calls of a run whose batches are dealt out to ``ranks`` ranks; in ``bad`` steps one of rank 0's is nan."""
    estimator = estimators(model, ranks)[name]
    optimizer = sngd.SNGD(model.parameters(), lr=LR)
    x, y = data()
    draws = generator(7)
    for step in range(STEPS):
        size = estimator.next_batch_size
        batch = torch.arange(N) if size is None else torch.randint(N, (size * ranks,), generator=draws)
        seen = x.clone()
        if step in bad:
            seen[batch[0]] = torch.nan
        estimator.estimate(lambda i, x=seen: nn.functional.mse_loss(model(x[i]), y[i]), batch[rank::ranks])
        optimizer.step()
    return estimator.oracle_calls


def estimates_as_alone():
    ranks, rank = dist.get_world_size(), dist.get_rank()
    for name in estimators(net(), ranks):
        alone = net()
        calls = estimated(name, alone, 1, 0)
        for wrap in WRAPPERS.values():
            model = wrap(net())
            assert ranks * estimated(name, model, ranks, rank) == calls
            assert_equal_weights(model, alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("world_size", [2, 3])
def test_estimators_train_as_in_one_process(world_size):
    on_ranks(world_size, estimates_as_alone)


def bad_batches_as_alone():
    ranks, rank = dist.get_world_size(), dist.get_rank()
    for name in ("spider", "svrg", "scsg"):
        alone, bad = net(), {0, 7}
        calls = estimated(name, alone, 1, 0, bad)
        assert all(p.isfinite().all() for p in alone.parameters())
        for wrap in WRAPPERS.values():
            model = wrap(net())
            assert ranks * estimated(name, model, ranks, rank, bad) == calls
            assert_equal_weights(model, alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_take_an_anchor_after_a_bad_batch(world_size):
    on_ranks(world_size, bad_batches_as_alone)


def bad_shards():
    model = sharded(net(hidden=8))
    for bad in range(dist.get_world_size()):
        spider = Spider(model, anchor_batch_size=4, batch_size=2, period=9)
        spider.estimate(lambda x: model(x).square().mean(), data()[0][:4])
        assert spider.next_batch_size == 2
        if dist.get_rank() == bad:
            spider._gradient[1].to_local()[0] = torch.inf  # of the first layer's weight
        spider._note_failure()
        assert spider.next_batch_size == 4


def test_what_one_rank_alone_sees_in_its_shard_all_know():
    on_ranks(2, bad_shards)


def refused_shards():
    model = sharded(net(hidden=8))
    spider = Spider(model, anchor_batch_size=4, batch_size=2, period=9)
    spider.estimate(lambda x: model(x).square().mean(), data()[0][:4])
    state = spider.state_dict()
    scale, weight, *others = state["reference"]
    message = r"^state_dict's reference must have shape \(8, 3\) for parameter 'first.weight', got \(1, 3\)$"
    for wrong in (weight[:1], torch.ones(1, 3, dtype=weight.dtype)):
        with pytest.raises(ValueError, match=message):
            spider.load_state_dict({**state, "reference": [scale, wrong, *others]})
    spider.load_state_dict({**state, "reference": [whole(t) for t in state["reference"]]})
    spider.estimate(lambda x: model(x).square().mean(), data()[0][:2])


def test_a_sharded_state_of_another_shape_is_refused():
    on_ranks(2, refused_shards)


def estimates_of_tensor_parallel_models():
    alone, mesh = net(hidden=8), init_device_mesh("cpu", (2,))
    for name in ("spider", "svrg"):
        alone, model = net(hidden=8), parallelize_module(net(hidden=8), mesh, PLAN)
        assert estimated(name, alone, 1, 0) == estimated(name, model, 1, 0)
        assert_equal_weights(model, alone, rtol=1e-8, atol=1e-10)


def test_estimators_of_tensor_parallel_models():
    on_ranks(2, estimates_of_tensor_parallel_models)


class Chancy(nn.Module):
    """Two samples' gradients are hardly the same twice, unless masks are; running statistics move."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))

    def forward(self, x):
        return self.layers(x)


def same_chance():
    x, y = (tensor[share()] for tensor in data())
    for wrap in (DistributedDataParallel, fully_shard):
        torch.manual_seed(0)
        model = seeded_by_rank(wrap(Chancy().double()))
        spider = Spider(model, anchor_batch_size=8, batch_size=4, period=9)

        def loss(rows, model=model):
            return nn.functional.mse_loss(model(x[rows]), y[rows])

        spider.estimate(loss, torch.arange(8))
        anchor = [whole(p.grad) for p in model.parameters()]
        for _ in range(3):  # nothing moves, so every difference is nothing
            spider.estimate(loss, torch.arange(4))
            assert all(torch.equal(whole(p.grad), g) for p, g in zip(model.parameters(), anchor, strict=True))
        assert dict(model.named_buffers()).popitem()[1] == 4  # batches tracked, of seven


def test_differences_see_the_same_masks_on_each_rank():
    on_ranks(2, same_chance)


def own_periods():
    estimator = SCSG(seeded_by_rank(net()), anchor_batch_size=12, batch_size=3)
    assert_same_on_all_ranks([estimator._draw_period() for _ in range(20)])


def test_ranks_seeded_differently_have_the_same_periods():
    on_ranks(2, own_periods)
