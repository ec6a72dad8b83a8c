"""Claim C9: the study of an objective with L = ∞, and the verdict on it, which other measurements must flip."""

import copy
import json

import pytest
from ink import ink

from sngd.paper.closed_form import relaxed
from sngd.paper.verdicts import CONTRADICTED, OPEN, SHOWN, Verdict
from sngd.problems.analytic import relaxed_smooth
from sngd.training.schema import decode

GRADIENTS, SEEDS, STEPS = [1.0, 1e2, 1e4], 3, 1000
LRS = {"SGD": [1e-3, 1e-2, 0.1, 1.0], "SNGD": [0.03, 0.1], "clipped SGD": [0.03, 0.1]}
STABLE = {1.0: 1.0, 1e2: 1e-2, 1e4: 1e-3}


def run(method, lr, gradient):
    if method == "SGD":
        diverged, calls = lr > STABLE[gradient], round(1 / lr)
    else:
        diverged, calls = False, round(10 / lr)
    final = None if diverged else 0.1 if calls < STEPS else 9.0
    return {
        "method": method,
        "lr": lr,
        "gradient": gradient,
        "diverged": [diverged] * SEEDS,
        "calls": [None if diverged or calls >= STEPS else calls] * SEEDS,
        "final": [final] * SEEDS,
        "mean": [None if diverged else 2.0] * SEEDS,
        "bound": [3.0 if method == "SNGD" else None] * SEEDS,
    }


@pytest.fixture
def fake():
    """Measurements in which everything is as the paper says."""
    patient = [{"lrs": [STABLE[g]] * SEEDS, "calls": [4000, 4100, 4200]} for g in GRADIENTS]
    runs = [run(method, lr, g) for g in GRADIENTS for method in LRS for lr in LRS[method]]
    about = {"profile": "quick", "seeds": SEEDS, "steps": STEPS, "target": 0.5, "gradients": GRADIENTS, "lrs": LRS}
    return copy.deepcopy({**about, "runs": runs, "patient": patient})


def outcome(measurements):
    return Verdict("C9", "", "", relaxed.judge(measurements)).outcome


def quantity(measurements, beginning):
    (found,) = (q for q in relaxed.judge(measurements).quantities if q.name.startswith(beginning))
    return found


def of(fake, method, gradient=1e4, lr=0.1):
    (found,) = (r for r in fake["runs"] if (r["method"], r["gradient"], r["lr"]) == (method, gradient, lr))
    return found


def test_as_the_paper_says_it_is_shown(fake):
    evidence = relaxed.judge(fake)
    assert Verdict("C9", "", "", evidence).outcome == SHOWN
    assert "lr 0.1" in quantity(fake, "runs of SNGD with").name
    assert "comparable rates (0.1)" in quantity(fake, "runs of SGD at").name  # from 0.03/0.5 to 0.1/0.5
    assert quantity(fake, "exponent").value == pytest.approx(-0.75)
    assert quantity(fake, "starts").value == 2  # SGD's 10⁻³ would need 1000 calls, all there are
    assert quantity(fake, "of these").value == 1  # from 1, not from 100
    assert any("‖∇F(w_0)‖ = 1, 100" in departure for departure in evidence.departures)


def test_a_diverging_run_of_sngd_refutes(fake):
    of(fake, "SNGD", lr=0.03)["diverged"][1] = True
    assert outcome(fake) == CONTRADICTED


def test_a_start_that_no_single_rate_of_sngd_leaves_refutes(fake):
    of(fake, "SNGD", lr=0.03)["final"][0] = 0.6
    of(fake, "SNGD", gradient=1.0)["final"][2] = 0.6
    assert quantity(fake, "runs of SNGD with").answer == CONTRADICTED
    assert outcome(fake) == CONTRADICTED


def test_a_mean_above_theorem_2s_bound_refutes(fake):
    of(fake, "SNGD")["mean"] = [4.0, 4.01, 4.02]
    assert quantity(fake, "mean ‖∇F‖").answer == CONTRADICTED
    assert outcome(fake) == CONTRADICTED


def test_sgd_that_bears_a_comparable_rate_refutes(fake):
    of(fake, "SGD")["diverged"] = [True, True, False]
    assert quantity(fake, "runs of SGD at").answer == CONTRADICTED
    assert outcome(fake) == CONTRADICTED


def test_a_rate_of_sgd_that_does_not_depend_on_the_start_is_a_part_missing(fake):
    for at_start in fake["patient"]:
        at_start["lrs"] = [1e-3] * SEEDS
    assert quantity(fake, "exponent").answer == CONTRADICTED
    assert outcome(fake) == OPEN


def test_sgd_as_quick_as_sngd_with_a_small_rate_is_a_part_missing(fake):
    fake["patient"][-1]["calls"] = [90, 100, 110]
    assert quantity(fake, "calls of SGD without budget").answer == OPEN
    assert outcome(fake) == OPEN


def test_the_start_has_the_gradient_asked_for():
    for gradient in (1.0, 1e3, 1e5):
        (w,) = relaxed._problem(gradient, 3).problem.build_model().parameters()
        assert relaxed._gradient_norm(w.detach()) == pytest.approx(gradient, rel=1e-9)


def test_the_gradient_norm_is_autograds():
    start = [0.1, -2.0, 3.0]
    problem = relaxed_smooth(3, start=start, sigma=0.0, n=1).problem
    model = problem.build_model()
    (w,) = model.parameters()
    problem.loss(model(problem.train[0]), problem.train[1]).backward()
    assert relaxed._gradient_norm(w.detach()) == pytest.approx(w.grad.norm().item(), rel=1e-6)


@pytest.mark.slow
def test_the_quick_profile_is_measured_judged_and_drawn(tmp_path):
    measured = relaxed.measure("quick")
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert outcome(measured) == SHOWN
    assert quantity(measured, "exponent").value < -0.5
    wild = of(measured, "SGD", lr=1.0)
    assert wild["diverged"] == [True] * 3
    assert wild["final"] == [None] * 3
    tame = of(measured, "SNGD", lr=0.3)
    assert all(m < b for m, b in zip(tame["mean"], tame["bound"], strict=True))
    assert max(tame["calls"]) < 200
    pictures = relaxed.draw(measured, tmp_path)
    assert [path.name for path in pictures] == ["relaxed.png", "relaxed.svg"]
    assert ink(pictures[0]) > 0.05
    assert pictures[1].stat().st_size > 30_000


def test_a_start_from_which_every_rate_diverges_is_stored_and_read_back():
    """It has no largest stable rate: SGD is not run from there, and the file must say so."""
    settings = relaxed.Size(2, (1e5,), 5, {"SGD": (3.0,)})
    runs = [relaxed._runs(settings, "SGD", 3.0, 1e5)]
    patient = relaxed._measure_unbudgeted(settings, runs, 1e5)
    assert patient == {"lrs": [None, None], "calls": [None, None]}
    assert decode(json.dumps(patient).encode(), relaxed.Patient, "file") == patient


def test_an_unknown_profile_is_named():
    with pytest.raises(ValueError, match=r"^profile must be one of quick, small, got 'huge'$"):
        relaxed.measure("huge")
