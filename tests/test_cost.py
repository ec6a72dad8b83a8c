"""Costs from sizes alone; that estimators count the same is tested with the methods."""

import re

import pytest

from sngd.cost import Cost, differences, differences_of_random_periods, same_every_step


def test_the_same_at_every_step():
    cost = same_every_step(32)
    assert (cost.anchor, cost.mean, cost.of_a_period) == (32, 32, 32)
    assert cost.of_steps(7) == 7 * 32


def test_a_period_is_an_anchor_and_differences_at_two_points():
    cost = differences(1024, 32, 16)
    assert cost == Cost(anchor=1024, between=64, period=16)
    assert cost.of_a_period == 1024 + 15 * 64
    assert cost.mean == cost.of_a_period / 16
    each = [1024, *[64] * 15] * 3
    assert [cost.of_steps(steps) for steps in range(49)] == [sum(each[:steps]) for steps in range(49)]


def test_counts_beyond_the_digits_of_floats_are_exact():
    steps = 2**60 + 1
    assert differences(3, 1, 2).of_steps(steps) == 3 * (2**59 + 1) + 2 * 2**59


def test_random_periods_have_their_mean():
    cost = differences_of_random_periods(100, 8)
    assert (cost.anchor, cost.between, cost.period) == (100, 16, 12.5)
    assert cost.mean == pytest.approx((100 + 11.5 * 16) / 12.5, rel=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: differences(0, 1, 1), "anchor_batch_size must be a whole number of at least 1, got 0"),
        (lambda: differences(1, 0, 1), "batch_size must be a whole number of at least 1, got 0"),
        (lambda: differences(1, 1, 0), "period must be a whole number of at least 1, got 0"),
        (lambda: differences(1, 1, float("nan")), "period must be a whole number of at least 1, got nan"),
        (lambda: differences_of_random_periods(4, 0), "batch_size must be a whole number of at least 1, got 0"),
        (lambda: differences_of_random_periods(4, 8), "anchor_batch_size must be at least batch_size = 8, got 4"),
    ],
)
def test_sizes_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
