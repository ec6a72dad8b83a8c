"""The time left of many runs, from their progress and a clock."""

import pytest

from sngd.studies.execution.overview import Overview, State
from sngd.training import Progress, RunConfig


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(epochs=1.0, method="sngd", seed=0):
    return RunConfig("digits-mlp", method, epochs=epochs, seed=seed)


@pytest.fixture
def clock():
    return Clock()


def test_nothing_is_known_before_any_work(clock):
    overview = Overview([run(), run()], clock)
    assert overview.state() == State(0, 0, 2, 0.0, None)
    overview(0, Progress(0, 100, None))
    assert overview.state() == State(0, 1, 1, 0.0, None)


def test_queued_runs_take_the_place_that_is_free_first(clock):
    """Two at a time, ten seconds an epoch: 5 s and 15 s are left of those that run; 10 s go behind the first."""
    overview = Overview([run(1.0), run(2.0), run(1.0), run(3.0)], clock)
    overview(0, Progress(0, 100, None))
    overview(1, Progress(0, 200, None))
    clock.now += 5
    overview(0, Progress(50, 100, 0.7))
    overview(1, Progress(50, 200, 0.7))
    state = overview.state()
    assert state[:3] == (0, 2, 2)
    assert state.share == pytest.approx((0.5 + 0.5) / 7)
    assert state.seconds_left == pytest.approx(max(5 + 10, 15 + 30))


def test_each_method_has_its_own_pace_and_an_unknown_one_the_common(clock):
    overview = Overview(
        [run(method="sgd"), run(method="spider-sfo"), run(method="spider-sfo"), run(method="gd")], clock
    )
    overview(0, Progress(0, 100, None))
    clock.now += 10
    overview(0, Progress(100, 100, 0.1))
    overview(1, Progress(0, 100, None))
    clock.now += 30
    overview(1, Progress(100, 100, 0.1))
    assert overview.state() == State(2, 0, 2, 0.5, pytest.approx(30 + 20))


def test_runs_of_earlier_days_are_done_and_tell_nothing_of_the_pace(clock):
    overview = Overview([run(seed=seed) for seed in range(4)], clock)
    for index in (0, 1):
        overview(index, Progress(100, 100, 0.1))
    assert overview.state() == State(2, 0, 2, 0.5, None)
    overview(2, Progress(50, 100, None))  # resumed in the middle
    clock.now += 10
    overview(2, Progress(75, 100, 0.1))
    assert overview.state().seconds_left == pytest.approx(10 + 40)


def test_a_run_that_diverged_early_is_done_and_does_not_flatter_the_pace(clock):
    overview = Overview([run(), run()], clock)
    overview(0, Progress(0, 100, None))
    clock.now += 10
    overview(0, Progress(10, 10, None))  # its budget is what it spent
    assert overview.state() == State(1, 0, 1, 0.5, pytest.approx(100))


def test_a_run_thrown_back_to_its_checkpoint_counts_from_there(clock):
    overview = Overview([run()], clock)
    overview(0, Progress(0, 100, None))
    clock.now += 10
    overview(0, Progress(80, 100, 0.1))
    clock.now += 1000  # its machine died, and it waited for another
    overview(0, Progress(60, 100, None))
    assert overview.state() == State(0, 1, 0, 0.6, None)
    clock.now += 5
    overview(0, Progress(70, 100, 0.1))
    assert overview.state().seconds_left == pytest.approx(15)


def test_all_done(clock):
    overview = Overview([run()], clock)
    overview(0, Progress(100, 100, 0.1))
    assert overview.state() == State(1, 0, 0, 1.0, 0.0)
    assert Overview([], clock).state() == State(0, 0, 0, 1.0, 0.0)
