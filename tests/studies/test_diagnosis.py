"""sngd diagnose: a problem's initial weights, a run's last ones, and what a tracked run says of L0 and L1."""

import json
from math import isclose

import pytest
from fake_runs import write_run

from sngd.studies.diagnosis import diagnose, write_diagnosis
from sngd.training import RunConfig, train


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "saddle"
    train(RunConfig("saddle", "sngd", lr=0.1, epochs=2, batch_size=16, track="smoothness,noise,curvature"), folder)
    return folder


def test_a_problem_is_measured_at_its_start():
    seen = []
    found = diagnose("saddle", on_progress=lambda *what: seen.append(what))
    assert found.where == "initial weights, seed 0"
    assert isclose(found.noise.variance.value, 0.01, rel_tol=1e-4)
    assert isclose(found.curvature.largest.value, 1.0, rel_tol=1e-4)
    assert isclose(found.curvature.smallest.value, -0.1, rel_tol=1e-4)
    assert found.curvature.kind == "saddle"
    assert found.smoothness.largest_along.value <= 1.0 + 1e-4
    parts = (found.noise, found.smoothness, found.curvature)
    assert found.oracle_calls == sum(part.oracle_calls for part in parts) > 0
    assert {name for name, *_ in seen} == {"noise", "smoothness", "curvature"}
    assert len(found.table()) == 3 + 2 * 3 + 2


@pytest.mark.slow
def test_a_tracked_run_is_measured_along_its_way(tracked, tmp_path):
    found = diagnose(str(tracked), samples=200)
    assert found.where == "sngd, seed 0, after 2 #grad/n"
    assert [fit.points for fit in found.fits.values()] == [3, 3]
    files = write_diagnosis(found, tmp_path, command="sngd diagnose saddle")
    assert [path.name for path in files] == ["diagnosis.json", "diagnosis.png", "diagnosis.svg"]
    svg = files[2].read_text()
    for title in ("how fast the gradient changes", "along the run", "ends of the Hessian", "noise scale"):
        assert title in svg.replace("&#x27;", "'")
    content = json.loads(files[0].read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert content["command"] == "sngd diagnose saddle"
    assert content["noise"]["variance"].keys() == {"value", "low", "high"}
    assert content["fits"]["envelope"]["quantile"] == 0.95


@pytest.mark.slow
def test_only_what_was_asked_for(tracked, tmp_path):
    found = diagnose(str(tracked), only=["noise"], samples=50)
    assert (found.smoothness, found.curvature) == (None, None)
    assert found.oracle_calls == 50
    lone = diagnose("digits-mlp", only=["noise"], samples=50)
    assert [path.name for path in write_diagnosis(lone, tmp_path)] == ["diagnosis.json"]  # no curve to draw


def test_what_cannot_be_measured_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^samples must be at least 3, got 2$"):
        diagnose("saddle", samples=2)
    with pytest.raises(ValueError, match="unknown problem 'saddel', did you mean 'saddle'"):
        diagnose("saddel")
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        diagnose(str(tmp_path))
    bare = write_run(tmp_path / "bare", config={"problem": "saddle"})
    with pytest.raises(FileNotFoundError, match=r"bare: has no checkpoint\.pt, the weights to measure are not there"):
        diagnose(str(bare))
