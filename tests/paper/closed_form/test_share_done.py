"""The share of a study that is done, as its loops tell it."""

import pytest

from sngd.paper.closed_form.share_done import listening, steps
from sngd.paper.reproduce import FIGURES, Figure


def test_a_loop_inside_another_is_a_part_of_its_step():
    shares = []
    with listening(shares.append):
        pairs = [(a, b) for a in steps("xy") for b in steps(range(2))]
    assert pairs == [("x", 0), ("x", 1), ("y", 0), ("y", 1)]
    assert shares == [0, 0, 0.25, 0.5, 0.5, 0.75]


def test_nobody_needs_to_listen_and_what_ends_early_is_forgotten():
    assert list(steps(iter(range(3)))) == [0, 1, 2]
    shares = []
    with listening(shares.append):
        for item in steps(range(4)):
            if item == 1:
                break
        assert list(steps("ab")) == ["a", "b"]
    assert list(steps("ab")) == ["a", "b"]
    assert shares[:2] == [0, 0.25]
    assert shares[-1] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, figure in FIGURES.items() if isinstance(figure, Figure)])
def test_every_closed_form_study_tells_its_share(name):
    shares = []
    with listening(shares.append):
        FIGURES[name].measure("quick")
    assert len(shares) >= 4
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
