"""Measured local smoothness is its formula, its intervals cover the known value, and the model is left as it was."""

import copy
import math
import re

import pytest
import torch
from torch import nn

import sngd
from sngd.diagnose.objective import Objective
from sngd.diagnose.smoothness import GROUPS, local_smoothness
from sngd.norms import product_of
from sngd.problems.analytic import strict_saddle

DOUBLE = torch.float64


def exactly(message):
    return rf"^{re.escape(message)}$"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Weights(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)


class Quadratic:
    """F = mean of ½ wᵀH_i w + b_iᵀw, with random symmetric H_i of deviation ``spread`` about diag(1 … 0.1)."""

    def __init__(self, n=500, dim=8, spread=0.5):
        g = seeded()
        noise = spread * torch.randn(n, dim, dim, generator=g, dtype=DOUBLE)
        H = torch.logspace(0, -1, dim, dtype=DOUBLE).diag() + (noise + noise.mT) / 2
        b = torch.randn(n, dim, generator=g, dtype=DOUBLE)
        model = Weights(torch.randn(dim, generator=g, dtype=DOUBLE))

        def loss(batch):
            H, b = (part.mean(0) for part in batch)
            return 0.5 * model.w @ H @ model.w + b @ model.w

        self.objective = Objective(model, loss, (H, b))
        self.H, self.gradient = H.mean(0), (H.mean(0) @ model.w + b.mean(0)).detach()


