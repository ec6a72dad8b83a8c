"""Studies without runs that are measured in several processes."""

import json

import pytest

from sngd.paper.at_once import reproduce_at_once
from sngd.paper.reproduce import reproduce, stored
from sngd.studies.execution.execution import Execution
from sngd.training import Interrupted

pytestmark = pytest.mark.slow
STUDIES = ("scaling", "conformance-norms")


def test_they_are_measured_as_one_after_the_other(tmp_path):
    told = []
    reproduce_at_once(
        STUDIES, "quick", tmp_path, "a command", Execution(jobs=2), on_progress=lambda *news: told.append(news)
    )
    reproduce("scaling", "quick", tmp_path / "alone")
    assert stored("scaling", tmp_path / "scaling") == stored("scaling", tmp_path / "alone")
    for name in STUDIES:
        assert json.loads((tmp_path / name / "measurements.json").read_text())["command"] == "a command"
        assert list((tmp_path / name).glob("*.png"))
    assert told[0][0] == list(STUDIES)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert any(0 < share < 1 for share in shares)
    assert told[-1] == ([], 2)


def test_asked_to_stop_they_stop_and_the_next_call_begins_them_anew(tmp_path):
    told = []
    execution = Execution(jobs=2, should_stop=lambda: len(told) > 3)
    with pytest.raises(Interrupted, match="the same command goes on, and begins the present studies anew"):
        reproduce_at_once(STUDIES, "quick", tmp_path, execution=execution, on_progress=lambda *news: told.append(news))
    assert not [name for name in STUDIES if (tmp_path / name / "measurements.json").exists()]


def test_an_error_stops_all(tmp_path):
    (tmp_path / "scaling").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="scaling"):
        reproduce_at_once(("scaling", "fig1"), "quick", tmp_path, execution=Execution(jobs=2))
    assert not (tmp_path / "fig1" / "measurements.json").exists()
