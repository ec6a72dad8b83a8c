"""The harness itself: what goes wrong on a rank is told, soon."""

import time

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks


def sums_up(expected):
    total = torch.tensor(dist.get_rank() + 1)
    dist.all_reduce(total)
    assert total == expected
    assert dist.get_backend() == "gloo"


def fails_on_the_last():
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("the last rank's own words")
    dist.barrier()


def hangs_on_the_first():
    if dist.get_rank() == 0:
        waits_for_ever()
    dist.barrier()


def waits_for_ever():
    time.sleep(1000)


def test_all_ranks_work_together():
    on_ranks(3, sums_up, 6)


def test_the_traceback_of_the_rank_that_failed_is_told():
    with pytest.raises(AssertionError, match=r"(?s)^rank 2 of 3:.*in fails_on_the_last.*the last rank's own words"):
        on_ranks(3, fails_on_the_last)


def test_a_rank_that_hangs_ends_in_time_and_says_where():
    begin = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)^rank \d of 2:.*(in waits_for_ever|in barrier)"):
        on_ranks(2, hangs_on_the_first, timeout=5)
    assert time.monotonic() - begin < 20
