"""L0 and L1 from measured pairs (‖∇F(w)‖, L̂(w)): quantile regression, with bootstrap intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sngd.diagnose.interval import Interval
from sngd.theory import RelaxedSmooth

_MEMORY = 1 << 22  # numbers held at a time in comparing lines


class Fit(NamedTuple):
    """L̂ ≈ L0 + L1 ‖∇F‖ at a quantile; 95 % intervals.

    Attributes:
        L0: ≥ 0.
        L1: ≥ 0.
        quantile: the part of the points that lies below the line, or on it.
        points: how many there were.
    """

    L0: Interval
    L1: Interval
    quantile: float
    points: int

    @property
    def smoothness(self) -> RelaxedSmooth:
        """The class that the line describes, as `sngd.theory` takes it; ValueError if L0 = 0, which it has not."""
        return RelaxedSmooth(self.L0.value, self.L1.value)


def fit_relaxed_smooth(
    grad_norms: Sequence[float] | Tensor,
    smoothness: Sequence[float] | Tensor,
    *,
    quantile: float = 0.5,
    block: int | None = None,
    resamples: int = 1000,
    generator: torch.Generator,
) -> Fit:
    """Fits L̂ ≈ L0 + L1 ‖∇F‖ with L0, L1 ≥ 0 to points along a run, robust to outliers of L̂.

    Quantile regression (Koenker & Bassett 1978), minimizing over L0, L1 ≥ 0

        Σ_i ρ(L̂_i − L0 − L1 ‖∇F‖_i),    ρ(r) = max{q r, (q − 1) r}.

    q = 0.5, least absolute deviations, describes the points. q = 0.95 is an envelope, for plans: (L0, L1)-smoothness
    is an upper bound, ‖∇²F(w)‖ ≤ L0 + L1 ‖∇F(w)‖, and measured at points on a run it is a lower estimate of what
    holds everywhere.

    A minimum of this linear program lies at a vertex: a line through two points, a line with L0 = 0 or L1 = 0 through
    one, or zero. All are compared: exact, with O(n³ resamples) additions, seconds for 300 points.

    The intervals are percentiles of fits to resampled points, as far as they are not negative. Those fits are free of
    L0, L1 ≥ 0: with it the bootstrap fails where the truth has L0 = 0 or L1 = 0. Points of one run resemble their
    neighbours, so blocks of them are drawn (the moving-block bootstrap; the run's end is followed by its start, that
    all points weigh alike: Politis & Romano 1992).

    Args:
        grad_norms: ‖∇F(w)‖ ≥ 0 at n ≥ 3 points in the run's order, not all equal; for L̂ in another norm than ‖·‖₂
            its dual norm, ‖∇F(w)‖*, and then L0 and L1 are of this norm.
        smoothness: L̂ ≥ 0 there.
        quantile: q in (0, 1). An interval for it wants some ten points on either side of the line.
        block: points in a block, in [1, n]: 1 for independent points; by default about n^(1/3).
        resamples: of the bootstrap, ≥ 100.
        generator: a CPU generator, for the bootstrap.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> found = fit_relaxed_smooth(grad_norms, smoothness, quantile=0.95, generator=generator)
        >>> plan("sngd", found.smoothness, sigma=1.0, gap=2.3, epsilon=0.1)
    """
    x, y = _numbers("grad_norms", grad_norms), _numbers("smoothness", smoothness)
    n = len(x)
    if len(y) != n:
        raise ValueError(f"smoothness must have as many numbers as grad_norms, {n}, got {len(y)}")
    if n < 3:
        raise ValueError(f"grad_norms must have at least 3 points to fit L0 and L1, got {n}")
    if x.min() == x.max():
        raise ValueError(f"grad_norms must differ for L0 and L1 to be told apart, all {n} are {x[0].item():g}")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
    block = round(n ** (1 / 3)) if block is None else block
    if not 1 <= block <= n:
        raise ValueError(f"block must lie in [1, {n}], the number of points, got {block}")
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100, got {resamples}")
    pairs = _through_two(x, y)
    (best,) = _best_lines(x, y, _non_negative(x, y, pairs), torch.ones(1, n, dtype=x.dtype), quantile)
    resampled = _best_lines(x, y, pairs, _block_bootstrap(n, block, resamples, generator), quantile)
    L0, L1 = map(_interval, best.tolist(), resampled.unbind(1))
    return Fit(L0, L1, quantile, n)


def _numbers(name: str, values: Sequence[float] | Tensor) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64).cpu()
    if numbers.dim() != 1:
        raise ValueError(f"{name} must be a sequence of numbers, got {numbers.dim()} dimensions")
    wrong = numbers[~(numbers.isfinite() & (numbers >= 0))]
    if len(wrong):
        raise ValueError(f"{name} must be finite numbers ≥ 0, got {wrong[0].item()}")
    return numbers


def _through_two(x: Tensor, y: Tensor) -> Tensor:
    """Intercept and slope of every line through two of the points: (lines, 2)."""
    i, j = torch.triu_indices(len(x), len(x), 1)
    apart = x[i] != x[j]
    i, j = i[apart], j[apart]
    slope = (y[i] - y[j]) / (x[i] - x[j])
    return torch.stack([y[i] - slope * x[i], slope], 1)


def _non_negative(x: Tensor, y: Tensor, pairs: Tensor) -> Tensor:
    """The vertices of L0, L1 ≥ 0: of ``pairs`` those within, lines on the boundary through one point, and zero."""
    zeros, ratio = torch.zeros_like(y), y / x
    flat = torch.stack([y, zeros], 1)
    from_origin = torch.stack([zeros, ratio], 1)[ratio.isfinite()]
    return torch.cat([pairs[(pairs >= 0).all(1)], flat, from_origin, torch.zeros(1, 2, dtype=x.dtype)])


def _best_lines(x: Tensor, y: Tensor, lines: Tensor, counts: Tensor, quantile: float) -> Tensor:
    """The best of ``lines`` for every row of ``counts``, which says how often each point is there: (rows, 2)."""
    least = torch.full((len(counts),), torch.inf, dtype=x.dtype)
    best = torch.zeros(len(counts), 2, dtype=x.dtype)
    for some in lines.split(_MEMORY // max(counts.shape)):
        residuals = y - some[:, :1] - some[:, 1:] * x
        losses = torch.maximum(quantile * residuals, (quantile - 1) * residuals) @ counts.T
        loss, which = losses.min(0)
        better = loss < least
        least[better], best[better] = loss[better], some[which[better]]
    return best


def _interval(value: float, resampled: Tensor) -> Interval:
    """``value`` with the central 95 % of ``resampled``, as far as it is not negative."""
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).clamp(min=0).tolist()
    return Interval(value, min(low, value), max(high, value))


def _block_bootstrap(n: int, block: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each of n points is drawn: (resamples, n), rows summing to n."""
    starts = torch.randint(n, (resamples, -(-n // block), 1), generator=generator)
    drawn = ((starts + torch.arange(block)) % n).flatten(1)[:, :n]
    counts = torch.zeros(resamples, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=counts.dtype))