def network(*, dtype=DOUBLE, layers=()):
    """A small classifier on random data, some of ``layers`` between."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), *layers, nn.Tanh(), nn.Linear(12, 3)).to(dtype)
    samples = torch.randn(60, 6, dtype=dtype), torch.randint(3, (60,))
    return Objective(model, lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), samples)


def contains(interval, value):
    return interval.low <= value <= interval.high


# ---- the numbers -----------------------------------------------------------------------------------------------


def test_over_all_samples_a_quadratic_is_known_exactly():
    q = Quadratic()
    u = -q.gradient / q.gradient.norm()
    found = local_smoothness(q.objective, lengths=[0.1, 2], generator=seeded())
    assert found.lengths == (0.1, 2.0)
    assert found.grad_norm == pytest.approx([q.gradient.norm().item()] * 3)
    for along, curvature in zip(found.along, found.curvature, strict=True):
        assert along == pytest.approx([(q.H @ u).norm().item()] * 3)  # no sampling error
        assert curvature == pytest.approx([(u @ q.H @ u).item()] * 3)


def test_any_length_of_direction_and_either_sign_of_a_quadratic():
    q = Quadratic()
    direction = torch.randn(8, generator=seeded(3), dtype=DOUBLE)
    one, other = (
        local_smoothness(q.objective, scale * direction, lengths=[1.0], directions=0, generator=seeded())
        for scale in (1, -1000)
    )
    assert one.along[0].value == pytest.approx((q.H @ direction / direction.norm()).norm().item())
    assert one.along[0].value == pytest.approx(other.along[0].value)
    assert one.off == ()
    assert one.largest_off is None


def test_it_is_the_difference_of_gradients_over_the_length():
    objective = network()
    step = torch.randn(objective.dim, generator=seeded(5), dtype=DOUBLE)
    found = local_smoothness(objective, step, lengths=[0.01, 0.5, 5.0], generator=seeded())
    u, here = step / step.norm(), objective.gradient()
    for s, along, curvature in zip(found.lengths, found.along, found.curvature, strict=True):
        with objective.moved(s * u):
            change = (objective.gradient() - here) / s
        assert along.value == pytest.approx(change.norm().item(), rel=1e-10)
        assert curvature.value == pytest.approx((u @ change).item(), rel=1e-9)
    assert len({round(along.value, 6) for along in found.along}) == 3
    assert found.largest_along.value == max(along.value for along in found.along)
    assert found.largest_off.value == max(off.value for off in found.off)


def test_curvature_is_negative_along_a_saddles_escape():
    analytic = strict_saddle(4, condition=10, start=[0.0] * 4, sigma=0, n=1, dtype=DOUBLE)
    model = analytic.problem.build_model()
    objective = Objective(model, lambda batch: analytic.problem.loss(model(batch[0]), batch[1]), analytic.problem.train)
    escape = torch.tensor([1.0, 0, 0, 0])
    found = local_smoothness(objective, escape, lengths=[1e-4], generator=seeded())
    assert found.curvature[0].value == pytest.approx(-0.1, rel=1e-6)
    assert found.along[0].value == pytest.approx(0.1, rel=1e-6)
    assert found.off[0].value > 0.1  # the other directions' curvature is 0.1 to 1


@pytest.mark.slow
def test_off_the_step_is_the_mean_over_orthogonal_directions():
    q = Quadratic(n=1, dim=4)
    u = torch.eye(4, dtype=DOUBLE)[0]
    found = local_smoothness(q.objective, u, lengths=[1.0], directions=1000, generator=seeded())
    v = torch.randn(100_000, 4, generator=seeded(1), dtype=DOUBLE)
    v[:, 0] = 0
    mean = ((v @ q.H).norm(dim=1) / v.norm(dim=1)).mean().item()
    assert contains(found.off[0], mean)
    assert found.off[0].high - found.off[0].low < 0.1 * mean


def test_same_masks_at_both_ends():
    objective = network(layers=[nn.Dropout(0.5)])
    short, long = local_smoothness(objective, lengths=[1e-5, 1e-3], generator=seeded()).along
    assert short.value == pytest.approx(long.value, rel=0.01)  # other masks would give a hundredfold


def test_rounding_bounds_what_single_precision_does():
    lengths = [10.0**-k for k in range(8)]
    single, exact = network(dtype=torch.float32), network()
    exact.model.load_state_dict({name: value.double() for name, value in single.model.state_dict().items()})
    exact.samples = single.samples[0].double(), single.samples[1]
    step = single.gradient()
    a, b = (local_smoothness(objective, step, lengths=lengths, generator=seeded()) for objective in (single, exact))
    errors = [abs(p.value - q.value) for p, q in zip(a.along, b.along, strict=True)]
    assert all(error <= rounding for error, rounding in zip(errors, a.rounding, strict=True))
    assert errors[-1] > 0.01 * b.along[-1].value  # s = 1e-7 is too short, and the report says so
    assert a.rounding[-1] > a.along[-1].value
    assert a.rounding[2] < 0.001 * a.along[2].value


# ---- the intervals ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "size", "spread"),
    [
        pytest.param(2000, 100, 0.3, id="little noise"),
        pytest.param(2000, 100, 4.0, id="much noise"),
        pytest.param(200, 100, 1.0, id="half of all samples"),
        pytest.param(1000, 13, 0.3, id="groups of one and two"),
    ],
)
def test_intervals_cover_what_is_known(n, size, spread):
    q = Quadratic(n, spread=spread)
    step = torch.randn(8, generator=seeded(9), dtype=DOUBLE)
    u = step / step.norm()
    known = q.gradient.norm().item(), (q.H @ u).norm().item(), (u @ q.H @ u).item()
    generator, hits, repetitions = seeded(1), torch.zeros(3), 300
    for _ in range(repetitions):
        batch = q.objective.draw(size, generator)
        found = local_smoothness(q.objective, step, lengths=[0.5], directions=0, batch=batch, generator=generator)
        measured = found.grad_norm, found.along[0], found.curvature[0]
        hits += torch.tensor([contains(m, k) for m, k in zip(measured, known, strict=True)])
    rates = (hits / repetitions).tolist()
    assert min(rates) >= 0.915  # 0.95 less three standard errors
    assert rates[2] <= 0.985  # a mean's interval is not too wide either


@pytest.mark.slow
def test_intervals_cover_along_the_batchs_own_gradient():
    q = Quadratic(1000, spread=1.0)
    generator, hits, repetitions = seeded(2), 0, 300
    for _ in range(repetitions):
        batch = q.objective.draw(100, generator)
        found = local_smoothness(q.objective, lengths=[0.5], directions=0, batch=batch, generator=generator)
        g = q.objective.gradient(batch)
        hits += contains(found.along[0], (q.H @ g / g.norm()).norm().item())
    assert hits >= 0.915 * repetitions


@pytest.mark.slow
def test_interval_off_the_step_covers_directions_and_samples():
    q = Quadratic(1000, spread=1.0)
    step = torch.eye(8, dtype=DOUBLE)[3]
    v = torch.randn(200_000, 8, generator=seeded(1), dtype=DOUBLE)
    v[:, 3] = 0
    known = ((v @ q.H).norm(dim=1) / v.norm(dim=1)).mean().item()
    generator, hits, repetitions = seeded(4), 0, 300
    for _ in range(repetitions):
        batch = q.objective.draw(100, generator)
        found = local_smoothness(q.objective, step, lengths=[0.5], batch=batch, generator=generator)
        hits += contains(found.off[0], known)
    assert hits >= 0.915 * repetitions


@pytest.mark.slow
def test_noise_does_not_raise_the_estimate():
    q = Quadratic(1000, dim=30, spread=3.0)
    step = torch.eye(30, dtype=DOUBLE)[0]
    generator, squares, raw = seeded(5), [], []
    for _ in range(100):
        batch = q.objective.draw(60, generator)
        found = local_smoothness(q.objective, step, lengths=[1.0], directions=0, batch=batch, generator=generator)
        squares.append(found.along[0].value ** 2)
        raw.append((batch[0].mean(0) @ step).norm().item() ** 2)
    known = (q.H @ step).norm().item() ** 2
    assert torch.tensor(raw).mean() > 2 * known
    assert torch.tensor(squares).mean() == pytest.approx(known, rel=0.15)


# ---- what it costs, what it leaves -----------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [0, 2, 5])
def test_oracle_calls(directions):
    q = Quadratic()
    q.objective.gradient()
    batch = q.objective.draw(37, seeded())
    found = local_smoothness(q.objective, lengths=[0.1, 1, 10], directions=directions, batch=batch, generator=seeded())
    assert found.oracle_calls == 37 * (1 + 3 * (1 + directions))
    assert q.objective.oracle_calls == 500 + found.oracle_calls
    assert local_smoothness(q.objective, lengths=[1], directions=2, generator=seeded()).oracle_calls == 500 * 4


def test_model_and_chance_are_left_as_they_were():
    objective = network(layers=[nn.BatchNorm1d(12), nn.Dropout(0.2)])
    before, random, samples = copy.deepcopy(objective.model.state_dict()), torch.get_rng_state(), objective.samples[0]
    objective.params[0].grad = torch.ones_like(objective.params[0])
    kept, generator = samples.clone(), seeded(8)
    local_smoothness(objective, lengths=[0.3], directions=0, generator=generator)
    assert torch.equal(generator.get_state(), seeded(8).get_state())
    local_smoothness(objective, lengths=[0.3], generator=generator)
    assert all(torch.equal(value, before[name]) for name, value in objective.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(objective.params[0].grad, torch.ones_like(objective.params[0]))
    assert torch.equal(samples, kept)
    assert objective.model.training


def test_it_repeats_itself():
    objective = network(layers=[nn.Dropout(0.2)])
    batch = objective.draw(30, seeded())
    first, again, other = (
        local_smoothness(objective, lengths=[0.1, 1], batch=batch, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.along == other.along
    assert first.off != other.off


def test_what_overflows_is_not_a_number():
    model = Weights(torch.ones(3))
    objective = Objective(model, lambda batch: model.w.exp().sum() + 0 * batch.sum(), torch.zeros(20, 1))
    batch = objective.draw(10, seeded())
    found = local_smoothness(objective, torch.ones(3), lengths=[1e3, 0.1], batch=batch, generator=seeded())
    assert [math.isnan(number) for number in found.along[0]] == [True] * 3
    assert [math.isnan(number) for number in found.off[0]] == [True] * 3
    assert math.isnan(found.largest_along.value)
    assert found.along[1].value == pytest.approx((math.exp(0.1 / 3**0.5) - 1) * math.e * 3**0.5 / 0.1, rel=1e-4)


def test_fewer_samples_than_groups():
    q = Quadratic(n=GROUPS - 3)
    found = local_smoothness(q.objective, lengths=[1.0], generator=seeded())
    assert found.grad_norm == pytest.approx([q.gradient.norm().item()] * 3)
    one = Quadratic(n=1)
    assert local_smoothness(one.objective, lengths=[1.0], generator=seeded()).grad_norm.value == pytest.approx(
        one.gradient.norm().item()
    )


# ---- what it refuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": []}, "lengths must be finite numbers > 0, at least one, got []"),
        ({"lengths": [0.1, 0]}, "lengths must be finite numbers > 0, at least one, got [0.1, 0]"),
        ({"lengths": [float("inf")]}, "lengths must be finite numbers > 0, at least one, got [inf]"),
        ({"directions": 1}, "directions must be 0 or at least 2, got 1"),
        ({"directions": -1}, "directions must be 0 or at least 2, got -1"),
        ({"direction": torch.ones(7)}, "direction must have shape (8,), got (7,)"),
        ({"direction": torch.zeros(8)}, "direction must be finite and not zero, its norm is 0.0"),
        ({"direction": torch.full((8,), torch.nan)}, "direction must be finite and not zero, its norm is nan"),
        ({"batch": (torch.zeros(2, 8, 8), torch.zeros(2, 8))}, "batch must have at least 3 samples, got 2"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=exactly(message)):
        local_smoothness(Quadratic().objective, **{"lengths": [1.0], "generator": seeded(), **options})


def test_one_weight_has_no_direction_off_the_step():
    objective = Quadratic(dim=1).objective
    assert local_smoothness(objective, lengths=[1.0], directions=0, generator=seeded()).off == ()
    with pytest.raises(ValueError, match=exactly("directions must be 0 for a model of one weight, got 4")):
        local_smoothness(objective, lengths=[1.0], generator=seeded())


def test_a_stationary_point_has_no_step():
    q = Quadratic()
    with torch.no_grad():
        q.objective.params[0].zero_()
    q.objective.samples[1].zero_()
    with pytest.raises(ValueError, match=exactly("direction must be finite and not zero, its norm is 0.0")):
        local_smoothness(q.objective, lengths=[1.0], generator=seeded())


# ---- in other norms --------------------------------------------------------------------------------------------


def in_dual(norm, vector, shapes):
    """‖v‖* of a flat vector, weight by weight, for the norms whose duals are one line."""
    parts = vector.split([math.prod(shape) for shape in shapes])
    if norm == "sign(scaled=False)":
        return sum(part.abs().sum().item() for part in parts)
    matrices = (
        part.view(shape) if len(shape) == 2 else part[:, None] for part, shape in zip(parts, shapes, strict=True)
    )
    return sum(torch.linalg.matrix_norm(matrix, "nuc").item() for matrix in matrices)


def test_along_signs_a_quadratic_is_known_exactly():
    """For the largest entry u = −sign(∇F), and L̂ = Σ_i |(H u)_i| whatever the length."""
    q = Quadratic()
    u = -q.gradient.sign()
    found = local_smoothness(q.objective, lengths=[0.1, 2], generator=seeded(), norm="sign(scaled=False)")
    assert found.grad_norm == pytest.approx([q.gradient.abs().sum().item()] * 3)
    for along, curvature in zip(found.along, found.curvature, strict=True):
        assert along == pytest.approx([(q.H @ u).abs().sum().item()] * 3)
        assert curvature == pytest.approx([(u @ q.H @ u).item()] * 3)


def test_no_step_of_signs_exceeds_the_quadratics_l():
    """L = max Σ|Hu| over the corners of the cube; random signs off the step come near it, and not above."""
    q = Quadratic(n=1, dim=6)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=DOUBLE)] * 6)
    L = (corners @ q.H).abs().sum(1).max().item()
    found = [
        local_smoothness(q.objective, lengths=[1.0], directions=2, generator=seeded(i), norm="sign(scaled=False)")
        for i in range(30)
    ]
    assert all(one.along[0].value <= L * (1 + 1e-12) for one in found)
    assert 0.6 * L < max(one.off[0].value for one in found) <= L * (1 + 1e-12)


@pytest.mark.parametrize("norm", ["sign(scaled=False)", "spectral(scaled=False)"])
def test_it_is_the_difference_of_gradients_in_the_dual_norm(norm):
    """Exact dual norms, though the direction of spectral steps is Newton–Schulz's; its size is 1 all the same."""
    objective = network()
    shapes = [tuple(p.shape) for p in objective.params]
    step = torch.randn(objective.dim, generator=seeded(5), dtype=DOUBLE)
    found = local_smoothness(objective, step, lengths=[0.01, 0.5], generator=seeded(), norm=norm)
    product = product_of(objective.params, norm)
    u = torch.cat([part.flatten() for part in product.units(objective.split(step))])
    u /= product.exact.size(objective.split(u))
    here = objective.gradient()
    assert found.grad_norm.value == pytest.approx(in_dual(norm, here, shapes))
    for s, along in zip(found.lengths, found.along, strict=True):
        with objective.moved(s * u):
            assert along.value == pytest.approx(in_dual(norm, objective.gradient() - here, shapes) / s, rel=1e-8)


