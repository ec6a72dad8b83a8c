"""Objectives F(w) in closed form, with known constants, as problems that any method can be run on.

All have F ≥ 0 with inf F = 0. Starts are fixed: on these problems a seed draws only the order of the samples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import e, isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sngd.checks import non_negative, positive
from sngd.problems.problem import Problem

Point = Sequence[float] | Tensor


class Analytic(NamedTuple):
    """A problem and its constants; None is a constant that does not exist or has no closed form.

    * ``L``: F is L-smooth, ‖∇²F(w)‖ ≤ L.
    * ``L0``, ``L1``: F is (L0, L1)-smooth, ‖∇²F(w)‖ ≤ L0 + L1 ‖∇F(w)‖.
    * ``sigma``: E‖∇f(w; a) − ∇F(w)‖² = σ² at every w.
    * ``gap``: Δ = F(w_0) − inf F at the start w_0.
    """

    problem: Problem
    L: float | None
    L0: float | None
    L1: float | None
    sigma: float | None
    gap: float


def strict_saddle(
    dim: int = 10,
    *,
    L: float = 1.0,
    condition: float = 10.0,
    negative: int = 1,
    start: Point | None = None,
    sigma: float = 0.1,
    n: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Analytic:
    """A strict saddle at 0 between global minima, bounded below and L-smooth.

    F(w) = (L/κ) Σ_{i<k} (1 + cos w_i) + ½ Σ_{i≥k} λ_i w_i², so ∇²F(0) = diag(−L/κ, …, −L/κ, λ_k, …, λ_{d−1}) with
    λ falling geometrically from L to L/κ. |cos| ≤ 1 makes L exact. Minima, all with F = 0: the first k coordinates
    odd multiples of π, the others 0. The stable manifold of the saddle at 0 is w_0 = … = w_{k−1} = 0.

    Args:
        dim: d ≥ 2.
        L: smoothness, > 0.
        condition: κ ≥ 1, condition number of ∇²F(0).
        negative: k, number of unstable directions, in [1, d − 1].
        start: w_0, d numbers; by default 1 from the saddle along the stable manifold and 0.001 off it.
        sigma: σ ≥ 0 of the additive noise.
        n: number of samples (noise vectors).
        dtype: of weights and samples.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least("dim", dim, 2)
    positive("L", L)
    _at_least("condition", condition, 1)
    if not 1 <= negative < dim:
        raise ValueError(f"negative must lie in [1, dim − 1 = {dim - 1}], got {negative}")
    stable = dim - negative
    curvatures = L * condition ** -torch.linspace(0, 1, stable, dtype=torch.float64)

    def value(w: Tensor) -> Tensor:
        falling, rising = w[:negative], w[negative:]
        return L / condition * (1 + falling.cos()).sum() + 0.5 * (curvatures.to(w) * rising.square()).sum()

    default = [1e-3 / negative**0.5] * negative + [stable**-0.5] * stable
    return _noisy(value, _point(start, default, dtype), sigma, n, L=L, L0=L, L1=0.0)


