"""The Hessian's largest and smallest eigenvalue at a model's weights: the sharpness, and whether it is a saddle."""

from collections.abc import Callable
from math import exp, log, pi
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sngd.checks import count, positive
from sngd.diagnose.interval import Interval
from sngd.diagnose.objective import Objective
from sngd.estimators.estimator import Batch

CONFIDENCE = 0.99  # of each eigenvalue's interval

Progress = Callable[[int, int], object]  # steps done, most that there can be


class Eigenvalue(NamedTuple):
    """One end of the spectrum of a symmetric H, known by a Ritz pair (θ, y), ‖y‖ = 1.

    Attributes:
        value: θ = yᵀHy, a Rayleigh quotient, which is never beyond the end of the spectrum.
        residual: bound on ‖Hy − θy‖: *some* eigenvalue of H, perhaps not the extreme one, lies within it of θ.
        interval: θ, and where the *extreme* eigenvalue lies: not on this side of θ for certain, and not beyond the
            other end with probability `CONFIDENCE` (over start vectors).
        vector: y, float64 of shape (d,) on H's device.

    Residual and interval are wider by the rounding errors that were seen in products with H.
    """

    value: float
    residual: float
    interval: Interval
    vector: Tensor


class Curvature(NamedTuple):
    """The largest and the smallest eigenvalue of ∇²F(w).

    Attributes:
        largest: λ_max.
        smallest: λ_min.
        steps: Lanczos steps, of one Hessian-vector product each.
        oracle_calls: ∇f(w; a) evaluated, two a sample and step.
    """

    largest: Eigenvalue
    smallest: Eigenvalue
    steps: int
    oracle_calls: int

    @property
    def sharpness(self) -> float:
        """λ_max."""
        return self.largest.value

    @property
    def kind(self) -> Literal["saddle", "minimum", "undecided"]:
        """The kind of point that w is *if* ∇F(w) = 0; elsewhere this describes the curvature alone.

        * "saddle": λ_min < 0, which one direction of negative curvature proves. As in the definition of strict
          saddles, maxima are among them.
        * "minimum": λ_min > 0 with probability `CONFIDENCE`.
        * "undecided": λ_min may be 0, as it is wherever the loss does not depend on some direction of the weights.
        """
        if self.smallest.interval.high < 0:
            return "saddle"
        return "minimum" if self.smallest.interval.low > 0 else "undecided"


def extreme_eigenvalues(
    objective: Objective,
    *,
    batch: Batch | None = None,
    max_steps: int = 80,
    tolerance: float = 1e-2,
    generator: torch.Generator,
    on_progress: Progress | None = None,
) -> Curvature:
    """The largest and the smallest eigenvalue of ∇²F(w) at the model's present weights, by `lanczos`.

    Args:
        objective: F, with d weights; keeping the basis takes 8 d min(max_steps, d) bytes of its device's memory.
        batch: samples that F is the mean over; None: all of them.
        max_steps, tolerance, generator, on_progress: see `lanczos`.

    Raises:
        ValueError: an argument is out of its range, or the Hessian is not finite.

    Examples:
        >>> from torch import nn
        >>> model, samples = nn.Linear(3, 1, bias=False), torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> objective = Objective(model, lambda a: model(a).square().mean(), samples)  # ∇²F = ⅔ diag(1, 4, 9)
        >>> curvature = extreme_eigenvalues(objective, generator=torch.Generator().manual_seed(0))
        >>> round(curvature.sharpness, 4), round(curvature.smallest.value, 4), curvature.kind
        (6.0, 0.6667, 'minimum')
    """
    before = objective.oracle_calls
    largest, smallest, steps = lanczos(
        lambda v: objective.hessian_vector(v, batch),
        objective.dim,
        max_steps=max_steps,
        tolerance=tolerance,
        generator=generator,
        device=objective.device,
        on_progress=on_progress,
    )
    return Curvature(largest, smallest, steps, objective.oracle_calls - before)