def test_l2_in_any_spelling_is_the_default():
    objective = network()
    default, *others = (
        local_smoothness(objective, lengths=[0.1], batch=objective.draw(30, seeded()), generator=seeded(), **given)
        for given in ({}, {"norm": "l2"}, {"norm": [{"params": objective.params, "norm": "l2", "lr": 0.3}]})
    )
    assert others == [default, default._replace(oracle_calls=default.oracle_calls)]


def test_param_groups_bring_norms_and_radii():
    objective = network()
    groups = sngd.groups(objective.model, lr=0.1)
    found = local_smoothness(objective, lengths=[0.1], generator=seeded(), norm=groups)
    product = product_of(objective.params, groups).exact
    gradient = objective.gradient()
    assert found.grad_norm.value == pytest.approx(product.dual(objective.split(gradient)).item())
    with pytest.raises(ValueError, match="norm must have every one of the model's 4 weights once, got 3"):
        local_smoothness(
            objective, lengths=[0.1], generator=seeded(), norm=[g for g in groups if g["kind"] != "output"]
        )


@pytest.mark.slow
@pytest.mark.parametrize(("drawn", "of"), [(40, 20_000), (250, 500)])
def test_the_interval_in_a_dual_norm_covers_the_truth(drawn, of):
    """95 % intervals, 150 batches: few miss, also where half of all samples are in the batch. L̂ = Σ|Hu| is known."""
    q = Quadratic(n=of)
    u = -q.gradient.sign()
    truths = (q.H @ u).abs().sum().item(), q.gradient.abs().sum().item()
    misses, widths = [0, 0], [0.0, 0.0]
    for i in range(150):
        found = local_smoothness(
            q.objective, -q.gradient, lengths=[1.0], directions=0, batch=q.objective.draw(drawn, seeded(i)),
            generator=seeded(), norm="sign(scaled=False)",
        )  # fmt: skip
        for k, interval in enumerate((found.along[0], found.grad_norm)):
            assert interval.low <= interval.value <= interval.high
            misses[k] += not contains(interval, truths[k])
            widths[k] += (interval.high - interval.low) / truths[k] / 150
    assert max(misses) <= 150 * 0.10  # at a true rate of 5 %, more than 15 misses have probability 0.003
    assert max(widths) < 3
    if drawn == 250:
        assert max(widths) < 0.7
