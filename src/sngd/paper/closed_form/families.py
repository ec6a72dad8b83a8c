"""Random objectives whose constants are proved, for experiments that compare theory with measurements.

Every family is a function from a generator to an `Instance`: dimension, spectrum, noise, data and start are drawn, and
the constants computed from them. Its docstring proves them. Everything is float64.
"""

from collections.abc import Callable
from functools import partial
from math import inf, sqrt
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from sngd.problems.problem import Problem
from sngd.theory.smoothness import RelaxedSmooth, Smooth, Smoothness

Losses = Callable[[Tensor, Tensor], Tensor]


class Instance(NamedTuple):
    """F(w) = (1/n) Σ f(w; a_i) and its constants, valid where ‖w − w_0‖ ≤ ``reach``.

    A normalized step has length α, so N of them stay there if αN ≤ ``reach``.

    * ``losses``: f(w; a) for weights (…, d) and samples (…, m, k): (…, m), leading dimensions broadcast.
    * ``samples``: a_1 … a_n, (n, k).
    * ``start``: w_0, (d,).
    * ``smoothness``: of F.
    * ``sigma``: E‖∇f(w; a) − ∇F(w)‖² ≤ σ² for a drawn uniformly from the samples.
    * ``gap``: Δ ≥ F(w_0) − inf F.
    * ``reach``: inf where the constants hold everywhere.
    """

    losses: Losses
    samples: Tensor
    start: Tensor
    smoothness: Smoothness
    sigma: float
    gap: float
    reach: float = inf

    def value(self, w: Tensor) -> Tensor:
        """F(w), of shape (…) for weights (…, d)."""
        return self.losses(w, self.samples).mean(-1)

    def problem(self) -> Problem:
        """The same as a `Problem`, which any method can be run on; its model starts at w_0."""
        targets = torch.zeros(len(self.samples), dtype=self.samples.dtype)
        return Problem(partial(_Model, self.losses, self.start), _mean, (self.samples, targets))


class _Model(nn.Module):
    def __init__(self, losses: Losses, start: Tensor) -> None:
        super().__init__()
        self.losses = losses
        self.w = nn.Parameter(start.clone())

    def forward(self, a: Tensor) -> Tensor:
        return self.losses(self.w, a)


def _mean(losses: Tensor, _targets: Tensor) -> Tensor:
    return losses.mean()


def quadratic(generator: Generator) -> Instance:
    """A convex quadratic of chosen spectrum with additive noise: f(w; a) = ½ Σ λ_i ⟨q_i, w⟩² + ⟨a, w⟩.

    q_1 … q_d are orthonormal, so ∇²F has the eigenvalues λ_i, the largest of them L; inf F = F(0) = 0.
    ∇f − ∇F = a whatever w, with Σ a_i = 0 and mean ‖a_i‖² = σ².
    """
    dim = _integer(2, 8, generator)
    L, condition = log_uniform(0.3, 3, generator), log_uniform(1, 100, generator)
    curvatures = L * condition ** -torch.rand(dim, generator=generator, dtype=torch.float64)
    curvatures[0] = L
    axes = torch.linalg.qr(normal(dim, dim, generator=generator))[0]

    def value(w: Tensor) -> Tensor:
        squares: Tensor = (w @ axes).square()
        return 0.5 * (curvatures * squares).sum(-1)

    return _with_noise(value, Smooth(L), 2 * normal(dim, generator=generator), generator)


