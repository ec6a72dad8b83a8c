"""The largest singular value: the unit step is the nearest orthogonal matrix, as in Muon."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, repeat
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sngd.checks import check_one_of, count, shown
from sngd.norms.norm import Norm, Weight, as_matrix, normalized, per_output, weight_of

Coefficients = tuple[float, float, float]

# a, b, c of X ← aX + (bA + cA²)X with A = XXᵀ, which maps every singular value x to ax + bx³ + cx⁵.
_MUON: tuple[Coefficients, ...] = ((3.4445, -4.7750, 2.0315),)  # Jordan et al. 2024, and torch.optim.Muon
_POLAR_EXPRESS: tuple[Coefficients, ...] = (  # Amsel et al. 2025, arXiv 2505.16932, for singular values of 0.001 … 1
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
_WIDE = 2  # columns over rows, from which iterations on XXᵀ are quicker
_ITERATIONS_ON_GRAM = 3  # in a row: Polar Express's first three multiply a small eigenvalue of XXᵀ by 134²
_SAFETY = 1.01  # rounding in bfloat16 may not carry a singular value out of the interval where the iteration converges


@dataclass(frozen=True)
class Spectral(Norm):
    """‖W‖ = the largest singular value; with V = UΣRᵀ (SVD), unit(V) = URᵀ; dual Σσ_i; κ = √min(rows, columns).

    URᵀ is computed by a Newton–Schulz iteration, which needs matrix products only. It moves all singular values towards
    1, but not onto it. With the default, those of at least 1 % of ‖V‖_F come to lie between 0.68 and 1.14, and smaller
    ones between 0 and 1.21 (``docs/norms.md`` has the measurement). ``dual`` is ⟨V, U⟩ with the U that was computed, at
    most 1.21 times the exact Σσ_i. ``kappa`` is that of the exact norm.

    The factor is √(d_out/d_in)/kernel, for vectors √d, for tables (n, d) √d.

    Args:
        scaled: True for the factor above; "max" for max{1, √(rows/columns)}, which is torch.optim.Muon's "original" and
            Scion's for input layers; "adamw" for 0.2 √max(rows, columns), torch.optim.Muon's "match_rms_adamw", with
            which learning rates of AdamW fit (Liu et al. 2025, arXiv 2502.16982); False for 1.
        table: see ``Norm``.
        parts: into how many matrices of equal size the rows are divided, each a ball of its own. Attention often stores
            the weights of queries, keys and values as one matrix (3d, d): its parts are 3. A convolution has as many
            parts as groups. Sizes in the factor are those of a part.
        transposed: whether the weight is stored as (d_in, d_out, kernel …), as in ``torch.nn.ConvTranspose2d`` and in
            ``Conv1D`` of the package transformers. Then "rows" are the outputs all the same.
        steps: iterations, ≥ 1.
        coefficients: "muon" (as in torch.optim.Muon), "polar-express" (nearer to 1 in as many steps; up to 8 steps come
            nearer), or "svd": an exact, slow SVD without iterations.
    """

    parts: int = 1
    transposed: bool = False
    steps: int = 5
    coefficients: Literal["muon", "polar-express", "svd"] = "muon"

    name: ClassVar[str] = "spectral"
    scalings: ClassVar[tuple[bool | str, ...]] = (True, False, "max", "adamw")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("coefficients", self.coefficients, ("muon", "polar-express", "svd"))
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise ValueError(f"steps must be a whole number of at least 1, got {shown(self.steps)}")
        count("steps", self.steps)
        count("parts", self.parts)
        if not isinstance(self.transposed, bool):
            raise ValueError(f"transposed must be True or False, got {shown(self.transposed)}")

    def bare_unit(self, m: Tensor) -> Tensor:
        if min(m.shape[-2:]) <= 1:  # a vector has one singular value, and needs no iteration
            return normalized(m, (-2, -1))
        if self.coefficients == "svd":
            return _exact_unit(normalized(m, (-2, -1)))
        dtype = torch.bfloat16 if m.device.type == "cuda" else m.dtype
        return newton_schulz(normalized(m, (-2, -1)).to(dtype), _schedule(self.coefficients, self.steps)).to(m.dtype)

    @torch.no_grad()
    def unit(self, v: Tensor) -> Tensor:
        return self.units([v])[0]

    @torch.no_grad()
    def units(self, vs: Sequence[Tensor]) -> list[Tensor]:
        """``unit`` of each tensor; matrices of one shape, or of its transpose, are computed together."""
        alike: dict[tuple[int, int, torch.dtype, torch.device], list[int]] = defaultdict(list)
        stacks = [self._parts_of(v) for v in vs]
        for i, stack in enumerate(stacks):
            _, rows, columns = stack.shape
            alike[min(rows, columns), max(rows, columns), stack.dtype, stack.device].append(i)
        units: list[Tensor] = list(stacks)
        for (rows, *_), indices in alike.items():
            wide = torch.cat([stacks[i] if stacks[i].shape[1] == rows else stacks[i].mT for i in indices])
            together = self.bare_unit(wide) if wide.numel() else torch.zeros_like(wide)
            for i, unit in zip(indices, together.split(self.parts), strict=True):
                scaled = (unit if stacks[i].shape[1] == rows else unit.mT) * self.factor_of(vs[i].shape)
                units[i] = self._stored(scaled, vs[i].shape)
        return units

    @torch.no_grad()
    def size(self, w: Tensor) -> Tensor:
        parts = self._parts_of(w)
        return self.bare_size(parts).amax() / self.factor_of(w.shape) if parts.numel() else parts.new_zeros(())

    def kappa(self, shape: Sequence[int]) -> float:
        part = weight_of(self._part(shape))
        return sqrt(self.parts) * self.factor_of(shape) * self.bare_kappa(part.d_out, part.columns)

    def inexactness(self, shape: Sequence[int]) -> tuple[float, float]:
        part = weight_of(self._part(shape))
        rank = min(part.d_out, part.columns)
        return (
            (0.0, 0.0) if self.coefficients == "svd" or rank <= 1 else _inexactness(self.coefficients, self.steps, rank)
        )

    def factor_of(self, shape: Sequence[int]) -> float:
        return super().factor_of(self._part(shape))

    def _part(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (d_out, d_in, kernel …) of a part of a weight of this shape.

        Raises:
            ValueError: the rows cannot be divided into ``parts`` of equal size.
        """
        rows, *rest = (_swapped(shape) if self.transposed else [*shape]) or [1]
        if rows % self.parts:
            raise ValueError(
                f"parts must divide the {rows} outputs of a weight of shape {tuple(shape)}, got {self.parts}"
            )
        return rows // self.parts, *rest

    def _parts_of(self, v: Tensor) -> Tensor:
        """The weight as matrices (parts, rows, columns), in float32 or wider."""
        rows, *_ = self._part(v.shape)
        m = as_matrix(v.transpose(0, 1) if self.transposed and v.dim() > 1 else v)
        return m.reshape(self.parts, rows, m.shape[1])

    def _stored(self, parts: Tensor, shape: Sequence[int]) -> Tensor:
        """Matrices (parts, rows, columns) as a weight of this shape: the inverse of ``_parts_of``."""
        if self.transposed and len(shape) > 1:
            return parts.reshape(_swapped(shape)).transpose(0, 1).contiguous()
        return parts.reshape(shape).contiguous()

    def bare_size(self, m: Tensor) -> Tensor:
        finite, some = _finite(m)
        return torch.where(finite, torch.linalg.matrix_norm(some, 2), torch.nan)

    def bare_kappa(self, rows: int, columns: int) -> float:
        return sqrt(min(rows, columns))

    def factor(self, weight: Weight) -> float:
        if self.scaled == "max":
            return max(1.0, sqrt(weight.d_out / weight.columns))
        if self.scaled == "adamw":
            return 0.2 * sqrt(max(weight.d_out, weight.columns))
        return per_output(weight, self.table)


