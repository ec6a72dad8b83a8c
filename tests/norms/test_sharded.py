"""Which rank computes the unit step of which tensor, and where ranks' parts lie; processes are in tests/distributed."""

from itertools import product
from math import prod

import pytest
import torch
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from sngd.norms.sharded import _box, owners


def test_the_most_costly_tensors_go_to_the_ranks_with_the_least_work():
    shapes = ((100, 100), (50, 50), (50, 50), (50, 50), (10,), (99, 100))
    assert owners(shapes, (2,)) == ((0,), (1,), (0,), (1,), (0,), (1,))


def test_equal_tensors_are_dealt_out_evenly_over_a_grid():
    found = owners(((8, 8),) * 24, (2, 3))
    assert all(found.count(rank) == 4 for rank in product(range(2), range(3)))


def test_no_rank_has_more_work_than_a_share_and_the_largest_tensor():
    generator = torch.Generator().manual_seed(0)
    shapes = tuple(tuple(torch.randint(1, 200, (2,), generator=generator).tolist()) for _ in range(50))
    cost = dict(zip(range(50), [prod(shape) * min(shape) for shape in shapes], strict=True))
    for ranks in (1, 2, 3, 8):
        work = [0] * ranks
        for i, (rank,) in enumerate(owners(shapes, (ranks,))):
            work[rank] += cost[i]
        assert max(work) <= sum(work) / ranks + max(cost.values())


@pytest.mark.parametrize(
    "placements",
    [
        (Shard(0),),
        (Shard(1),),
        (Shard(-1),),
        (Shard(0), Shard(0)),
        (Shard(1), Shard(0)),
        (_StridedShard(0, split_factor=3), Shard(0)),
        (_StridedShard(1, split_factor=3), Shard(1)),
        (Shard(0), _StridedShard(0, split_factor=2), Shard(0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(7, 5), (12, 12), (1, 2), (0, 3), (6, 1, 4)])
def test_parts_cover_the_tensor_once(placements, shape):
    sizes = (2, 3, 2)[-len(placements) :] if len(placements) == 3 else (2, 3)[: len(placements)]
    covered = torch.zeros(shape)
    for coordinate in product(*map(range, sizes)):
        covered[_box(shape, placements, sizes, coordinate)] += 1
    assert (covered == 1).all()


def test_a_strided_shard_comes_after_the_shards_to_its_right():
    placements, sizes = (_StridedShard(0, split_factor=2), Shard(0)), (2, 2)
    rows = {at: _box((7,), placements, sizes, at)[0] for at in product(range(2), range(2))}
    assert rows == {(0, 0): slice(0, 2), (1, 0): slice(2, 4), (0, 1): slice(4, 6), (1, 1): slice(6, 7)}


@pytest.mark.parametrize(
    "placements",
    [
        (_StridedShard(0, split_factor=2),),
        (_StridedShard(0, split_factor=4), Shard(0)),
        (_StridedShard(0, split_factor=2), Shard(1)),
        (Partial(), Shard(0)),
    ],
    ids=str,
)
def test_parts_that_are_no_blocks_are_not_guessed(placements):
    assert _box((8, 8), placements, (2, 2)[: len(placements)], (0, 0)[: len(placements)]) is None
