"""Claim C7: the lemmas and theorems hold on random instances, and the checks would notice if they did not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ink import ink

from sngd.paper.closed_form import conformance
from sngd.paper.closed_form.families import FAMILIES, exponential, phase_retrieval, quadratic
from sngd.stages import StagePlan
from sngd.theory import RelaxedSmooth, Smooth


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(conformance.INSTANCES, "quick", 3)
        return conformance.measure("quick")


@pytest.mark.slow
def test_nothing_is_violated_and_a_quarter_of_the_constants_is_caught(measured):
    result = conformance.summary(measured)
    assert result["families"] == 7
    assert result["instances"] == 21
    assert result["comparisons"] == measured["comparisons"] == 105
    assert result["lemma_violations"] == result["theorem_violations"] == result["outside"] == 0
    assert 0.9 < result["largest_ratio"] <= 1
    assert result["caught_share_tight"] == 1
    assert result["caught_share"] > 0.5
    assert result["caught_by_theorem"] > 0


@pytest.mark.slow
def test_every_step_of_every_run_and_seed_is_counted(measured):
    for family in measured["families"].values():
        steps = sum(
            count * (1 if batch_size is None else measured["seeds"])
            for run in family["runs"].values()
            for count, batch_size in zip(run["steps"], run["batch_size"], strict=True)
        )
        assert family["steps"] == sum(family["slack"]["counts"]) == steps
        assert 0 < family["largest_lemma_ratio"] <= 1 + 1e-9


@pytest.mark.slow
def test_each_instance_meets_its_theorems(measured):
    families = measured["families"].items()
    theorems = {name: {run["theorem"] for run in family["runs"].values()} for name, family in families}
    assert theorems.pop("exponential") == {"Theorem 2", "Theorem 4", "Remark 1 to Theorem 4"}
    assert all(names == {"Theorem 1", "Theorem 3", "Remark 1 to Theorem 3"} for names in theorems.values())


def test_plans_meet_the_theorems_conditions():
    for draw_instance in FAMILIES.values():
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            instance = draw_instance(generator)
            for draw_plan in conformance._PLANS.values():
                plan = draw_plan(instance, generator)
                assert all(stage.lr <= instance.smoothness.max_lr for stage in plan)
                assert sum(stage.lr * stage.steps for stage in plan) <= instance.reach * (1 + 1e-12)


def test_a_walk_is_what_a_plain_loop_does():
    instance = quadratic(torch.Generator().manual_seed(0))
    plan = StagePlan([(0.3, 4), (0.05, 3, 2.0)])
    path = conformance.walk(instance, plan, 5, seeds=2, generator=torch.Generator().manual_seed(1))
    generator, gradient = torch.Generator().manual_seed(1), torch.func.grad(instance.value)
    weights = [instance.start.clone() for _ in range(2)]
    for t in range(plan.steps):
        drawn = torch.randint(len(instance.samples), (2, 5), generator=generator)
        for seed, w in enumerate(weights):
            g = gradient(w) + instance.samples[drawn[seed]].mean(0)
            assert path.values[t, seed].item() == pytest.approx(instance.value(w).item())
            assert path.norms[t, seed].item() == pytest.approx(gradient(w).norm().item())
            assert path.errors[t, seed].item() == pytest.approx((g - gradient(w)).norm().item())
            weights[seed] = w - plan.lr_at(t) * g / g.norm()
            assert path.distances[t, seed].item() == pytest.approx((weights[seed] - instance.start).norm().item())
    assert path.values[-1].tolist() == pytest.approx([instance.value(w).item() for w in weights])


def test_the_mean_is_over_the_drawn_output_and_delta_over_the_stages_starts():
    instance, plan = quadratic(torch.Generator().manual_seed(0)), StagePlan([(0.3, 2, 1.0), (0.1, 4, 3.0)])
    zeros = torch.zeros(6, 2, dtype=torch.float64)
    norms = torch.tensor([[1.0, 3], [1, 3], [2, 2], [2, 2], [2, 2], [4, 4]], dtype=torch.float64)
    values = torch.tensor([[5.0, 5], [9, 9], [6, 8], [0, 0], [0, 0], [0, 0], [0, 0]], dtype=torch.float64)
    path = conformance.Walk(values, norms, zeros, zeros)
    compared = conformance._compare(instance, plan, 7, path, quantile=1.0)
    assert compared.mean == pytest.approx((0.25 * 1 + 0.75 * 2.5 + 0.25 * 3 + 0.75 * 2.5) / 2)
    assert compared.gap == pytest.approx(instance.gap + 3)  # 8 at a stage's start, 5 at w_0; 9 is inside a stage
    assert compared.theorem == "Theorem 3"


def test_wrong_constants_are_a_quarter():
    assert conformance.wrong(Smooth(8)) == Smooth(2)
    assert conformance.wrong(RelaxedSmooth(8, 4)) == RelaxedSmooth(2, 1)


@pytest.mark.parametrize("draw_instance", [quadratic, exponential])
def test_a_lemma_without_the_gradient_error_is_refuted(draw_instance):
    instance = draw_instance(torch.Generator().manual_seed(2))
    plan = StagePlan([(0.1, 40)])
    path = conformance.walk(instance, plan, 1, seeds=4, generator=torch.Generator().manual_seed(1))
    assert conformance._check_lemma(instance.smoothness, plan, path)[1] == 0
    blind = path._replace(errors=torch.zeros_like(path.errors))
    assert conformance._check_lemma(instance.smoothness, plan, blind)[1] > 0


def test_a_bound_that_is_too_small_is_refuted(monkeypatch):
    instance = quadratic(torch.Generator().manual_seed(0))
    plan = StagePlan([(1.0, 60)])  # so long that the curvature term is nearly all
    path = conformance.walk(instance, plan, None, seeds=1, generator=torch.Generator())
    assert not conformance._compare(instance, plan, None, path, quantile=1.0).violated
    right = conformance._bound

    def halved(*args):
        theorem, gap, bound = right(*args)
        return theorem, gap, replace(bound, progress=bound.progress / 2, curvature=bound.curvature / 2)

    monkeypatch.setattr(conformance, "_bound", halved)
    assert conformance._compare(instance, plan, None, path, quantile=1.0).violated


def test_leaving_the_ball_is_noticed():
    instance = phase_retrieval(torch.Generator().manual_seed(0))
    plan = StagePlan([(instance.reach, 3)])
    path = conformance.walk(instance, plan, None, seeds=1, generator=torch.Generator().manual_seed(1))
    assert path.distances[0].item() == pytest.approx(instance.reach)
    assert path.distances.max() > instance.reach


def test_students_quantile_keeps_the_stated_error_rate():
    """Runs whose mean is exactly the bound, the hardest case, are refuted at the stated rate."""
    rng = np.random.default_rng(0)
    level, quantile = 0.05, conformance.student(0.05)
    gaps = rng.standard_normal((4000, conformance.SEEDS))
    errors = gaps.std(axis=1, ddof=1) / np.sqrt(conformance.SEEDS)
    assert (gaps.mean(1) > quantile * errors).mean() == pytest.approx(level, abs=0.012)


@pytest.mark.slow
def test_it_can_be_written_and_drawn(measured, tmp_path):
    json.dumps(measured, allow_nan=False)
    json.dumps(conformance.summary(measured), allow_nan=False)
    pictures = conformance.draw(measured, tmp_path)
    assert [path.name for path in pictures] == ["conformance.png", "conformance.svg"]
    assert ink(pictures[0]) > 0.05
    assert pictures[1].stat().st_size > 50_000


def test_an_unknown_profile_is_named():
    with pytest.raises(ValueError, match=r"^profile must be one of quick, small, got 'huge'$"):
        conformance.measure("huge")
