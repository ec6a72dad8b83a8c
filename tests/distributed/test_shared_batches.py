"""Training on several ranks: every method has the curve of one process, whatever shares the ranks get."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn

from sngd.training import METHODS, Interrupted, RunConfig, train
from sngd.training.ranks import ALONE, Ranks
from training.small_problems import plain_problem, tiny_problem

CONFIG = RunConfig("plain", "sngd", lr=0.05, batch_size=7, epochs=3, seed=3, threads=1, output="random")
SPIDER = replace(CONFIG, method="spider-sfo", params={"anchor_batch_size": 21, "period": 4})


def these_ranks():
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.get_rank(), dist.get_world_size())


def noisy_problem():
    """In float64, with an augmentation; one parameter is never used."""

    class Model(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 2))
            self.unused = nn.Parameter(torch.ones(3))

    def augment(x, generator):
        return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return replace(plain_problem(), build_model=lambda: Model().double(), augment=augment)


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same_run(one, other):
    """Measured values to rounding, counts and the rest exactly."""
    for row, twin in zip(rows(one), rows(other), strict=True):
        assert row.keys() == twin.keys()
        for key, value in row.items():
            assert value == (pytest.approx(twin[key], rel=1e-8, abs=1e-10) if isinstance(value, float) else twin[key])
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-8, atol=1e-10)


# --- the curve


def configs(world_size):
    search = {"oja_steps": 2, "anchor_batch_size": 28}  # short, so that descent follows
    natasha2 = replace(CONFIG, method="natasha2", params=search)
    if world_size == 3:  # a rank has no sample of a batch of two
        return [replace(config, batch_size=2, epochs=1) for config in (CONFIG, SPIDER, natasha2)]
    tracked = replace(CONFIG, label="tracked", track="smoothness,noise,curvature", epochs=1)
    others = [
        replace(CONFIG, method=name, weight_decay=0.01) for name in METHODS if name not in ("natasha2", "spider-sfo")
    ]
    return [natasha2, SPIDER, tracked, *others]


def train_all(folder, ranks=None):
    ranks = ranks or these_ranks()
    for config in configs(dist.get_world_size()):
        train(config, folder / (config.label or config.method), problem=noisy_problem, ranks=ranks)


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_method_has_the_curve_of_one_process(tmp_path, world_size):
    on_ranks(world_size, train_all, tmp_path / "ranks", timeout=200)
    for config in configs(world_size):
        name = config.label or config.method
        train(config, tmp_path / "alone" / name, problem=noisy_problem)
        assert_same_run(tmp_path / "ranks" / name, tmp_path / "alone" / name)


# --- stopping and going on


def train_until(folder, problem, steps):
    """``steps``: of rank 1, which alone is told to stop; None: to the end."""
    calls, ranks = iter(range(10**6)), these_ranks()

    def stop():
        return next(calls) + 1 == steps and ranks.rank == 1

    if steps is None:
        train(CONFIG, folder, problem=problem, resume=True, ranks=ranks)
        return
    with pytest.raises(Interrupted, match=r"stopped after \d+ steps; --resume goes on$"):
        train(CONFIG, folder, problem=problem, resume=True, ranks=ranks, should_stop=stop)


def test_it_resumes_with_another_number_of_ranks(tmp_path):
    on_ranks(2, train_until, tmp_path / "cut", plain_problem, 11)
    on_ranks(3, train_until, tmp_path / "cut", plain_problem, 5)
    train(CONFIG, tmp_path / "cut", problem=plain_problem, resume=True)
    train(CONFIG, tmp_path / "whole", problem=plain_problem)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_it_resumes_bit_for_bit_with_as_many_ranks(tmp_path):
    """With dropout, whose masks differ between ranks, and BatchNorm, whose statistics are rank 0's."""
    on_ranks(2, train_until, tmp_path / "cut", tiny_problem, 11)
    on_ranks(2, train_until, tmp_path / "cut", tiny_problem, None)
    on_ranks(2, train_until, tmp_path / "whole", tiny_problem, None)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    cut, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def replicas_are_equal(folder):
    models, seeds = [], []

    def record_seed(model, _):
        if model.training:
            seeds.append(torch.initial_seed())

    def build():
        models.append(tiny_problem().build_model())
        models[-1].register_forward_pre_hook(record_seed)
        return models[-1]

    ranks = these_ranks()
    row = train(CONFIG, folder, problem=lambda: replace(tiny_problem(), build_model=build), ranks=ranks)
    for tensor in [*models[-1].state_dict().values(), torch.tensor(row["train_loss"])]:
        copy = tensor.clone()
        dist.broadcast(copy, 0)
        assert torch.equal(copy, tensor)
    assert models[-1][1].num_batches_tracked == row["step"]
    firsts = ranks.from_first(seeds)
    assert len(set(seeds)) > 20
    assert ranks.first or not set(firsts) & set(seeds)  # what dropout masks are drawn from


