"""Times taken in turn, and their ratios."""

import time
from collections import Counter
from itertools import pairwise

import pytest

from sngd.bench.timing import Spread, interleaved, ratio, spread, turns


def test_the_spread_of_few_values_is_their_range():
    assert spread([3.0, 1.0]) == Spread(2.0, 1.0, 3.0)


def test_the_spread_of_many_values_is_their_quartiles():
    assert spread([float(x) for x in range(1, 8)]) == Spread(4.0, 2.0, 6.0)


def test_ratios_are_taken_round_by_round():
    """A machine that becomes half as fast in between changes no ratio."""
    assert ratio([1.0, 1.0, 2.0, 2.0, 2.0], [2.0, 2.0, 4.0, 4.0, 4.0]) == Spread(0.5, 0.5, 0.5)


def test_calls_take_turns_and_each_begins_as_often():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(calls, seconds=60, most=7, warm_up=0)
    assert "".join(order) == "acb bac cba bca cab abc acb".replace(" ", "")
    assert {name: len(values) for name, values in times.items()} == {"a": 7, "b": 7, "c": 7}


@pytest.mark.parametrize("count", range(1, 10))
def test_each_follows_each_other_one_equally_often(count):
    """If only the first were put last, one call would nearly always follow the same other one."""
    orders = turns(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    rounds = 1 if count % 2 == 0 else 2
    following = Counter(pair for order in orders for pair in pairwise(order))
    assert following == {(a, b): rounds for a in range(count) for b in range(count) if a != b}
    assert Counter(order[0] for order in orders) == dict.fromkeys(range(count), rounds)


def test_warming_up_is_not_counted_and_the_least_number_of_rounds_is_taken():
    calls = []
    times = interleaved({"a": lambda: calls.append(1)}, seconds=0, least=4, warm_up=2)
    assert (len(calls), len(times["a"])) == (6, 4)


def test_a_longer_call_has_a_larger_ratio():
    times = interleaved({"slow": lambda: time.sleep(0.01), "quick": lambda: time.sleep(0.001)}, seconds=0, least=5)
    assert ratio(times["slow"], times["quick"]).low > 1
    assert min(times["slow"]) == pytest.approx(0.01, rel=0.5) or min(times["slow"]) > 0.01
