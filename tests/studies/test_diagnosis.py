"""sngd diagnose: a problem's initial weights, a run's last ones, and what a tracked run says of L0 and L1."""

import json
from math import isclose

import pytest
from fake_runs import write_run

from sngd.studies.diagnosis import diagnose, run_at_its_end, write_diagnosis
from sngd.studies.runs import read_run
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


def test_what_training_rounded_is_measured_in_full(tmp_path):
    train(RunConfig("saddle", "sngd", lr=0.1, epochs=1, batch_size=16, precision="bfloat16"), tmp_path)
    state = run_at_its_end(read_run(tmp_path), "cpu", None)
    assert state.loss_of(state.problem.train).item() == pytest.approx(
        state.problem.loss(state.problem.outputs(state.model, state.problem.train[0]), state.problem.train[1]).item(),
        rel=1e-6,
    )


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


# ---- in other norms ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_problem_in_the_norm_of_signs(tmp_path):
    """The saddle's noise is the same at all weights and its L in this norm at most Σλ < 10."""
    found = diagnose("saddle", norm="sign(scaled=False)")
    assert (str(found.norm), found.norm.kappa) == ("sign(scaled=False)", pytest.approx(10**0.5))
    assert isclose(found.noise.variance.value, 0.01, rel_tol=1e-4)  # σ² is Euclidean
    assert found.noise.batch_size == 128
    assert found.noise.error_bound.value == pytest.approx((10 * found.noise.variance.value / 128) ** 0.5)
    assert found.noise.batch_error.high < found.noise.error_bound.value
    assert 1 < found.smoothness.largest_along.value < 10
    assert found.noise.oracle_calls == 1000 + 7 * 128
    names = [name for name, *_ in found.table()]
    assert names[3:6] == ["E‖∇f_b − ∇F‖* of a batch, b = 128", "κσ/√b, which bounds it, b = 128", "‖∇F‖*"]
    content = json.loads(write_diagnosis(found, tmp_path)[0].read_text(), parse_constant=pytest.fail)
    assert (content["norm"], content["kappa"]) == ("sign(scaled=False)", found.norm.kappa)
    assert content["noise"]["batch_error"].keys() == {"value", "low", "high"}
    assert "in the norm sign(scaled=False)" in (tmp_path / "diagnosis.svg").read_text()


@pytest.mark.slow
def test_a_run_is_measured_in_its_own_norm(tmp_path):
    config = RunConfig("digits-mlp:200", "scion", epochs=0.5, eval_every=0.1, batch_size=20, track="smoothness,noise")
    train(config, tmp_path / "run")
    found = diagnose(str(tmp_path / "run"), only=["smoothness", "noise"], samples=60)
    assert str(found.norm) == "spectral(scaled=max), layer, 16 × sign"
    assert found.noise.batch_size == 20
    assert set(found.fits) == {"middle", "envelope"}
    last = found.rows[-1]
    assert last["dual_grad_norm"] > last["grad_norm"]
    assert last["noise_error_low"] < last["noise_error"] < last["noise_error_high"]
    assert last["smoothness_grad_norm"] == pytest.approx(last["dual_grad_norm"], rel=1e-3)  # all 200 samples
    by_kind = diagnose(str(tmp_path / "run"), only=["smoothness"], samples=60, norm="groups")
    assert (by_kind.norm, by_kind.smoothness, by_kind.fits) == (found.norm, found.smoothness, found.fits)
    euclidean = diagnose(str(tmp_path / "run"), only=["smoothness"], samples=60, norm="l2")
    assert euclidean.smoothness.grad_norm.value < found.smoothness.grad_norm.value
    assert (euclidean.rows, euclidean.fits) == ([], {})  # those are in the run's own norm
    with pytest.raises(ValueError, match="unknown norm 'sing'"):
        diagnose("saddle", norm="sing")