def saddle(generator: Generator) -> Instance:
    """A strict saddle between minima, started close to its stable manifold, with additive noise.

    F(w) = (L/κ) Σ_{i<k} (1 + cos w_i) + ½ Σ_{i≥k} λ_i w_i², as in `sngd.problems.analytic.strict_saddle`: ∇²F is
    diagonal with entries −(L/κ) cos w_i and λ_i ∈ [L/κ, L], the largest λ_i being L ≥ L/κ; inf F = 0 at w_i = π, 0.
    """
    dim = _integer(3, 8, generator)
    negative = _integer(1, dim - 1, generator)
    L, condition = log_uniform(0.3, 3, generator), log_uniform(1, 20, generator)
    curvatures = L * condition ** -torch.rand(dim - negative, generator=generator, dtype=torch.float64)
    curvatures[0] = L

    def value(w: Tensor) -> Tensor:
        falling, rising = w[..., :negative], w[..., negative:]
        return L / condition * (1 + falling.cos()).sum(-1) + 0.5 * (curvatures * rising.square()).sum(-1)

    start = normal(dim, generator=generator)
    start[:negative] *= 1e-3
    return _with_noise(value, Smooth(L), start, generator)


def exponential(generator: Generator) -> Instance:
    """(L0, L1)-smooth and L-smooth for no L, with additive noise.

    F(w) = (L0/L1²) Σ (cosh(L1 w_i) − 1), as in `sngd.problems.analytic.relaxed_smooth`: ∇²F = L0 diag(cosh(L1 w_i)) and
    cosh x ≤ 1 + |sinh x|, so ‖∇²F‖ ≤ L0 + L1 max_i |(L0/L1) sinh(L1 w_i)| ≤ L0 + L1‖∇F‖; inf F = F(0) = 0.
    """
    dim = _integer(1, 6, generator)
    L0, L1 = log_uniform(0.3, 3, generator), log_uniform(0.3, 2, generator)

    def value(w: Tensor) -> Tensor:
        return 2 * L0 / L1**2 * (0.5 * L1 * w).sinh().square().sum(-1)

    start = 4 / L1 * (2 * torch.rand(dim, generator=generator, dtype=torch.float64) - 1)
    return _with_noise(value, RelaxedSmooth(L0, L1), start, generator)


def _with_noise(
    value: Callable[[Tensor], Tensor], smoothness: Smoothness, start: Tensor, generator: Generator
) -> Instance:
    sigma = log_uniform(0.03, 3, generator)
    noise = normal(64, len(start), generator=generator)
    noise -= noise.mean(0)
    noise *= sigma / noise.square().sum(1).mean().sqrt()

    def losses(w: Tensor, a: Tensor) -> Tensor:
        return value(w).unsqueeze(-1) + _dot(a, w)

    return Instance(losses, noise, start, smoothness, sigma, gap=value(start).item())


def logistic(generator: Generator) -> Instance:
    """Logistic regression, f(w; a) = log(1 + exp(−⟨a, w⟩)) with a = y x, y = ±1.

    ∇²F = (1/n) Σ s_i (1 − s_i) x_i x_iᵀ with s_i in (0, 1), so L = λ_max(XᵀX)/(4n), attained at w = 0. At every w,
    E‖∇f − ∇F‖² ≤ E‖∇f‖² ≤ mean ‖x_i‖² = σ², as ∇f = −s a. F ≥ 0, so Δ = F(w_0).
    """
    n, dim = _integer(20, 60, generator), _integer(2, 6, generator)
    x = normal(n, dim, generator=generator) * log_uniform(0.3, 3, generator)
    logits = x @ normal(dim, generator=generator) + normal(n, generator=generator)
    samples = logits.sign().unsqueeze(1) * x

    def losses(w: Tensor, a: Tensor) -> Tensor:
        margins = _dot(a, w)
        return torch.logaddexp(-margins, torch.zeros_like(margins))  # torch's softplus is cut off at 20

    start = 2 * normal(dim, generator=generator)
    smoothness = Smooth(_largest_eigenvalue(x.T @ x) / (4 * n))
    return _bounded_below(losses, samples, start, smoothness, x.square().sum(1).mean().sqrt().item())