def sharp_and_flat(
    dim: int = 2,
    *,
    flatness: float = 0.02,
    distance: float = 3.0,
    width: float = 0.3,
    start: Point | None = None,
    sigma: float = 0.1,
    n: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Analytic:
    """A wide bowl about 0 with a narrow hole at c = (D, 0, …, 0): a flat and a sharp minimum, both global.

    F(w) = (λ/2) ‖w‖² s(w) with s(w) = 1 − exp(−‖w − c‖²/(2ρ²)), so F = 0 exactly at 0 and at c, and

        ∇F(w) = λ s(w) w + (λ/(2ρ²)) ‖w‖² (1 − s(w)) (w − c).

    ∇²F is λ s(0) ≈ λ times the identity at the flat minimum and λD²/(2ρ²) times it at the sharp one. L is an upper
    bound: with t = ‖w − c‖/ρ and ‖w‖ ≤ D + ρt, ‖∇²F‖ ≤ λ (s + 2‖w‖‖∇s‖ + ½‖w‖²‖∇²s‖) and ‖∇s‖ = (t/ρ) e^{−t²/2},
    ‖∇²s‖ = max{1, |t² − 1|} e^{−t²/2}/ρ²; the greatest value of each term gives
    L = λ (½(D/ρ)² + (2e^{−1/2} + 0.82) D/ρ + 1 + 4/e + 0.84).

    Args:
        dim: d ≥ 1.
        flatness: λ > 0.
        distance: D > 0, between the minima.
        width: ρ in (0, D/5], of the hole.
        start: w_0, d numbers; by default in the hole, ρ/2 from c and off the axis.
        sigma, n, dtype: see `strict_saddle`.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least("dim", dim, 1)
    positive("flatness", flatness)
    positive("distance", distance)
    if not 0 < width <= distance / 5:  # a wider hole has no rim that separates the two minima
        raise ValueError(f"width must lie in (0, distance/5 = {distance / 5:g}], got {width}")
    center = torch.zeros(dim, dtype=torch.float64)
    center[0] = distance

    def value(w: Tensor) -> Tensor:
        outside = -torch.expm1(-0.5 * ((w - center.to(w)) / width).square().sum())
        return 0.5 * flatness * w.square().sum() * outside

    ratio = distance / width
    L = flatness * (0.5 * ratio**2 + (2 * e**-0.5 + 0.82) * ratio + 1 + 4 / e + 0.84)
    default = (center + 0.5 * width * dim**-0.5).tolist()
    return _noisy(value, _point(start, default, dtype), sigma, n, L=L, L0=L, L1=0.0)


def relaxed_smooth(
    dim: int = 10,
    *,
    L0: float = 1.0,
    L1: float = 1.0,
    start: Point | None = None,
    sigma: float = 0.1,
    n: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Analytic:
    """(L0, L1)-smooth and L-smooth for no L: a convex bowl whose walls grow exponentially.

    F(w) = (L0/L1²) Σ_i (cosh(L1 w_i) − 1), with its only minimum at 0. ∇F(w) = (L0/L1) sinh(L1 w) and
    ∇²F(w) = L0 diag(cosh(L1 w)), which has no bound, but cosh x ≤ 1 + |sinh x| (square both sides), so
    ‖∇²F(w)‖ ≤ L0 + L0 max_i |sinh(L1 w_i)| ≤ L0 + L1 ‖∇F(w)‖.

    Args:
        dim: d ≥ 1.
        L0: > 0.
        L1: > 0.
        start: w_0, d numbers; by default 10/L1 in each coordinate, where ∇²F is 11,000 times that at the minimum.
        sigma, n, dtype: see `strict_saddle`.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least("dim", dim, 1)
    positive("L0", L0)
    positive("L1", L1)

    def value(w: Tensor) -> Tensor:
        # 2 sinh²(x/2) = cosh x − 1, without cancellation near 0
        return 2 * L0 / L1**2 * (0.5 * L1 * w).sinh().square().sum()

    return _noisy(value, _point(start, [10 / L1] * dim, dtype), sigma, n, L=None, L0=L0, L1=L1)


def tensor_decomposition(
    dim: int = 6,
    *,
    components: Tensor | None = None,
    start: Point | None = None,
    dtype: torch.dtype = torch.float32,
) -> Analytic:
    """Online orthogonal tensor decomposition: independent components a_1 … a_d from samples of their mixture.

    Sample y = Σ_k x_k a_k with independent signs x_k = ±1. The weights are d rows u_i, normalized inside the model
    (so the unit sphere is no constraint of the optimizer's), and F(w) = Σ_{i≠j} Σ_k ⟨u_i, a_k⟩² ⟨u_j, a_k⟩²
    (Ge et al. 2015; Levy 2016), of which, as E⟨u, y⟩²⟨v, y⟩² = ‖u‖²‖v‖² + 2⟨u, v⟩² − 2 Σ_k ⟨u, a_k⟩²⟨v, a_k⟩²,

        f(w; y) = ½ Σ_{i≠j} (1 + 2⟨u_i, u_j⟩² − ⟨u_i, y⟩² ⟨u_j, y⟩²)

    is an unbiased estimate. The data are all signs (up to y → −y, which f does not see), so F is exact over them.

    Every local minimum is global: F = 0 where the u_i are the a_k up to order and sign. That u_i = Σ_k ±a_k/√d for
    all i, with any signs, is a critical point with F = d − 1; with all rows equal it is a strict saddle that no
    stochastic gradient leaves, since equal rows have equal gradients: only perturbation does.

    Args:
        dim: d in [2, 16], number of components; n = 2^(d − 1) samples.
        components: a_1 … a_d as the rows of an orthogonal (d, d) matrix; by default the coordinate axes.
        start: w_0 of shape (d, d); by default at distance 0.1 from the saddle with equal rows and all signs +.
        dtype: of weights and samples.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 2 <= dim <= 16:
        raise ValueError(f"dim must lie in [2, 16], got {dim}")
    basis = torch.eye(dim, dtype=torch.float64) if components is None else components.double()
    if basis.shape != (dim, dim) or not torch.allclose(basis @ basis.T, torch.eye(dim).double(), atol=1e-5):
        raise ValueError(f"components must be an orthogonal {dim}×{dim} matrix")
    signs = torch.tensor(list(product([1.0], *[[-1.0, 1.0]] * (dim - 1))), dtype=torch.float64)
    samples = (signs @ basis).to(dtype)

    offset = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    default = (basis.sum(0) / dim**0.5).expand(dim, dim) + 0.1 * offset / offset.norm()
    first = _point(start, default, dtype)
    problem = Problem(partial(_Components, first), _mean, (samples, torch.zeros(len(samples), dtype=dtype)))
    return Analytic(
        problem, L=None, L0=None, L1=None, sigma=None, gap=_Components(first.double())(signs @ basis).mean().item()
    )


class _Components(nn.Module):
    """f(w; y) of `tensor_decomposition` for a batch of y: (batch, d) to (batch,)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, y: Tensor) -> Tensor:
        u = nn.functional.normalize(self.w)
        overlaps = (u @ u.T).square().sum() - len(u)  # Σ_{i≠j} ⟨u_i, u_j⟩²
        squares = (y @ u.T).square()
        pairs = squares.sum(1).square() - squares.square().sum(1)  # Σ_{i≠j} ⟨u_i, y⟩² ⟨u_j, y⟩²
        return 0.5 * (len(u) * (len(u) - 1) + 2 * overlaps - pairs)


