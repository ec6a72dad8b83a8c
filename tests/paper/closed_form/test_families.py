"""Families of random objectives: the constants that their docstrings prove, held against Hessians and gradients."""

import math

import pytest
import torch

from sngd.estimators.minibatch import MiniBatch
from sngd.paper.closed_form.families import (
    FAMILIES,
    exponential,
    log_uniform,
    logistic,
    phase_retrieval,
    quadratic,
    saddle,
)
from sngd.problems.analytic import relaxed_smooth
from sngd.theory import RelaxedSmooth

DOUBLE = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(instance, count, seed):
    """w_0 and random points in the ball where the constants hold, half of them on its boundary."""
    g = generator(seed)
    offsets = torch.randn(count, len(instance.start), generator=g, dtype=DOUBLE)
    radius = 3.0 if math.isinf(instance.reach) else instance.reach
    lengths = radius * torch.rand(count, 1, generator=g, dtype=DOUBLE)
    lengths[: count // 2] = radius
    return torch.cat([instance.start[None], instance.start + lengths * offsets / offsets.norm(dim=1, keepdim=True)])


def hessian_norm(instance, w):
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(instance.value, w)).abs().max().item()


@pytest.fixture(params=FAMILIES)
def instances(request):
    return [FAMILIES[request.param](generator(seed)) for seed in range(8)]


def test_no_hessian_exceeds_the_smoothness(instances):
    for seed, instance in enumerate(instances):
        for w in points(instance, 10, seed):
            smoothness = instance.smoothness
            if isinstance(smoothness, RelaxedSmooth):
                slope = torch.func.grad(instance.value)(w).norm().item()
                bound = smoothness.L0 + smoothness.L1 * slope
            else:
                bound = smoothness.L
            assert hessian_norm(instance, w) <= bound * (1 + 1e-12)


def test_the_gradients_variance_is_at_most_sigma_squared(instances):
    for seed, instance in enumerate(instances):
        for w in points(instance, 10, seed):
            gradients = torch.func.jacrev(instance.losses)(w, instance.samples)
            variance = (gradients - gradients.mean(0)).square().sum(1).mean().item()
            assert variance <= instance.sigma**2 * (1 + 1e-12)


def test_no_value_is_below_the_infimum(instances):
    for seed, instance in enumerate(instances):
        infimum = instance.value(instance.start) - instance.gap
        assert (instance.value(points(instance, 100, seed)) >= infimum - 1e-12).all()


def test_leading_dimensions_are_independent(instances):
    instance = instances[0]
    weights = points(instance, 3, seed=0)
    drawn = torch.randint(len(instance.samples), (4, 5), generator=generator())
    together = instance.losses(weights, instance.samples[drawn])
    assert together.shape == (4, 5)
    for row, w, batch in zip(together, weights, drawn, strict=True):
        torch.testing.assert_close(row, instance.losses(w, instance.samples[batch]))


def test_as_a_problem_it_has_the_same_gradient_and_start(instances):
    instance = instances[0]
    problem = instance.problem()
    model = problem.build_model()
    inputs, targets = problem.train
    loss = MiniBatch(model, len(inputs)).estimate(
        lambda batch: problem.loss(model(batch[0]), batch[1]), (inputs, targets)
    )
    assert torch.equal(model.w, instance.start)
    torch.testing.assert_close(loss, instance.value(instance.start))
    torch.testing.assert_close(model.w.grad, torch.func.grad(instance.value)(instance.start))


@pytest.mark.parametrize("draw_instance", FAMILIES.values(), ids=FAMILIES)
def test_a_seed_repeats_and_another_differs(draw_instance):
    first, again, other = (draw_instance(generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.samples, again.samples)
    assert first.smoothness == again.smoothness != other.smoothness


@pytest.mark.parametrize("draw_instance", [quadratic, saddle])
def test_additive_noise_has_exactly_sigma_and_L_is_attained(draw_instance):
    for seed in range(5):
        instance = draw_instance(generator(seed))
        assert instance.samples.square().sum(1).mean().sqrt().item() == pytest.approx(instance.sigma, rel=1e-12)
        assert hessian_norm(instance, torch.zeros_like(instance.start)) == pytest.approx(instance.smoothness.L)


def test_the_saddle_has_a_negative_direction_and_starts_near_its_stable_manifold():
    instance = saddle(generator())
    curvatures = torch.autograd.functional.hessian(instance.value, torch.zeros_like(instance.start)).diag()
    assert (curvatures < 0).any()
    assert (curvatures > 0).any()
    assert instance.start[curvatures < 0].abs().max() < 0.01


def test_the_exponential_family_is_relaxed_smooth():
    instance = exponential(generator(1))
    L0, L1 = instance.smoothness.L0, instance.smoothness.L1
    twin = relaxed_smooth(len(instance.start), L0=L0, L1=L1, start=instance.start, sigma=0.0, n=1, dtype=DOUBLE)
    assert instance.gap == pytest.approx(twin.gap)


def test_logistic_L_is_attained_at_zero():
    instance = logistic(generator())
    assert hessian_norm(instance, torch.zeros_like(instance.start)) == pytest.approx(instance.smoothness.L)


def test_phase_retrieval_leaves_its_constants_outside_the_ball():
    instance = phase_retrieval(generator())
    assert hessian_norm(instance, instance.start * 100) > instance.smoothness.L


def test_log_uniform_stays_within_its_range():
    g = generator()
    drawn = [log_uniform(0.1, 10, g) for _ in range(1000)]
    assert 0.1 <= min(drawn) < 0.12
    assert 8 < max(drawn) <= 10
    assert sum(x < 1 for x in drawn) == pytest.approx(500, abs=60)