def phase_retrieval(generator: Generator) -> Instance:
    """f(w; x, y) = ¼(⟨x, w⟩² − y)² with y = ⟨x, w*⟩²: quartic and not convex; constants on a ball.

    There, ‖w‖ ≤ r = ‖w_0‖ + reach. ∇²F = (1/n) Σ (3⟨x_i, w⟩² − y_i) x_i x_iᵀ lies between −(1/n) Σ y_i x_i x_iᵀ and
    (3r²/n) Σ ‖x_i‖² x_i x_iᵀ, which gives L. E‖∇f − ∇F‖² ≤ E‖∇f‖² = mean z²(z² − y)²‖x‖² with z = ⟨x, w⟩, and on
    |z| ≤ r‖x‖ the greatest z²(z² − y)² is at z² = y/3, where it is 4y³/27, or at the end. inf F = F(w*) = 0.
    """
    n, dim = _integer(20, 40, generator), _integer(2, 4, generator)
    x = normal(n, dim, generator=generator) / sqrt(dim)
    y = (x @ normal(dim, generator=generator)).square()
    start, reach = normal(dim, generator=generator), log_uniform(0.5, 2, generator)
    radius = start.norm().item() + reach

    def losses(w: Tensor, a: Tensor) -> Tensor:
        return 0.25 * (_dot(a[..., :-1], w).square() - a[..., -1]).square()

    lengths = x.square().sum(1)
    up = 3 * radius**2 * _largest_eigenvalue((lengths.unsqueeze(1) * x).T @ x / n)
    down = _largest_eigenvalue((y.unsqueeze(1) * x).T @ x / n)
    end = radius**2 * lengths
    squares = torch.maximum(4 * y**3 / 27, end * (end - y).clamp(min=0).square()) * lengths
    samples = torch.cat([x, y.unsqueeze(1)], 1)
    return _bounded_below(losses, samples, start, Smooth(max(up, down)), squares.mean().sqrt().item(), reach)


def factorization(generator: Generator) -> Instance:
    """Matrix factorization, f(w; i, j) = ½(⟨u_i, v_j⟩ − A_ij)² with a uniform entry (i, j) of A of rank r; on a ball.

    w = (U, V), N entries. With ‖w‖ ≤ r = ‖w_0‖ + reach: ‖UVᵀ‖_F ≤ ‖U‖‖V‖ ≤ r²/2. Along a unit direction (H, K),
    N times the second derivative of F is ‖HVᵀ + UKᵀ‖_F² + 2⟨UVᵀ − A, HKᵀ⟩. The first term is at most
    (‖H‖‖V‖ + ‖U‖‖K‖)² ≤ r², the second at most 2‖UVᵀ − A‖₂‖H‖‖K‖ ≤ r²/2 + ‖A‖₂, so L = (3r²/2 + ‖A‖₂)/N.
    E‖∇f − ∇F‖² ≤ E‖∇f‖² = (1/N) Σ (⟨u_i, v_j⟩ − A_ij)² (‖u_i‖² + ‖v_j‖²) ≤ (r²/2 + ‖A‖_F)² r²/N. inf F = 0.
    """
    rows, columns, rank = _integer(2, 4, generator), _integer(2, 4, generator), _integer(1, 2, generator)
    matrix = normal(rows, rank, generator=generator) @ normal(rank, columns, generator=generator)
    start = normal((rows + columns) * rank, generator=generator) / sqrt(rank)
    reach = log_uniform(0.5, 2, generator)
    radius, entries = start.norm().item() + reach, rows * columns

    def losses(w: Tensor, a: Tensor) -> Tensor:
        factors = w.unflatten(-1, (rows + columns, rank))
        u, v = a[..., :rows] @ factors[..., :rows, :], a[..., rows:-1] @ factors[..., rows:, :]
        errors: Tensor = (u * v).sum(-1) - a[..., -1]
        return 0.5 * errors.square()

    i, j = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).unbind(1)
    one_hot = torch.cat([torch.eye(rows).double()[i], torch.eye(columns).double()[j]], 1)
    samples = torch.cat([one_hot, matrix.reshape(-1, 1)], 1)
    L = (1.5 * radius**2 + torch.linalg.matrix_norm(matrix, 2).item()) / entries
    sigma = (radius**2 / 2 + matrix.norm().item()) * radius / sqrt(entries)
    return _bounded_below(losses, samples, start, Smooth(L), sigma, reach)


