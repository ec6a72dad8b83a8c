"""DDP: the gradients are averaged before the step, so the step is local."""

import pytest
from ranks import on_ranks
from regression import FEW, VARIANTS, assert_trains_as_alone, share
from torch.nn.parallel import DistributedDataParallel


def ddp(names):
    for name in names:
        assert_trains_as_alone(DistributedDataParallel, VARIANTS[name], samples=share(), all_reduces=0)


@pytest.mark.parametrize(("world_size", "names"), [(2, tuple(VARIANTS)), (3, FEW)])
def test_trains_as_one_process_and_the_step_communicates_nothing(world_size, names):
    on_ranks(world_size, ddp, names)


def bucket_views():
    def wrapped(model):
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    assert_trains_as_alone(wrapped, {"momentum": 0.9}, samples=share(), all_reduces=0)


def test_gradients_may_be_views_of_buckets():
    on_ranks(2, bucket_views)