class _WithNoise(nn.Module):
    """f(w; a) = F(w) + ⟨a, w⟩ for a batch of noise vectors a: (batch, d) to (batch,)."""

    def __init__(self, value: Callable[[Tensor], Tensor], start: Tensor) -> None:
        super().__init__()
        self.value = value
        self.w = nn.Parameter(start.clone())

    def forward(self, a: Tensor) -> Tensor:
        return self.value(self.w) + a @ self.w


def _noisy(
    value: Callable[[Tensor], Tensor],
    start: Tensor,
    sigma: float,
    n: int,
    *,
    L: float | None,
    L0: float,
    L1: float,
) -> Analytic:
    """F = ``value`` with additive gradient noise: n fixed vectors a_i with Σ a_i = 0 and mean ‖a_i‖² = σ²."""
    non_negative("sigma", sigma)
    least = 2 if sigma else 1
    if n < least:
        raise ValueError(f"n must be at least {least} with sigma = {sigma}, got {n}")
    noise = torch.zeros(n, len(start), dtype=torch.float64)
    if sigma:
        noise.normal_(generator=torch.Generator().manual_seed(0))
        noise -= noise.mean(0)
        noise *= sigma / noise.square().sum(1).mean().sqrt()
    samples = (noise.to(start.dtype), torch.zeros(n, dtype=start.dtype))
    problem = Problem(partial(_WithNoise, value, start), _mean, samples)
    return Analytic(problem, L=L, L0=L0, L1=L1, sigma=sigma, gap=value(start.double()).item())


def _mean(outputs: Tensor, _targets: Tensor) -> Tensor:
    return outputs.mean()  # the outputs are the losses already; there are no targets


def _point(start: Point | None, default: Point, dtype: torch.dtype) -> Tensor:
    default = torch.as_tensor(default, dtype=dtype)
    if start is None:
        return default
    point = torch.as_tensor(start, dtype=dtype)
    if point.shape != default.shape:
        raise ValueError(f"start must have shape {tuple(default.shape)}, got {tuple(point.shape)}")
    return point


def _at_least(name: str, value: float, least: float) -> None:
    if not (value >= least and isfinite(value)):
        raise ValueError(f"{name} must be finite and at least {least}, got {value}")