def _exact_unit(m: Tensor) -> Tensor:
    """URᵀ over the singular values that are not zero to rounding."""
    finite, some = _finite(m)
    u, s, vh = torch.linalg.svd(some, full_matrices=False)
    rank = s > s[..., :1] * torch.finfo(s.dtype).eps * max(m.shape[-2:])
    return torch.where(finite[..., None, None], (u * rank.unsqueeze(-2)) @ vh, torch.nan)


def _finite(m: Tensor) -> tuple[Tensor, Tensor]:
    """Whether all entries of each matrix are finite, and the matrices with finite ones: LAPACK raises at others."""
    return m.isfinite().all(-1).all(-1), m.nan_to_num(0.0, 0.0, 0.0)


def _swapped(shape: Sequence[int]) -> list[int]:
    """The shape with its first two sizes exchanged; a vector's as it is."""
    return [*shape[1::-1], *shape[2:]] if len(shape) > 1 else [*shape]


def _schedule(coefficients: str, steps: int) -> list[Coefficients]:
    """The coefficients of each step; the last known ones repeat."""
    if coefficients == "muon":
        return list(_MUON) * steps
    *early, last = _POLAR_EXPRESS
    safe = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in early]
    return list(islice([*safe, *repeat(last, steps)], steps))


@cache
def _inexactness(coefficients: str, steps: int, rank: int) -> tuple[float, float]:
    """ε and δ of the iteration without rounding, for all matrices with ``rank`` singular values; about 0.001 exact.

    The iteration maps a singular value s of V/‖V‖_F to p(s), so δ = max p(s) − 1, and 1 − ε is the least
    Σ s_i p(s_i) / Σ s_i over all s with Σ s_i² = 1. It is λ at least if s p(s) − λs ≥ ν(s² − 1/rank) for all s in
    [0, 1] and some ν ≥ 0: summed over the singular values, the right side vanishes. The best of many ν is taken.
    """
    s = torch.logspace(-6, 0, 6001, dtype=torch.float64)
    p = s
    for a, b, c in _schedule(coefficients, steps):
        p = a * p + b * p**3 + c * p**5
    shares = [float((p - nu * (s - 1 / (rank * s))).min()) for nu in torch.linspace(0, 1.5, 301).tolist()]
    return min(1.0, max(0.0, 1 - max(shares))), max(0.0, float(p.max()) - 1)