def network(generator: Generator) -> Instance:
    """A network of one hidden layer with weight decay, f(w; x, y) = ½(h − y)² + (μ/2)‖w‖²; on a ball.

    h = Σ_{k≤m} c_k tanh⟨v_k, x⟩, w = (v_1 … v_m, c). With ‖c‖ ≤ C = ‖c_0‖ + reach, |tanh| and |tanh′| ≤ 1 and
    |tanh″| ≤ 4/(3√3) there hold, for each sample,

    * |h − y| ≤ R = C√m + |y|;
    * ‖∇h‖² = Σ tanh² + Σ (c_k tanh′)²‖x‖² ≤ G = m + C²‖x‖²;
    * ∇²h is block diagonal over k, and a block acts on the span of c_k and x as ((0, p), (p, q)) with
      |p| ≤ ‖x‖, |q| ≤ 4C‖x‖²/(3√3), so ‖∇²h‖ ≤ H = ½(|q| + √(q² + 4p²)).

    As ∇²f = ∇h∇hᵀ + (h − y)∇²h + μI, L = mean(G + RH) + μ. The decay has no noise: σ² = mean R²G ≥ E‖(h − y)∇h‖².
    F ≥ 0, so Δ = F(w_0). The bounds are crude; a start and a reach of moderate size keep them useful.
    """
    inputs, hidden, n = _integer(2, 4, generator), _integer(2, 4, generator), _integer(20, 40, generator)
    x = normal(n, inputs, generator=generator) / sqrt(inputs)
    y = (x @ normal(inputs, generator=generator)).sin()
    decay, reach = log_uniform(0.01, 0.1, generator), log_uniform(0.5, 2, generator)
    start = normal(hidden * (inputs + 1), generator=generator) / sqrt(hidden)

    def losses(w: Tensor, a: Tensor) -> Tensor:
        v = w[..., :-hidden].unflatten(-1, (hidden, inputs))
        outputs = _dot((a[..., :-1] @ v.mT).tanh(), w[..., -hidden:])
        return 0.5 * (outputs - a[..., -1]).square() + 0.5 * decay * w.square().sum(-1, keepdim=True)

    C, lengths = start[-hidden:].norm().item() + reach, x.square().sum(1)
    R, G, q = C * sqrt(hidden) + y.abs(), hidden + C**2 * lengths, 4 / (3 * sqrt(3)) * C * lengths
    H = 0.5 * (q + (q.square() + 4 * lengths).sqrt())
    L = (G + R * H).mean().item() + decay
    samples = torch.cat([x, y.unsqueeze(1)], 1)
    return _bounded_below(losses, samples, start, Smooth(L), (R.square() * G).mean().sqrt().item(), reach)


def _bounded_below(
    losses: Losses, samples: Tensor, start: Tensor, smoothness: Smoothness, sigma: float, reach: float = inf
) -> Instance:
    """With Δ = F(w_0), as F ≥ 0."""
    return Instance(losses, samples, start, smoothness, sigma, losses(start, samples).mean().item(), reach)


FAMILIES: dict[str, Callable[[Generator], Instance]] = {
    "quadratic": quadratic,
    "saddle": saddle,
    "exponential": exponential,
    "logistic": logistic,
    "phase retrieval": phase_retrieval,
    "factorization": factorization,
    "network": network,
}


def _dot(a: Tensor, w: Tensor) -> Tensor:
    """⟨a_i, w⟩: (…, m, d) and (…, d) to (…, m)."""
    return (a @ w.unsqueeze(-1)).squeeze(-1)


def _largest_eigenvalue(symmetric: Tensor) -> float:
    return float(torch.linalg.eigvalsh(symmetric)[-1])


def normal(*shape: int, generator: Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def log_uniform(low: float, high: float, generator: Generator) -> float:
    """A number whose logarithm is uniform between those of 0 < ``low`` ≤ ``high``."""
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    return float(low * (high / low) ** share)


def _integer(low: int, high: int, generator: Generator) -> int:
    """Uniform in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator))
