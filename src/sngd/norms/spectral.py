"""The largest singular value: the unit step is the nearest orthogonal matrix, as in Muon."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sngd.checks import check_one_of, count
from sngd.norms.norm import Norm, Weight, as_matrix, normalized, per_output

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
_SAFETY = 1.01  # rounding in bfloat16 may not carry a singular value out of the interval where the iteration converges


@dataclass(frozen=True)
class Spectral(Norm):
    """‖W‖ = the largest singular value; with V = UΣRᵀ (SVD), unit(V) = URᵀ; dual Σσ_i; κ = √min(rows, columns).

    URᵀ is computed by a Newton–Schulz iteration, which needs matrix products only. It moves all singular values towards
    1, but not onto it. With the default, those of at least 1 % of ‖V‖_F come to lie between 0.68 and 1.14, and smaller
    ones between 0 and 1.21 (``docs/norms.md`` has the measurement). ``dual`` is ⟨V, U⟩ with what was computed.

    The factor is √(d_out/d_in)/kernel, for vectors √d, for tables (n, d) √d.

    Args:
        scaled: True for the factor above; "max" for max{1, √(rows/columns)}, which is torch.optim.Muon's "original" and
            Scion's for input layers; "adamw" for 0.2 √max(rows, columns), torch.optim.Muon's "match_rms_adamw", with
            which learning rates of AdamW fit (Liu et al. 2025, arXiv 2502.16982); False for 1.
        table: see ``Norm``.
        steps: iterations, ≥ 1.
        coefficients: "muon" (as in torch.optim.Muon), "polar-express" (nearer to 1 in as many steps; up to 8 steps come
            nearer), or "svd": an exact, slow SVD without iterations.
    """

    steps: int = 5
    coefficients: Literal["muon", "polar-express", "svd"] = "muon"

    name: ClassVar[str] = "spectral"
    scalings: ClassVar[tuple[bool | str, ...]] = (True, False, "max", "adamw")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("coefficients", self.coefficients, ("muon", "polar-express", "svd"))
        count("steps", self.steps)

    def bare_unit(self, m: Tensor) -> Tensor:
        if min(m.shape[-2:]) <= 1:  # a vector has one singular value, and needs no iteration
            return normalized(m, (-2, -1))
        if self.coefficients == "svd":
            finite = normalized(m, (-2, -1)).nan_to_num(0, 0, 0)  # else svd raises; ⟨m, unit⟩ is still not finite
            u, s, vh = torch.linalg.svd(finite, full_matrices=False)
            rank = s > s[..., :1] * torch.finfo(s.dtype).eps * max(m.shape[-2:])
            exact: Tensor = (u * rank.unsqueeze(-2)) @ vh
            return exact
        dtype = torch.bfloat16 if m.device.type == "cuda" else m.dtype
        return newton_schulz(normalized(m, (-2, -1)).to(dtype), _schedule(self.coefficients, self.steps)).to(m.dtype)

    def units(self, vs: Sequence[Tensor]) -> list[Tensor]:
        """``unit`` of each tensor; matrices of one shape, or of its transpose, are computed together."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        matrices = [as_matrix(v) for v in vs]
        for i, m in enumerate(matrices):
            alike[min(m.shape), max(m.shape)].append(i)
        units: list[Tensor] = list(vs)
        for (rows, _), indices in alike.items():
            wide = [matrices[i] if matrices[i].shape[0] == rows else matrices[i].mT for i in indices]
            for i, unit in zip(indices, self.bare_unit(torch.stack(wide)).unbind(), strict=True):
                whole_unit = unit if matrices[i].shape[0] == rows else unit.mT
                units[i] = (whole_unit * self.factor_of(vs[i].shape)).reshape(vs[i].shape).contiguous()
        return units

    def bare_size(self, m: Tensor) -> Tensor:
        size: Tensor = torch.linalg.matrix_norm(m, 2)
        return size

    def bare_kappa(self, rows: int, columns: int) -> float:
        return sqrt(min(rows, columns))

    def factor(self, weight: Weight) -> float:
        if self.scaled == "max":
            return max(1.0, sqrt(weight.d_out / weight.columns))
        if self.scaled == "adamw":
            return 0.2 * sqrt(max(weight.d_out, weight.columns))
        return per_output(weight, self.table)


def _schedule(coefficients: str, steps: int) -> list[Coefficients]:
    """The coefficients of each step; the last known ones repeat."""
    if coefficients == "muon":
        return list(_MUON) * steps
    *early, last = _POLAR_EXPRESS
    safe = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in early]
    return list(islice([*safe, *repeat(last, steps)], steps))


def newton_schulz(x: Tensor, schedule: Sequence[Coefficients]) -> Tensor:
    """Moves the singular values of each matrix of a batch (…, rows, columns) towards 1; none may be above 1."""
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # so that XXᵀ is the smaller product
        x = x.mT
    for a, b, c in schedule:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