def newton_schulz(x: Tensor, schedule: Sequence[Coefficients]) -> Tensor:
    """Moves the singular values of each matrix of a batch (…, rows, columns) towards 1; none may be above 1."""
    tall = x.shape[-2] > x.shape[-1]
    wide = x.mT if tall else x  # so that XXᵀ is the smaller product
    batch = wide.reshape(-1, *wide.shape[-2:])
    rows, columns = wide.shape[-2:]
    exact = batch.dtype in (torch.float32, torch.float64)  # with fewer digits, errors in XXᵀ grow too much
    iterate = _iterate_on_gram if exact and columns >= _WIDE * rows else _iterate
    done = iterate(batch, schedule).reshape(wide.shape)
    return done.mT if tall else done


def _iterate(batch: Tensor, schedule: Sequence[Coefficients]) -> Tensor:
    """X ← aX + (bA + cA²)X, A = XXᵀ. Sums are part of the products, as in torch.optim.Muon: bfloat16 rounds less so."""
    for a, b, c in schedule:
        gram = batch @ batch.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        batch = torch.baddbmm(batch, polynomial, batch, beta=a)
    return batch


def _iterate_on_gram(batch: Tensor, schedule: Sequence[Coefficients]) -> Tensor:
    """The same with fewer operations, for matrices that are much wider than high.

    An iteration is X ← FX with F = aI + bA + cA², after which A is FAF. So of several iterations only the product of
    their F is multiplied by X, and the others are between small matrices. But A's small eigenvalues have large rounding
    errors, relatively, and these grow by F² an iteration. So X and A are computed again every few iterations.
    """
    for start in range(0, len(schedule), _ITERATIONS_ON_GRAM):
        gram, product, factor = batch @ batch.mT, None, None
        for a, b, c in schedule[start : start + _ITERATIONS_ON_GRAM]:
            gram = gram if factor is None else factor @ gram @ factor
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else factor @ product
        batch = batch if product is None else product @ batch
    return batch
