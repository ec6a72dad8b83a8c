"""Objectives in closed form: their constants hold, their critical points are where they are said to be."""

import math
import re

import pytest
import torch

from sngd import SNGD
from sngd.problems import PROBLEMS, load_problem
from sngd.problems.analytic import relaxed_smooth, sharp_and_flat, strict_saddle, tensor_decomposition
from sngd.problems.problem import classifies

DOUBLE = torch.float64
SMOOTH = {
    "saddle": lambda **options: strict_saddle(6, negative=2, dtype=DOUBLE, **options),
    "sharp-flat": lambda **options: sharp_and_flat(3, dtype=DOUBLE, **options),
    "relaxed": lambda **options: relaxed_smooth(4, L0=0.7, L1=1.3, dtype=DOUBLE, **options),
}


def function(analytic):
    """F as a function of w alone: the mean over all samples."""
    problem = analytic.problem
    model = problem.build_model()

    def value(w):
        return problem.loss(torch.func.functional_call(model, {"w": w}, (problem.train[0],)), problem.train[1])

    return value


def start(analytic):
    return analytic.problem.build_model().w.detach()


def hessian(F, w):
    return torch.autograd.functional.hessian(F, w).reshape(w.numel(), w.numel())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_constants_bound_the_hessian_everywhere(name):
    analytic = SMOOTH[name]()
    F, generator = function(analytic), torch.Generator().manual_seed(0)
    largest = 0.0
    for scale in (0.1, 1.0, 3.0, 8.0):
        for _ in range(40):
            w = scale * torch.randn(start(analytic).shape, generator=generator, dtype=DOUBLE)
            if name == "sharp-flat":  # about the hole, too
                w[0] += 3.0 * (torch.rand((), generator=generator) < 0.5)
            norm = torch.linalg.matrix_norm(hessian(F, w), 2).item()
            gradient = torch.func.grad(F)(w).norm().item()
            assert norm <= (analytic.L0 + analytic.L1 * gradient) * (1 + 1e-9) + 1e-9
            if analytic.L is not None:
                assert norm <= analytic.L * (1 + 1e-9) + 1e-9
            largest = max(largest, norm)
    if analytic.L is not None:
        assert largest >= 0.3 * analytic.L  # no idle constant


def test_relaxed_smooth_is_smooth_for_no_constant():
    F = function(SMOOTH["relaxed"]())
    norms = [torch.linalg.matrix_norm(hessian(F, torch.full((4,), x, dtype=DOUBLE)), 2).item() for x in (1, 5, 10)]
    assert norms[1] > 50 * norms[0]
    assert norms[2] > 500 * norms[1]


def test_gradients_are_the_closed_forms():
    generator = torch.Generator().manual_seed(0)
    center = torch.tensor([3.0, 0, 0], dtype=DOUBLE)

    def of_saddle(w):  # L = 1, κ = 10, two directions falling, four rising
        return torch.cat([-0.1 * w[:2].sin(), w[2:] * 10 ** -torch.linspace(0, 1, 4, dtype=DOUBLE)])

    def of_sharp_and_flat(w):  # λ = 0.02, ρ = 0.3
        hole = torch.exp(-(w - center).square().sum() / (2 * 0.3**2))
        return 0.02 * (1 - hole) * w + 0.02 / (2 * 0.3**2) * w.square().sum() * hole * (w - center)

    def of_relaxed(w):
        return 0.7 / 1.3 * torch.sinh(1.3 * w)

    for name, gradient in (("saddle", of_saddle), ("sharp-flat", of_sharp_and_flat), ("relaxed", of_relaxed)):
        analytic = SMOOTH[name]()
        F = function(analytic)
        for _ in range(20):
            w = start(analytic) + 0.3 * torch.randn(start(analytic).shape, generator=generator, dtype=DOUBLE)
            torch.testing.assert_close(torch.func.grad(F)(w), gradient(w), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_noise_is_centred_and_has_the_sigma_asked_for(name):
    analytic = SMOOTH[name](sigma=0.3, n=50)
    noise = analytic.problem.train[0]
    assert noise.mean(0).abs().max() < 1e-12
    assert noise.square().sum(1).mean().item() == pytest.approx(0.3**2, rel=1e-12)
    model = analytic.problem.build_model()
    gradients = [torch.autograd.grad(model(a[None]).sum(), model.w)[0] for a in noise]
    torch.testing.assert_close(torch.stack(gradients).mean(0), torch.func.grad(function(analytic))(model.w.detach()))


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gap_is_that_of_the_start(name):
    analytic = SMOOTH[name]()
    assert function(analytic)(start(analytic)).item() == pytest.approx(analytic.gap, rel=1e-9)


def test_the_saddle_and_its_minima():
    analytic = strict_saddle(5, L=2.0, condition=8.0, negative=2, dtype=DOUBLE)
    F, zero = function(analytic), torch.zeros(5, dtype=DOUBLE)
    assert torch.func.grad(F)(zero).norm() < 1e-12
    eigenvalues = torch.linalg.eigvalsh(hessian(F, zero))
    torch.testing.assert_close(eigenvalues[:2], torch.full((2,), -2.0 / 8, dtype=DOUBLE))
    assert eigenvalues[2].item() == pytest.approx(2.0 / 8)
    assert eigenvalues[-1].item() == pytest.approx(2.0)
    minimum = torch.tensor([math.pi, -math.pi, 0, 0, 0], dtype=DOUBLE)
    assert F(minimum).item() == pytest.approx(0, abs=1e-12)
    assert torch.func.grad(F)(minimum).norm() < 1e-12


def test_the_sharp_and_the_flat_minimum():
    F = function(sharp_and_flat(2, flatness=0.02, distance=3.0, width=0.3, dtype=DOUBLE))
    flat, sharp = torch.zeros(2, dtype=DOUBLE), torch.tensor([3.0, 0.0], dtype=DOUBLE)
    for w, curvature in ((flat, 0.02), (sharp, 0.02 * 9 / (2 * 0.09))):
        assert F(w).item() == pytest.approx(0, abs=1e-12)
        assert torch.func.grad(F)(w).norm() < 1e-12
        torch.testing.assert_close(hessian(F, w), curvature * torch.eye(2, dtype=DOUBLE), rtol=1e-6, atol=1e-9)


def test_tensor_decomposition_is_its_closed_form_with_its_known_points():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=DOUBLE))[0]
    F = function(tensor_decomposition(4, components=basis, dtype=DOUBLE))

    def closed_form(w):
        squares = (torch.nn.functional.normalize(w) @ basis.T).square()
        return sum(squares[i] @ squares[j] for i in range(4) for j in range(4) if i != j)

    for _ in range(5):
        w = torch.randn(4, 4, generator=generator, dtype=DOUBLE)
        torch.testing.assert_close(F(w), closed_form(w))
    assert F(basis[[2, 0, 3, 1]] * torch.tensor([[1.0], [-1], [1], [-1]])).item() == pytest.approx(0, abs=1e-12)
    saddle = (basis.sum(0) / 2).expand(4, 4).clone()
    assert F(saddle).item() == pytest.approx(3)
    assert torch.func.grad(F)(saddle).norm() < 1e-12
    assert torch.linalg.eigvalsh(hessian(F, saddle))[0] < -0.1


