"""How runs are done: what is out of range, and what is the same with a change."""

import pickle
from pathlib import Path

import pytest

from sngd.studies.execution.execution import Execution, RayCluster


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"precision": "half"}, "precision must be 'float32' or 'bfloat16', got 'half'"),
        ({"ray": RayCluster(cpus=0)}, "cpus must be greater than 0, got 0"),
        ({"ray": RayCluster(cpus=float("nan"))}, "cpus must be greater than 0, got nan"),
        ({"ray": RayCluster(gpus=-1)}, "gpus must be at least 0, got -1"),
        ({"ray": RayCluster(), "jobs": 2}, "jobs and ray exclude each other: .*"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Execution(**options)


def test_titles_name_what_the_runs_are_part_of():
    titles = []
    execution = Execution(begin=lambda title, configs: titles.append((title, configs))).titled("fig2").titled("b = 32")
    execution.begin("runs", [])
    assert titles == [("fig2, b = 32, runs", [])]


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False)])
def test_either_wish_to_stop_stops(first, second):
    execution = Execution(should_stop=lambda: first).also_stopping(lambda: second)
    assert execution.should_stop() == (first or second)


def test_what_another_process_needs_can_be_sent_there():
    settings = {"jobs": 2, "data": Path("data"), "overwrite": True, "tensorboard": True}
    here = Execution(**settings, begin=lambda *_: print, on_warning=lambda _: None, should_stop=lambda: True)
    there = pickle.loads(pickle.dumps(here.portable()))
    assert there == Execution(**settings)
    assert not there.should_stop()