def test_all_ranks_end_with_the_same_model(tmp_path):
    on_ranks(2, replicas_are_equal, tmp_path)


# --- what goes wrong


def raised_on_all(folder):
    ranks = these_ranks()

    def lost_data():
        if ranks.rank == 1:
            raise ValueError("no data here")
        return plain_problem()

    with pytest.raises(ValueError, match=re.escape("rank 1: no data here" if ranks.first else "no data here")):
        train(CONFIG, folder, problem=lost_data, ranks=ranks)
    assert not (folder / "config.json").exists()

    train(CONFIG, folder, problem=plain_problem, ranks=ranks)
    with pytest.raises(
        ValueError, match=f"^{'' if ranks.first else 'rank 0: '}{folder}: holds a run already; --resume"
    ):
        train(CONFIG, folder, problem=plain_problem, ranks=ranks)
    answer = train(CONFIG, folder, resume=True, ranks=ranks)  # has ended: rank 0 reads it for all
    assert ranks.from_first(answer) == answer


def test_an_error_of_one_rank_is_one_of_all(tmp_path):
    on_ranks(2, raised_on_all, tmp_path)


# --- the ranks


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 6, 7, 100])
def test_shares_are_contiguous_and_even(size, n):
    shares = [Ranks(rank, size).share(n) for rank in range(size)]
    assert (shares[0].start, shares[-1].stop) == (0, n)
    assert all(one.stop == other.start for one, other in pairwise(shares))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes)


def test_threads_are_shared():
    assert [Ranks(0, 4, 0, 2).threads(total) for total in (1, 2, 5)] == [1, 1, 2]
    assert ALONE.threads(5) == 5


def test_each_rank_has_its_own_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    last = Ranks(rank=5, size=6, local_rank=1, local_size=2)
    assert last.device("cuda") == torch.device("cuda", 1)
    assert chosen == [1]
    assert last.device("cpu") == torch.device("cpu")
    assert ALONE.device("cuda:1") == torch.device("cuda", 1)
    message = "device must be 'cuda' or 'cpu' for several processes, which share none, got 'cuda:0'"
    with pytest.raises(ValueError, match=f"^{message}$"):
        last.device("cuda:0")
    message = "device 'cuda' must be there for each process: torch sees 2 for 3 of them"
    with pytest.raises(ValueError, match=f"^{message}$"):
        Ranks(rank=0, size=3, local_size=3).device("cuda")


def messages():
    ranks = these_ranks()
    tensors = [
        torch.tensor([True, False]),
        torch.tensor(3, dtype=torch.int64),
        torch.tensor([[1.5, -2.0]], dtype=torch.float64).t(),
        torch.tensor([1j, 2.0]),
        torch.zeros(0),
        torch.ones(3, dtype=torch.bfloat16),
    ]
    received = [tensor.clone() if ranks.first else torch.zeros_like(tensor) for tensor in tensors]
    ranks.copy_first(received)
    assert all(torch.equal(tensor, twin) for tensor, twin in zip(tensors, received, strict=True))

    value = {"a": [1, None, "β"], "b": torch.arange(3)}
    got = ranks.from_first(value if ranks.first else None)
    assert (got["a"], got["b"].tolist()) == (value["a"], [0, 1, 2])

    assert ranks.any(ranks.rank == 1)
    assert not ranks.any(False)
    one, two = ranks.sum([torch.tensor(1), torch.full((2,), 0.5)])
    assert (one.dtype, one.item(), two.tolist()) == (torch.int64, 2, [1.0, 1.0])


def test_messages_of_any_type():
    on_ranks(2, messages)


def used_by_some():
    """Which parameters have a gradient is as in one process, also if only one rank's samples use them."""
    ranks = these_ranks()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.ones(())) for _ in range(3))

        def forward(self, x):
            return x * self.a if x.sum() > 0 else x * self.b

    model = Two()
    batch = torch.tensor([1.0, 2.0, 3.0, -1.0, -2.0]), torch.zeros(5)  # rank 0 has three
    ranks.mean_loss(lambda forward, part: forward(part[0]).mean(), model, batch).backward()
    assert model.a.grad.item() == pytest.approx(6 / 5)
    assert model.b.grad.item() == pytest.approx(-3 / 5)
    assert model.c.grad is None


def test_a_parameter_that_no_rank_uses_has_no_gradient():
    on_ranks(2, used_by_some)