def lanczos(
    matvec: Callable[[Tensor], Tensor],
    dim: int,
    *,
    max_steps: int = 80,
    tolerance: float = 1e-2,
    ends: Literal["both", "largest"] = "both",
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> tuple[Eigenvalue, Eigenvalue, int]:
    """The largest and the smallest eigenvalue of a symmetric H, and the steps taken to find them.

    Step k of Lanczos' method adds to an orthonormal basis V_k what H v_k has outside of it, a vector of length β_k:
    H V_k = V_k T_k + β_k v_{k+1} e_kᵀ with T_k tridiagonal. An eigenpair (θ, s) of T_k makes a Ritz pair (θ, V_k s) of
    H, with residual ‖H V_k s − θ V_k s‖ = β_k |s_k|. Every vector is orthogonalized twice against the whole basis in
    float64; without that, rounding errors bring eigenvalues already found back as copies.

    A small residual says that some eigenvalue is near. How far the extreme one, λ, may be beyond θ follows from the
    start vector's being random (Van Dorsselaer, Hochstenbach, Van der Vorst, SIAM J. Matrix Anal. Appl. 22, 2000):
    |γ det(λI − T_k)| ≤ β_1 ⋯ β_k, where γ, its component along λ's eigenvector, has P(|γ| ≤ t) ≤ √(2d/π) t. It is
    also why β_k = 0 is the end and no restart is needed: then det(λI − T_k) = 0, so λ is among the Ritz values.

    Args:
        matvec: maps v to Hv, both of shape (d,) on ``device``; v is float64, and the dtype of Hv tells its precision.
        dim: d, the number of rows of H, ≥ 1.
        max_steps: most products with H, ≥ 1; d suffice always.
        tolerance: above 0; stop when residual and length of the interval are at most tolerance · |θ|, or are rounding
            errors.
        ends: whether both eigenvalues must be so exact, or the largest alone, which takes fewer steps.
        generator: CPU generator that the start vector is drawn from.
        device: where the basis is kept, 8 d min(max_steps, d) bytes.
        on_progress: called after every step.

    Raises:
        ValueError: an argument is out of its range, or a product with H is not finite.
    """
    most = min(count("max_steps", max_steps), count("dim", dim))
    positive("tolerance", tolerance)
    if ends not in ("both", "largest"):
        raise ValueError(f"ends must be 'both' or 'largest', got {ends!r}")
    basis = torch.empty(most, dim, dtype=torch.float64, device=device)
    projected = torch.zeros(most, most, dtype=torch.float64)  # VᵀHV as computed, its upper triangle
    betas = torch.zeros(most, dtype=torch.float64)
    rest = torch.randn(dim, dtype=torch.float64, generator=generator, device="cpu").to(device)
    for k in range(1, most + 1):
        basis[k - 1] = rest / rest.norm()
        product = matvec(basis[k - 1])
        rest, projected[:k, k - 1] = _orthogonalized(product.to(basis), basis[:k])
        betas[k - 1] = rest.norm()
        if not betas[k - 1].isfinite():
            raise ValueError(f"product with H is not finite at step {k}, must be")
        largest, smallest, rounding = _ends(projected[:k, :k], betas[:k], dim, torch.finfo(product.dtype).eps)
        if on_progress is not None:
            on_progress(k, most)
        wanted = (largest, smallest) if ends == "both" else (largest,)
        if betas[k - 1] <= rounding or all(_settled(end, tolerance, rounding) for end in wanted):
            break
    largest, smallest = (end._replace(vector=basis[:k].T @ end.vector.to(basis)) for end in (largest, smallest))
    return largest, smallest, k


def _orthogonalized(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What of ``vector`` is orthogonal to the rows of ``basis``, and the coefficients of what is not."""
    total = torch.zeros(len(basis), dtype=basis.dtype, device=basis.device)
    for _ in range(2):  # what cancellation leaves along the basis the first time is gone after the second
        coefficients = basis @ vector
        vector = vector - basis.T @ coefficients
        total += coefficients
    return vector, total


def _ends(projected: Tensor, betas: Tensor, dim: int, precision: float) -> tuple[Eigenvalue, Eigenvalue, float]:
    """Largest and smallest, with vectors in coordinates of the basis, and an estimate of the rounding errors in VᵀHV.

    Products with a symmetric H, done exactly, make VᵀHV tridiagonal. How far its upper triangle is from that shows
    their errors, whatever the cause: float32 sums, TF32, bfloat16 weights, kernels that add in any order. Errors on
    its diagonal cannot be seen; for these, and those of float64 here, stands ‖T‖ times the precision.
    """
    beside = betas[:-1].diag(1)
    values, vectors = torch.linalg.eigh(projected.diag().diag() + beside + beside.T)
    unseen = (precision + len(betas) * torch.finfo(torch.float64).eps) * values.abs().max()
    rounding = ((projected.triu(1) - beside).norm() + unseen).item()
    log_bound = betas.log().sum().item() + log((2 * dim / pi) ** 0.5 / (1 - CONFIDENCE))  # of β_1 ⋯ β_k/t

    def end(index: int) -> Eigenvalue:
        value, weights = values[index].item(), vectors[:, index]
        residual = (betas[-1] * weights[-1].abs()).item() + rounding
        reach = _reach((values - value).abs(), log_bound) + rounding
        below, above = (reach, rounding) if index == 0 else (rounding, reach)
        return Eigenvalue(value, residual, Interval(value, value - below, value + above), weights)

    return end(-1), end(0), rounding


def _reach(gaps: Tensor, log_bound: float) -> float:
    """The x with Σ log(x + gap) = ``log_bound``, by bisection: log |det(λI − T)| at a λ that is x beyond T's end."""
    low, high = 0.0, exp(log_bound / len(gaps))  # as the sum is at least k log x
    for _ in range(60):
        middle = (low + high) / 2
        if (gaps + middle).log().sum() < log_bound:
            low = middle
        else:
            high = middle
    return high


def _settled(end: Eigenvalue, tolerance: float, rounding: float) -> bool:
    width = max(end.residual, end.interval.high - end.interval.low)
    return width <= max(tolerance * abs(end.value), 4 * rounding)  # both widths hold rounding, once and twice
