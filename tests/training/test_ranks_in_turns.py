"""Which process of a machine loads a problem first; that real ranks agree is tested in test_torchrun.py."""

from contextlib import contextmanager

import pytest

from sngd.training.ranks import ALONE, Ranks


class Recorded(Ranks):
    """Ranks whose turns end where all would wait for one another."""

    def __init__(self, local_rank, turns):
        super().__init__(rank=4 + local_rank, size=8, local_rank=local_rank, local_size=4)
        object.__setattr__(self, "turns", turns)

    @contextmanager
    def agreed(self):
        yield
        self.turns.append("all wait")


@pytest.mark.parametrize(
    ("local_rank", "order"),
    [
        (0, ["loads", "all wait", "all wait"]),
        (1, ["all wait", "loads", "all wait"]),
        (3, ["all wait", "loads", "all wait"]),
    ],
)
def test_the_first_of_a_machine_goes_before_its_others(local_rank, order):
    turns = []
    assert Recorded(local_rank, turns).one_a_machine_first(lambda: turns.append("loads") or "data") == "data"
    assert turns == order


def test_alone_there_is_nobody_to_wait_for():
    assert ALONE.one_a_machine_first(lambda: "data") == "data"