@pytest.mark.parametrize("name", ["saddle", "sharp-flat", "relaxed-smooth", "tensor-decomposition"])
def test_each_is_a_row_that_any_method_can_train(name):
    problem = load_problem(name)
    assert name in PROBLEMS
    assert problem.name == name
    model = problem.build_model()
    assert not classifies(model(problem.train[0]), problem.train[1])
    problem.loss(model(problem.train[0][:5]), problem.train[1][:5]).backward()
    assert model.w.grad.norm() > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: strict_saddle(1), "dim must be finite and at least 2, got 1"),
        (lambda: strict_saddle(3, negative=3), "negative must lie in [1, dim − 1 = 2], got 3"),
        (lambda: strict_saddle(3, condition=0.5), "condition must be finite and at least 1, got 0.5"),
        (lambda: strict_saddle(3, sigma=-1.0), "sigma must be finite and at least 0, got -1.0"),
        (lambda: strict_saddle(3, n=1), "n must be at least 2 with sigma = 0.1, got 1"),
        (lambda: strict_saddle(3, start=[1.0]), "start must have shape (3,), got (1,)"),
        (lambda: sharp_and_flat(width=1.0), "width must lie in (0, distance/5 = 0.6], got 1.0"),
        (lambda: relaxed_smooth(L1=0.0), "L1 must be finite and greater than 0, got 0.0"),
        (lambda: tensor_decomposition(17), "dim must lie in [2, 16], got 17"),
        (lambda: tensor_decomposition(2, components=torch.ones(2, 2)), "components must be an orthogonal 2×2 matrix"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()


# --- what normalization does on them


def descend(F, w, optimizer, steps):
    """The path of an optimizer on F, from w on; stops where w is no longer finite."""
    path = [w.detach().clone()]
    for _ in range(steps):
        w.grad = torch.func.grad(F)(w.detach())
        optimizer.step()
        path.append(w.detach().clone())
        if not w.isfinite().all():
            break
    return path


@pytest.mark.slow
def test_ngd_needs_no_clipping_where_gd_diverges_or_crawls():
    """Claim C9: in 1,000 steps GD, at any rate, stays 1,000 times farther from the minimum than NGD at lr 0.05."""
    analytic = relaxed_smooth(4, start=[10.0, 9.0, 8.0, 7.0], dtype=DOUBLE)
    F = function(analytic)
    w = torch.nn.Parameter(start(analytic))
    normalized = F(descend(F, w, SNGD([w], lr=0.05), 1000)[-1]).item()
    ends = {}
    for lr in torch.logspace(-6, 0, 25).tolist():
        w = torch.nn.Parameter(start(analytic))
        ends[lr] = F(descend(F, w, torch.optim.SGD([w], lr=lr), 1000)[-1]).item()
    diverged = [lr for lr, end in ends.items() if not math.isfinite(end)]
    assert max(diverged) == 1
    assert min(diverged) < 0.01  # at NGD's rate, and at a fifth of it
    assert all(end > 1000 * normalized for lr, end in ends.items() if lr not in diverged)  # the others crawl


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_normalized_steps_leave_the_sharp_minimum_for_the_flat_one(seed):
    analytic = sharp_and_flat(2, dtype=DOUBLE, start=[3.1, 0.05])
    F, center = function(analytic), torch.tensor([3.0, 0.0], dtype=DOUBLE)
    generator = torch.Generator().manual_seed(seed)
    stays = {}
    for name, optimizer in (("sngd", SNGD), ("sgd", torch.optim.SGD)):
        w = torch.nn.Parameter(start(analytic))
        stepper, late = optimizer([w], lr=1.0), []
        for step in range(200):
            noise = 0.1 * torch.randn(2, generator=generator, dtype=DOUBLE) / 2**0.5
            w.grad = torch.func.grad(F)(w.detach()) + noise
            stepper.step()
            if step >= 100:
                late.append(((w - center).norm() < 1).item())
        stays[name] = sum(late) / len(late)
    assert stays["sgd"] == 1.0
    assert stays["sngd"] < 0.25
