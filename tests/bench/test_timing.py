"""Times taken in turn, and their ratios."""

import time

import pytest

from sngd.bench.timing import Spread, interleaved, ratio, spread


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
    times = interleaved(calls, seconds=60, most=3, warm_up=0)
    assert "".join(order) == "abcbcacab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_warming_up_is_not_counted_and_the_least_number_of_rounds_is_taken():
    calls = []
    times = interleaved({"a": lambda: calls.append(1)}, seconds=0, least=4, warm_up=2)
    assert (len(calls), len(times["a"])) == (6, 4)


def test_a_longer_call_has_a_larger_ratio():
    times = interleaved({"slow": lambda: time.sleep(0.01), "quick": lambda: time.sleep(0.001)}, seconds=0, least=5)
    assert ratio(times["slow"], times["quick"]).low > 1
    assert min(times["slow"]) == pytest.approx(0.01, rel=0.5) or min(times["slow"]) > 0.01
