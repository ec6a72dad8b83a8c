"""Claim C8: normalized steps leave saddles quickly from anywhere; the study that measures and draws it."""

import json
import math

import pytest
import torch
from ink import ink

from sngd import SNGD
from sngd.paper.closed_form import escape
from sngd.paper.reproduce import reproduce

DOUBLE = torch.float64


def random_saddle(generator, dim, condition):
    """A quadratic with Hessian of condition number κ, L = 1, and one to dim − 1 negative directions."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=DOUBLE))[0]
    sizes = condition ** -torch.rand(dim, generator=generator, dtype=DOUBLE)
    sizes[0], sizes[-1] = 1.0, 1 / condition
    negative = int(torch.randint(1, dim, (), generator=generator))
    signs = torch.ones(dim, dtype=DOUBLE)
    signs[torch.randperm(dim, generator=generator)[:negative]] = -1
    return basis @ torch.diag(signs * sizes) @ basis.T, basis, signs


def steps_to_leave(hessian, w, optimizer, radius=1.0, limit=200_000):
    stepper = optimizer([w])
    for step in range(limit):
        if w.detach().norm() >= radius:
            return step
        w.grad = hessian @ w.detach()
        stepper.step()
    raise AssertionError("never left")


@pytest.mark.slow
@pytest.mark.parametrize("condition", [2.0, 10.0, 50.0])
def test_ngds_path_out_of_a_ball_is_below_five_root_kappa_r(condition):
    """Murray, Swenson and Kar 2017, from starts within 10⁻¹² of the stable manifold; lr small against the radius."""
    generator, lr = torch.Generator().manual_seed(int(condition)), 1 / 200
    longest = 0.0
    for _ in range(12):
        hessian, basis, signs = random_saddle(generator, 5, condition)
        coordinates = torch.randn(5, generator=generator, dtype=DOUBLE)
        coordinates[signs < 0] *= 10 ** (-12 * torch.rand((), generator=generator, dtype=DOUBLE))
        inside = torch.rand((), generator=generator, dtype=DOUBLE)
        w = torch.nn.Parameter(basis @ (coordinates / coordinates.norm() * inside))
        length = lr * steps_to_leave(hessian, w, lambda params: SNGD(params, lr=lr))
        assert length < 5 * math.sqrt(condition)
        longest = max(longest, length)
    assert longest > 1  # they had a way to go


def test_gds_time_grows_without_bound_towards_the_stable_manifold():
    hessian = torch.diag(torch.tensor([1.0, -0.1], dtype=DOUBLE))
    steps, bound = [], 5 * math.sqrt(10) / 0.01
    for exponent in (2, 4, 8, 12):
        start = torch.tensor([0.9, 10.0**-exponent], dtype=DOUBLE)
        w = torch.nn.Parameter(start.clone())
        steps.append(steps_to_leave(hessian, w, lambda params: torch.optim.SGD(params, lr=0.1)))
        closed_form = math.log(10**exponent) / math.log(1.01)
        assert steps[-1] == pytest.approx(closed_form, rel=0.02)
        w = torch.nn.Parameter(start.clone())
        assert steps_to_leave(hessian, w, lambda params: SNGD(params, lr=0.01)) < bound
    assert steps[3] > 5 * steps[0]


@pytest.fixture(scope="module")
def measured():
    return escape.measure("quick")


@pytest.mark.slow
def test_the_study_measures_what_it_says(measured):
    assert {"trajectories", "from_saddle", "from_manifold", "dimension", "tensor"} <= measured.keys()
    json.dumps(measured, allow_nan=False)
    for part in ("from_saddle", "from_manifold"):
        distances, steps = measured[part]["distances"], measured[part]["steps"]
        gd, ngd = steps["GD, lr 0.1"], steps["NGD, lr 0.1"]
        assert len(gd) == len(ngd) == len(distances)
        assert all(max(n) < min(g) for n, g in zip(ngd, gd, strict=True))  # at every distance, every seed
        assert sum(gd[-1]) > 2 * sum(gd[0])
        assert sum(ngd[-1]) < sum(gd[0])


@pytest.mark.slow
def test_on_three_components_saddle_ngd_leaves_before_noisy_gd(measured):
    """Of this instance alone: with six components, ``results/small/fig1``, Noisy-GD leaves first and ends higher."""
    losses, steps = measured["tensor"]["losses"], measured["tensor"]["steps"]

    def first_below_half(curve):
        return next(step for step, loss in zip(steps, curve, strict=True) if loss < 0.5 * curve[0])

    left = {name: [first_below_half(curve) for curve in curves] for name, curves in losses.items()}
    (saddle_ngd,) = (v for k, v in left.items() if k.startswith("Saddle-NGD"))
    (noisy_gd,) = (v for k, v in left.items() if k.startswith("Noisy-GD"))
    assert max(saddle_ngd) < min(noisy_gd)


@pytest.mark.slow
def test_the_picture_is_drawn(measured, tmp_path):
    pictures = escape.draw(measured, tmp_path)
    assert {path.suffix for path in pictures} == {".png", ".svg"}
    assert ink(pictures[0]) > 0.05
    assert pictures[1].stat().st_size > 50_000


def test_reproduce_names_mistakes_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="unknown figure 'fig9'; must be one of fig1"):
        reproduce("fig9", "quick", tmp_path)
    with pytest.raises(ValueError, match="unknown profile 'huge'; fig1 has quick, small"):
        reproduce("fig1", "huge", tmp_path)
    assert not list(tmp_path.iterdir())
