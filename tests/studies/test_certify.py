import json
import shutil

import pytest
import torch
from fake_runs import edit_rows, write_run

from sngd.norms import Spectral, product_of
from sngd.param_groups import groups
from sngd.problems import Problem
from sngd.problems.registry import ANALYTIC
from sngd.stages import Stage, StagePlan
from sngd.studies.certify import certify, is_certified, shown_certificates
from sngd.studies.runs import read_study
from sngd.theory import Inexact, RelaxedSmooth, Smooth, momentum_bound, sngd_bound, stagewise_momentum_bound
from sngd.training.config import RunConfig
from sngd.training.engine import train
from sngd.training.methods import METHODS

HARD = json.JSONDecoder(parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def run(folder, problem="saddle", seeds=(0, 1), **settings):
    """Short runs of an analytic problem, with every iterate evaluated."""
    defaults = {
        "method": "sngd", "lr": 0.02, "batch_size": 20, "epochs": 2.0, "eval_every": 0.02,
        "sampling": "independent", "threads": 1,
    }  # fmt: skip
    for seed in seeds:
        train(RunConfig(problem=problem, seed=seed, **(defaults | settings)), folder / f"seed-{seed}")
    return folder


@pytest.fixture(scope="module")
def saddle(tmp_path_factory):
    """SNGD for 100 steps on the saddle, L = 1, σ = 0.1; two seeds."""
    return run(tmp_path_factory.mktemp("saddle"))


@pytest.fixture
def copy(saddle, tmp_path):
    return shutil.copytree(saddle, tmp_path / "copy")


def edit_config(folder, **changes):
    for path in folder.rglob("config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def grad_norms(folder):
    return [json.loads(line)["grad_norm"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def the(folder, **constants):
    (certificate,) = certify(folder, **constants)
    return certificate


def standing(certificate):
    return {assumption.name: assumption.status for assumption in certificate.assumptions}


# ---- a run that is what the theorem speaks of ----------------------------------------------------------------


@pytest.mark.slow
def test_a_run_as_the_theorem_wants_it_is_certified(copy):
    certificate = the(copy)
    assert certificate.verdict == "holds"
    assert standing(certificate) == {
        "smoothness": "given",
        "noise": "given",
        "gap": "given",
        "condition": "given",
        "batches": "given",
        "objective": "measured",
        "steps": "measured",
        "measurements": "measured",
    }
    gap = ANALYTIC["saddle"]().gap
    assert certificate.theorem == "Theorem 1"
    assert (certificate.smoothness, certificate.sigma, certificate.gap) == (Smooth(1), 0.1, gap)
    assert (certificate.steps, certificate.seeds) == (100, (0, 1))
    assert certificate.bound.progress == pytest.approx(gap / (0.02 * 100), rel=1e-12)
    assert certificate.bound.curvature == pytest.approx(0.01, rel=1e-12)
    assert certificate.bound.noise == pytest.approx(2 * 0.1 / 20**0.5, rel=1e-12)
    norms = [grad_norms(copy / f"seed-{seed}") for seed in (0, 1)]
    assert list(map(len, norms)) == [101, 101]
    means = [sum(of_one[:-1]) / 100 for of_one in norms]
    assert certificate.measured.value == pytest.approx(sum(means) / 2, rel=1e-12)


def test_the_file_holds_what_is_returned(copy):
    certificate = the(copy)
    content = HARD.decode((copy / "certificate.json").read_text())
    assert content == {"certificates": [certificate.as_json()]}
    assert not list(copy.rglob("*.tmp"))


def test_one_run_is_a_folder_too(copy):
    certificate = the(copy / "seed-1")
    assert certificate.seeds == (1,)
    assert certificate.measured.low == certificate.measured.high  # every iterate was evaluated
    assert "The theorem speaks of the mean over all seeds." in certificate.statement


def test_given_constants_come_before_the_problems_own(copy):
    certificate = the(copy, smoothness=RelaxedSmooth(2, 3), sigma=0.2, gap=0.5)
    assert certificate.theorem == "Theorem 2"
    assert certificate.verdict == "holds"
    assert certificate.as_json()["constants"] == {"L0": 2, "L1": 3, "sigma": 0.2, "gap": 0.5}
    assert certificate.assumptions[0].detail == "L0 = 2, L1 = 3 as given; nothing was measured to compare it with"


def test_constants_out_of_range(copy):
    with pytest.raises(ValueError, match="sigma must be finite and at least 0, got -1"):
        certify(copy, sigma=-1)
    with pytest.raises(ValueError, match="gap must be finite and at least 0, got inf"):
        certify(copy, gap=float("inf"))
    assert not (copy / "certificate.json").exists()


# ---- every assumption ----------------------------------------------------------------------------------------


def breaks(certificate, name, status, detail):
    """The verdict is withdrawn for this assumption and no other."""
    assert certificate.verdict == "not certified"
    assert [(found.name, found.status) for found in certificate.failing] == [(name, status)]
    assert certificate.failing[0].detail == detail


def test_shuffled_batches(copy):
    detail = "cut from shuffled passes: given the batches before, what is left of a pass is a biased sample"
    edit_config(copy, sampling="shuffled")
    breaks(the(copy), "batches", "violated", detail)
    for path in copy.rglob("config.json"):  # as runs were stored before there was a choice
        config = json.loads(path.read_text())
        del config["sampling"]
        path.write_text(json.dumps(config))
    breaks(the(copy), "batches", "violated", detail)


def test_weight_decay(copy):
    edit_config(copy, weight_decay=0.01)
    detail = "weight decay 0.01 makes the steps about F + 0.01/2 ‖w‖², while F is what is evaluated"
    breaks(the(copy), "objective", "violated", detail)


def test_skipped_steps(copy):
    edit_rows(copy, {"skipped_steps": 2}, slice(-1, None))
    breaks(the(copy), "steps", "violated", "4 skipped, the gradient having been zero or not finite")
    edit_rows(copy, {"skipped_steps": None})
    breaks(the(copy), "steps", "unchecked", "the runs did not count skipped steps")


def test_gradient_norms_not_measured(copy):
    edit_rows(copy, {"grad_norm": None}, slice(3, 4))
    certificate = the(copy)
    breaks(certificate, "measurements", "unchecked", "not every row of seed 0, from step 0 to 100, has a grad_norm")
    assert certificate.measured is None
    assert certificate.bound is not None


def test_gap_exceeded(copy):
    breaks(the(copy, gap=0.3), "gap", "violated", "Δ = 0.3 as given, but it is at least 0.4055 at step 0")


def test_noise_exceeded(copy):
    edit_rows(copy, {"noise_variance": 0.01, "noise_variance_low": 0.0099, "noise_variance_high": 0.0101}, slice(2))
    assert the(copy).verdict == "holds"
    certificate = the(copy, sigma=0.05)
    assert standing(certificate)["noise"] == "violated"
    assert certificate.verdict == "not certified"


def test_noise_within_the_rounding_of_large_gradients(copy):
    """Gradients of norm 35,000 are rounded by 0.004, which is not σ's fault."""
    noise = {"noise_variance": 0.0101, "noise_variance_low": 0.0101, "noise_variance_high": 0.0101}
    edit_rows(copy, {**noise, "grad_norm": 35000.0})
    assert standing(the(copy))["noise"] == "given"


def test_steps_too_long(copy):
    certificate = the(copy, smoothness=RelaxedSmooth(1, 30))
    breaks(certificate, "condition", "violated", certificate.failing[0].detail)
    assert certificate.failing[0].detail.startswith("lr must be at most 1/(2 L1) = 0.01666")
    assert certificate.bound is None


def test_a_diverged_run(copy):
    edit_rows(copy, {"train_loss": None, "grad_norm": None, "diverged": True}, slice(-1, None))
    certificate = the(copy)
    breaks(certificate, "runs", "violated", "the run of seed 0, 1 diverged")
    assert certificate.statement == "Not certified: the run of seed 0, 1 diverged."


def test_nothing_to_certify(copy):
    edit_rows(copy, {"final": False})
    with pytest.raises(ValueError, match="no run has finished") as error:
        certify(copy)
    assert str(error.value) == f"{copy}: no run has finished, there is nothing to certify"


def test_rows_of_some_samples_are_no_measurement_of_f(copy):
    assert standing(the(copy))["measurements"] == "measured"
    edit_config(copy, eval_samples=5)
    assert standing(the(copy))["measurements"] == "unchecked"


def test_nor_are_rows_of_samples_that_were_drawn(copy):
    edit_rows(copy, {"samples": 5}, slice(None, -1))
    certificate = the(copy)
    assert standing(certificate)["measurements"] == standing(certificate)["gap"] == "unchecked"
    assert certificate.measured is None
    assert "over 5 samples, not F: train again with --curve-samples 0" in str(certificate.assumptions)


def test_curvatures_beside_gradients_of_samples_are_left_out(tmp_path):
    tracked = {"smoothness_along": 5.0, "smoothness_off": None, "noise_variance": 4.0, "noise_variance_low": 3.0}
    folder = tmp_path / "a"
    write_run(folder, epochs=10, every=1.0, config={"sampling": "independent", "plan": "constant"})
    edit_rows(folder, tracked | {"noise_variance_high": 9.0, "grad_norm": 1.0})
    assert standing(the(folder))["smoothness"] == "measured"
    edit_rows(folder, {"samples": 5, "smoothness_along": 50.0}, slice(None, -1))
    assert pytest.approx(5, rel=0.1) == the(folder).smoothness.L


# ---- constants that were measured ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_quarter_of_l_is_caught_where_curvature_was_tracked(tmp_path):
    folder = run(tmp_path / "tracked", epochs=0.2, eval_every=0.1, seeds=(0,), track="smoothness,curvature")
    certificate = the(folder, smoothness=Smooth(0.25))
    assert certificate.verdict == "not certified"
    assert standing(certificate)["smoothness"] == "violated"
    assert "as given, but at step" in certificate.failing[0].detail
    assert standing(the(folder))["smoothness"] == "given"  # the true L is not contradicted
    assert standing(the(folder, smoothness=Smooth(0.999)))["smoothness"] == "violated"  # nor is L far from tight


def test_everything_measured(tmp_path):
    tracked = {
        "noise_variance": 4.0, "noise_variance_low": 3.0, "noise_variance_high": 9.0, "smoothness_along": 5.0,
        "smoothness_off": None, "hessian_max": 6.0, "hessian_max_error": 1.0, "hessian_min": -7.0,
        "hessian_min_error": 0.5,
    }  # fmt: skip
    folder = tmp_path / "a"
    write_run(folder, epochs=10, every=1.0, config={"sampling": "independent", "plan": "constant"})
    edit_rows(folder, tracked, slice(1))
    certificate = the(folder)
    assert (certificate.smoothness, certificate.sigma) == (Smooth(7.5), pytest.approx(3, abs=1e-6))
    assert certificate.gap == pytest.approx(2.35, rel=0.1)  # the first training loss
    assert certificate.verdict in ("holds", "inconclusive")
    assert {name for name, status in standing(certificate).items() if status == "measured"} >= {
        "smoothness", "noise", "gap", "objective"
    }  # fmt: skip


def test_nothing_is_claimed_without_constants(tmp_path):
    write_run(tmp_path / "a", config={"sampling": "independent"})
    certificate = the(tmp_path)
    assert certificate.bound is None
    assert certificate.statement == "Not certified by Theorem 1 or 2 (smoothness unchecked, noise unchecked)."


# ---- the methods ---------------------------------------------------------------------------------------------

SGD, SPIDER = "Ghadimi and Lan 2013, Theorem 2.1", "Fang et al. 2018, Theorem 1"
IN_NORM = ("signum", "scion", "sngd-layer")
THEOREMS = dict.fromkeys(METHODS) | {
    "gd": SGD, "sgd": SGD, "ngd": "Theorem 1", "sngd": "Theorem 1", "s-sngd": "Theorem 3", "spider-sfo": SPIDER,
    **dict.fromkeys(("nsgd-momentum", *IN_NORM), "the momentum theorem"),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_which_theorem_covers_which_method(copy, method):
    shutil.rmtree(copy / "seed-1")
    plan = METHODS[method].plan
    edit_config(
        copy, method=method, label=method, plan=plan, params={"max_scale": 0.5} if method == "spider-sfo" else {}
    )
    certificate = the(copy)
    assert certificate.theorem == THEOREMS[method]
    if certificate.theorem is None:
        assert certificate.verdict == "not certified"
        reason = "the theorem for s-sgd is for a constant learning rate"
        if method == "muon":  # the saddle's weights are a vector
            reason = (
                "the norm of the steps cannot be known (muon needs a hidden matrix or a convolution, and this model "
            )
            assert certificate.failing[0].detail == f"{reason}has none: signum is its rest)"
        else:
            assert certificate.failing[0].detail == (reason if method == "s-sgd" else f"no theorem covers {method}")
    elif method in IN_NORM:  # the run is SNGD's, which measures no other norm
        assert [assumption.name for assumption in certificate.failing] == ["measurements"]
        assert certificate.bound is not None
    else:
        assert certificate.verdict in ("holds", "exceeded", "inconclusive")


def test_full_gradients_have_no_noise(tmp_path):
    folder = run(tmp_path / "ngd", method="ngd", epochs=10.0, eval_every=1.0, seeds=(0,), sampling="shuffled")
    certificate = the(folder)
    assert (certificate.verdict, certificate.sigma, certificate.bound.noise) == ("holds", 0.0, 0.0)
    assert standing(certificate)["batches"] == "given"
    assert "seeds" not in certificate.statement  # nothing is left to chance


def test_stages_weigh_as_they_were_played(tmp_path):
    """The budget ends 10 steps into the second stage, of 40: the last weight is a quarter of what was planned."""
    plan = "[[0.04, 20, 1.0], [0.01, 40, 4.0]]"
    folder = run(tmp_path / "stages", method="s-sngd", plan=plan, epochs=0.6, seeds=(0,))
    certificate = the(folder)
    norms = grad_norms(folder / "seed-0")
    assert (certificate.theorem, certificate.steps, len(norms)) == ("Theorem 3", 30, 31)
    weights = [1 / 20] * 20 + [4 / 40] * 10
    mean = sum(weight * norm for weight, norm in zip(weights, norms, strict=False)) / 2
    assert certificate.measured.value == pytest.approx(mean, rel=1e-12)
    gap = ANALYTIC["saddle"]().gap
    assert certificate.gap == pytest.approx(gap, rel=1e-6)
    q = [1 / (20 * 0.04), 1 / (10 * 0.01)]
    assert certificate.bound.progress == pytest.approx(certificate.gap * q[1] / 2, rel=1e-12)
    assert certificate.bound.curvature == pytest.approx(0.5 * (0.04 * 1 + 0.01 * 1) / 2, rel=1e-12)


def test_a_plan_that_ends_early_goes_on(copy):
    edit_config(copy, plan="[[0.02, 60, 1.0]]")
    assert the(copy).bound.progress == pytest.approx(ANALYTIC["saddle"]().gap / (0.02 * 100), rel=1e-12)


def test_spider_wants_l_in_mean_square(tmp_path):
    """Which tracking does not measure: F's own L must not stand in for it."""
    spider = {"method": "spider-sfo", "sampling": "independent", "plan": "constant"}
    write_run(tmp_path / "a", "spider-sfo", config=spider)
    edit_rows(tmp_path, {"hessian_max": 1.0, "hessian_max_error": 0.0})
    assert standing(the(tmp_path, sigma=1))["smoothness"] == "unchecked"
    assert standing(the(tmp_path, sigma=1, smoothness=Smooth(0.4)))["smoothness"] == "violated"


# ---- the problem ---------------------------------------------------------------------------------------------


USER = """
import torch
from torch import nn
from sngd.problems import Problem

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))

def make(*extra, **fields):
    return Problem(lambda: nn.Sequential(nn.Linear(6, 2), *extra), nn.functional.cross_entropy,
                   (X, (X[:, 0] > 0).long()), **fields)

def plain():
    return make()

def dropout():
    return make(nn.Dropout(0.5))

def norm():
    return make(nn.BatchNorm1d(2))

def augmented():
    return make(augment=lambda x, generator: x + torch.randn(x.shape, generator=generator))
"""


@pytest.mark.parametrize(
    ("factory", "status", "why"),
    [
        ("plain", "measured", "the loss of a batch is the same in training and in evaluation"),
        ("dropout", "violated", "the model differs between training and evaluation (dropout, BatchNorm)"),
        ("norm", "violated", "the model differs between training and evaluation (dropout, BatchNorm)"),
        ("augmented", "violated", "steps see samples with random augmentation"),
        ("absent", "unchecked", "the problem cannot be loaded ("),
    ],
)
def test_training_and_evaluation_are_about_one_function(tmp_path, factory, status, why):
    file = tmp_path / "user.py"
    file.write_text(USER)
    write_run(tmp_path / "run", config={"problem": f"{file}:{factory}", "sampling": "independent"})
    found = {assumption.name: assumption for assumption in the(tmp_path / "run").assumptions}["objective"]
    assert found.status == status
    assert found.detail.startswith(why)


# ---- shown in the report -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_known_problems_need_no_file(saddle, tmp_path):
    (entry,) = shown_certificates(read_study(saddle))
    assert entry["verdict"] == "holds"
    assert not (saddle / "certificate.json").exists()
    assert shown_certificates(read_study(write_run(tmp_path / "a"))) == []


def test_a_file_is_shown_as_it_is(copy):
    certify(copy, gap=0.5)
    (entry,) = shown_certificates(study := read_study(copy))
    assert entry["constants"]["gap"] == 0.5
    assert is_certified(entry, study)
    shutil.rmtree(copy / "seed-1")
    assert not is_certified(entry, read_study(copy))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"certificates": 3}', "expected `array`, got `int` - at `$.certificates`"),
        ("{}", "object missing required field `certificates`"),
        ('{"certificates": [{"label": "sngd"}]}', "object missing required field `theorem` - at `$.certificates[0]`"),
    ],
)
def test_a_file_of_another_kind(copy, content, reason):
    (copy / "certificate.json").write_text(content)
    with pytest.raises(ValueError, match=r"certificate\.json: ") as error:
        shown_certificates(read_study(copy))
    path = copy / "certificate.json"
    assert str(error.value) == f"{path}: {reason}"


# ---- momentum, and other norms -------------------------------------------------------------------------------


def with_momentum(folder, method, **settings):
    """Ten steps of normalized momentum on the saddle, L = 1, σ = 0.1, d = 10."""
    params = {"momentum": 0.8} | settings.pop("params", {})
    return run(folder, method=method, epochs=0.2, params=params, **settings)


def bound(name, L, kappa, step=None, **options):
    constants = {"sigma": 0.1, "gap": ANALYTIC["saddle"]().gap, "batch_size": 20, "kappa": kappa}
    return name(Smooth(L), **constants, **options, step=step or Inexact())


def dual_norms(folder):
    return [json.loads(line)["dual_grad_norm"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_normalized_momentum_is_held_against_its_bound(tmp_path):
    certificate = the(with_momentum(tmp_path, "nsgd-momentum"))
    assert (certificate.theorem, certificate.verdict, certificate.norm) == ("the momentum theorem", "holds", None)
    assert certificate.bound == bound(momentum_bound, 1, 1.0, lr=0.02, momentum=0.8, steps=10)
    assert certificate.vacuous  # after ten steps
    assert "The bound is vacuous" in certificate.statement
    assert certificate.measured.value == pytest.approx(
        sum(sum(grad_norms(tmp_path / f"seed-{seed}")[:-1]) for seed in (0, 1)) / 20
    )


def test_signs_of_momentum_are_certified_in_their_norm(tmp_path):
    """κ² = d = 10 entries, L = κ² · 1, and what is measured is Σ|∂F/∂w_i|."""
    certificate = the(with_momentum(tmp_path, "signum"))
    assert certificate.norm == "sign(scaled=False)"
    assert certificate.kappa == pytest.approx(10**0.5)
    assert pytest.approx(10) == certificate.smoothness.L
    assert standing(certificate)["norm"] == "given"
    assert certificate.assumptions[0].detail.startswith("L = 10 from the problem's Euclidean L, times κ²")
    L, kappa = certificate.smoothness.L, certificate.kappa
    assert certificate.bound == bound(momentum_bound, L, kappa, lr=0.02, momentum=0.8, steps=10)
    assert certificate.verdict == "holds"
    means = [sum(dual_norms(tmp_path / f"seed-{seed}")[:-1]) / 10 for seed in (0, 1)]
    assert certificate.measured.value == pytest.approx(sum(means) / 2)
    assert sum(means) / 2 > 1.3 * sum(grad_norms(tmp_path / "seed-0")[:-1]) / 10
    assert "the mean of ‖∇F(w_t)‖* is" in certificate.statement
    assert certificate.as_json()["kappa"] == certificate.kappa
    assert shown_certificates(read_study(tmp_path)) == [certificate.as_json()]  # what was written can be read


def test_stages_momentum_of_the_plan_and_no_momentum(tmp_path):
    plan = "[[0.02, 6, 1.0], [0.01, 4, 2.0]]"
    staged = the(with_momentum(tmp_path / "staged", "signum", plan=plan))
    stages = StagePlan([Stage(0.02, 6, 1.0, 0.8), Stage(0.01, 4, 2.0, 0.8)])
    assert staged.bound == bound(stagewise_momentum_bound, staged.smoothness.L, staged.kappa, plan=stages)
    agnostic = the(
        with_momentum(tmp_path / "agnostic", "nsgd-momentum", plan="[[0.02, 6, 1.0, 0.5], [0.01, 4, 2.0, 0.9]]")
    )
    stages = StagePlan([Stage(0.02, 6, 1.0, 0.5), Stage(0.01, 4, 2.0, 0.9)])
    assert agnostic.bound == bound(stagewise_momentum_bound, 1, 1.0, plan=stages)
    without = the(with_momentum(tmp_path / "without", "signum", params={"momentum": 0.0}))
    assert without.theorem == "Theorem 1"
    assert without.bound == bound(sngd_bound, without.smoothness.L, without.kappa, lr=0.02, steps=10)
    for certificate in (staged, agnostic, without):
        assert certificate.verdict == "holds"


def linear():
    """Least squares with two layers, where muon has a hidden matrix, and scion layers of three kinds."""
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    return Problem(
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)),
        torch.nn.functional.mse_loss,
        (x, x[:, :2]),
    )


@pytest.mark.parametrize(
    ("method", "norm"),
    [
        ("muon", "spectral(scaled=max), 0.05 × sign(scaled=False)"),
        ("scion", "spectral(scaled=max), layer, 16 × sign"),
        ("sngd-layer", "layer"),
    ],
)
def test_each_kind_of_weight_in_its_norm(tmp_path, monkeypatch, method, norm):
    """Newton–Schulz steps are inexact, rates of their own are radii, and a bound of ten steps is vacuous."""
    for seed in (0, 1):
        config = RunConfig(
            "linear", method, lr=0.02, batch_size=20, epochs=1.0, eval_every=0.1, sampling="independent", seed=seed
        )
        train(config, tmp_path / f"seed-{seed}", problem=linear)
    monkeypatch.setattr("sngd.studies.certify.load_problem", lambda *_: linear())
    certificate = the(tmp_path, smoothness=Smooth(50), sigma=2.0)
    assert certificate.norm == norm
    assert certificate.verdict == "holds"
    assert certificate.vacuous
    model = linear().build_model()
    product = product_of(list(model.parameters()), "layer")
    if method == "scion":
        product = product_of(list(model.parameters()), groups(model, lr=0.1))
    if method == "muon":
        assert certificate.kappa == pytest.approx((3 + 0.05**2 * (3 + 6 + 2)) ** 0.5)
    else:
        assert certificate.kappa == pytest.approx(product.kappa)
    step = Inexact(*Spectral().inexactness((3, 4))) if method != "sngd-layer" else Inexact()
    momentum = 0.95 if method == "muon" else 0.9
    constants = {"sigma": 2.0, "gap": certificate.gap, "batch_size": 20, "lr": 0.02, "momentum": momentum, "steps": 10}
    assert certificate.bound == momentum_bound(Smooth(50), **constants, kappa=certificate.kappa, step=step)
    detail = next(one.detail for one in certificate.assumptions if one.name == "norm")
    assert ("Newton–Schulz steps attain 0.679" in detail) == (method != "sngd-layer")
    assert ("learning rates of their own count as radii" in detail) == (method != "sngd-layer")


def test_what_the_momentum_theorem_does_not_cover(tmp_path):
    folder = with_momentum(tmp_path, "signum")
    edit_config(folder, weight_decay=0.01)
    detail = "decoupled weight decay 0.01 moves the weights beside the normalized step: no theorem covers it"
    breaks(the(folder), "objective", "violated", detail)
    edit_config(folder, weight_decay=0.0)
    certificate = the(folder, smoothness=RelaxedSmooth(1, 1))
    assert certificate.failing[0].name == "condition"
    assert certificate.failing[0].detail.startswith("the theorem is for L-smooth F")
    edit_rows(folder, {"dual_grad_norm": None})
    breaks(the(folder), "measurements", "unchecked", "not every row of seed 0, from step 0 to 10, has a dual_grad_norm")


@pytest.mark.slow
def test_smoothness_tracked_in_the_norm_can_refute_it(tmp_path):
    """In the norm of signs the saddle's L is Σλ at most, far above 1; Hessian eigenvalues say nothing of it."""
    folder = with_momentum(tmp_path, "signum", track="smoothness,curvature", seeds=(0,), eval_every=0.1)
    assert standing(the(folder))["smoothness"] == "given"
    assert standing(the(folder, smoothness=Smooth(1)))["smoothness"] == "violated"
    edit_rows(folder, {"smoothness_along": None, "smoothness_off": None, "hessian_max": 100.0})
    assert standing(the(folder, smoothness=Smooth(1)))["smoothness"] == "given"
