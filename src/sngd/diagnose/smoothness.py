"""Local smoothness: how fast ∇F changes from w, along the step's direction and across it."""

from collections.abc import Callable, Iterable, Sequence
from math import hypot, inf, isnan, nan, sqrt
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sngd.diagnose.interval import Interval, mean_margin, student_t
from sngd.diagnose.objective import Objective
from sngd.estimators.estimator import Batch, size_of
from sngd.norms.product import NormLike, Product, product_of

GROUPS = 10  # of the jackknife: t at 9 degrees of freedom is 15 % wider than at infinitely many


class LocalSmoothness(NamedTuple):
    """L̂(s, u) = ‖∇F(w + s u) − ∇F(w)‖* / s at one w, for each of ``lengths``; 95 % intervals.

    ‖·‖* is the dual of the norm ‖·‖ that was asked for, and ‖u‖ = 1. For the default, l2, both are ‖·‖₂.

    Attributes:
        grad_norm: ‖∇F(w)‖*.
        lengths: the step lengths s.
        along: L̂(s, u) for u the step's direction.
        curvature: uᵀ(∇F(w + s u) − ∇F(w)) / s, the mean of uᵀ∇²F u over the step: negative where F is concave along
            it, and at most L̂(s, u) in size.
        off: L̂(s, v), the mean over random v; empty if none was tried. For l2, v is a random unit vector orthogonal to
            u. For other norms it is the unit step along such a vector, ‖v‖ = 1.
        rounding: ε (‖∇F(w)‖* + L̂(s, u) ‖w‖) / s with ε the weights' machine epsilon: about the most that floating
            point can have done to L̂(s, u), often a hundred times less. Where it is above ``along``, s is too short.
        oracle_calls: b (1 + S (1 + m)) for a batch of b samples, S lengths and m directions.
    """

    grad_norm: Interval
    lengths: tuple[float, ...]
    along: tuple[Interval, ...]
    curvature: tuple[Interval, ...]
    off: tuple[Interval, ...]
    rounding: tuple[float, ...]
    oracle_calls: int

    @property
    def largest_along(self) -> Interval:
        """``along`` at the length where it is largest; the interval does not account for this choice."""
        return max(self.along, key=_nan_first)

    @property
    def largest_off(self) -> Interval | None:
        """``off`` at the length where it is largest, None if no direction was tried."""
        return max(self.off, key=_nan_first, default=None)


def _nan_first(interval: Interval) -> tuple[bool, float]:
    return isnan(interval.value), interval.value


def local_smoothness(
    objective: Objective,
    direction: Tensor | None = None,
    *,
    lengths: Sequence[float],
    directions: int = 4,
    batch: Batch | None = None,
    generator: torch.Generator,
    norm: NormLike = "l2",
) -> LocalSmoothness:
    """How fast ∇F changes from the present weights: Zhang et al. 2020 (Why gradient clipping accelerates training).

    Both gradients of a difference are taken on the same samples with the same masks. F is the mean over all of the
    objective's samples, and the intervals say what a batch leaves unknown of it. The batch is split into `GROUPS`
    groups; with D_a the change of group a's gradient, the mean of ⟨D_a, D_c⟩ over a ≠ c estimates ‖ED‖² without the
    bias that noise gives to ‖D̄‖², and leaving out each group in turn (the jackknife) gives Student's interval. Both
    are corrected for a batch that is a part of finitely many samples: measured on all samples, the values are the
    formulas above and along the step nothing is unknown. An estimate is 0 where noise hides it, and not a number where
    ∇F overflows. Across the step, the directions drawn add their own Student's interval: near 95 %, or nearer 85 %
    where one eigenvalue of the Hessian outweighs all others. All intervals are for the u used, these masks and, in
    training mode, BatchNorm over a group at a time.

    The shortest sensible s is ε (‖w‖ + ‖∇F(w)‖ / L̂), in float32 some 10⁻⁷ ‖w‖, better a hundred times that. The
    learning rate of normalized steps is the natural choice.

    **In another norm** u is the step that ``norm`` takes along the direction, divided by its size: for "sign" signs
    instead of −g/‖g‖₂. Dual norms are not squares of sums, so pairs of groups do not give ‖ED‖* without bias. Two
    estimates bracket it: on average ‖D̄‖* is too large (Jensen), and ⟨D_a, unit(mean of the other groups)⟩ too small,
    as no u with ‖u‖ ≤ 1 has ⟨ED, u⟩ > ‖ED‖*. The value is their geometric mean. The interval goes from the lower
    one to the upper one, and as far beyond as Student's t says for the scatter of the groups. Spectral norms are
    computed exactly, by SVD; only the direction comes from the norm's own iteration.

    Args:
        direction: the step's, −g of shape (d,), any length > 0; None: −∇F(w) over the batch.
        lengths: s > 0, in the units of w.
        directions: m, number of random directions off the step: 0, or 2 at least.
        batch: drawn by `Objective.draw`, 3 samples at least; None: all samples.
        generator: a CPU generator, for the random directions only.
        norm: of the steps, for all weights, or param groups with norms, as ``sngd.groups`` gives them. Lengths are
            in this norm.

    Raises:
        ValueError: an argument is out of its range, or ``norm`` does not fit the model; the direction is zero (w is
            stationary) or not finite.

    Examples:
        >>> batch = objective.draw(1024, generator)
        >>> found = local_smoothness(objective, lengths=[0.01, 0.1], batch=batch, generator=generator)
        >>> found.grad_norm, found.largest_along, found.oracle_calls
    """
    _check(objective, direction, lengths, directions)
    product = product_of(objective.params, norm)
    calls = objective.oracle_calls
    sample = _Sample.of(objective, batch)
    here = sample.gradients(objective)
    measure = _Euclidean(sample) if product.is_euclidean else _InNorm(sample, objective, product)
    along_l2 = _unit(-sample.mean(here) if direction is None else direction.detach().to(here))
    u = measure.step(along_l2)
    across = [measure.step(_orthogonal(along_l2, generator)) for _ in range(directions)]

    def change(v: Tensor, s: float) -> Tensor:
        with objective.moved(s * v):
            return (sample.gradients(objective) - here).div_(s)

    along, curvature, off = [], [], []
    for s in lengths:
        changes = change(u, s)
        along.append(measure.norm(changes))
        curvature.append(sample.component(changes, u))
        if across:
            off.append(measure.mean_norm(change(v, s) for v in across))
    grad_norm = measure.norm(here)
    eps = max(torch.finfo(p.dtype).eps for p in objective.params)
    size = measure.size_of([p.detach() for p in objective.params])
    rounding = (eps * (grad_norm.value + L.value * size) / s for L, s in zip(along, lengths, strict=True))
    return LocalSmoothness(
        grad_norm,
        tuple(map(float, lengths)),
        tuple(along),
        tuple(curvature),
        tuple(off),
        tuple(rounding),
        objective.oracle_calls - calls,
    )


def _check(objective: Objective, direction: Tensor | None, lengths: Sequence[float], directions: int) -> None:
    if not lengths or not all(0 < s < inf for s in lengths):
        raise ValueError(f"lengths must be finite numbers > 0, at least one, got {list(lengths)}")
    if directions < 0 or directions == 1:
        raise ValueError(f"directions must be 0 or at least 2, got {directions}")
    if directions and objective.dim == 1:
        raise ValueError(f"directions must be 0 for a model of one weight, got {directions}")
    if direction is not None and direction.shape != (objective.dim,):
        raise ValueError(f"direction must have shape ({objective.dim},), got {tuple(direction.shape)}")


def _unit(vector: Tensor) -> Tensor:
    norm = vector.norm().item()
    if not 0 < norm < inf:
        raise ValueError(f"direction must be finite and not zero, its norm is {norm}")
    return vector.div(norm)


def _orthogonal(u: Tensor, generator: torch.Generator) -> Tensor:
    """A random unit vector orthogonal to the unit vector u, uniform among all."""
    v = torch.randn(len(u), generator=generator, device="cpu").to(u)
    for _ in range(2):  # once more for what rounding left
        v = v - (u @ v) * u
        v = v / v.norm()
    return v


class _Sample(NamedTuple):
    """A batch in groups: estimates of the mean over all samples, with their uncertainty.

    Vectors, one a group, are the rows of a (groups, d) tensor.
    """

    groups: list[Batch]
    weights: Tensor  # each group's part of the batch: (groups,), float64
    fraction: float  # the batch's part of all samples

    @staticmethod
    def of(objective: Objective, batch: Batch | None) -> "_Sample":
        batch = objective.samples if batch is None else batch
        size = size_of(batch)
        if size < min(3, objective.n):
            raise ValueError(f"batch must have at least {min(3, objective.n)} samples, got {size}")
        k = min(GROUPS, size)
        bounds = [size * a // k for a in range(k + 1)]
        groups = [tree_map(lambda part, a=a: part[bounds[a] : bounds[a + 1]], batch) for a in range(k)]
        return _Sample(groups, torch.tensor(bounds, dtype=torch.float64).diff() / size, min(1.0, size / objective.n))

    def gradients(self, objective: Objective) -> Tensor:
        return torch.stack([objective.gradient(group) for group in self.groups])

    def mean(self, vectors: Tensor) -> Tensor:
        return torch.mv(vectors.T, self.weights.to(vectors))

    def component(self, vectors: Tensor, u: Tensor) -> Interval:
        """Of the mean vector, in direction u."""
        components = (vectors @ u).double().cpu()
        value, half = self.jackknife(lambda weights: weights @ components)
        return Interval(value, value - half, value + half)

    def squared_norms(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Of the mean over all samples, unbiased: from the batch's if it is all of them, else from pairs of groups.

        Groups are weighted by ``weights`` (..., groups), which add up to 1; the result is of shape (...).
        """
        whole = (weights @ gram * weights).sum(-1)
        if self.fraction == 1:
            return whole
        squares = weights.square()
        between = (whole - squares @ gram.diag()) / (1 - squares.sum(-1))
        return torch.lerp(between, whole, self.fraction)

    def jackknife(self, statistic: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """A statistic of the groups' weights, and half its 95 % interval over draws of the batch."""
        value = statistic(self.weights).item()
        if self.fraction == 1:
            return value, 0.0
        k = len(self.weights)
        others = self.weights * (1 - torch.eye(k, dtype=torch.float64))
        left_out = statistic(others / others.sum(1, keepdim=True))
        variance = (1 - self.fraction) * (k - 1) ** 2 / k * left_out.var().item()
        return value, student_t(k - 1) * sqrt(variance)


class _Euclidean(NamedTuple):
    """Measures ‖·‖₂ of the mean over all samples, by pairs of groups."""

    sample: _Sample

    def step(self, direction: Tensor) -> Tensor:
        """The unit vector itself."""
        return direction

    def size_of(self, weights: list[Tensor]) -> float:
        return float(torch.stack([weight.norm() for weight in weights]).norm())

    def norm(self, vectors: Tensor) -> Interval:
        """Of the mean vector."""
        gram = _gram(vectors)
        value, half = self.sample.jackknife(lambda weights: self.sample.squared_norms(gram, weights))
        return Interval(_root(value), _root(value - half), _root(value + half))

    def mean_norm(self, draws: Iterable[Tensor]) -> Interval:
        """The mean over a population of mean vectors' norms, of which ``draws`` are drawn."""
        grams = [_gram(vectors) for vectors in draws]

        def norms(weights: Tensor) -> Tensor:
            return torch.stack([self.sample.squared_norms(gram, weights) for gram in grams]).clamp(min=0).sqrt()

        value, half = self.sample.jackknife(lambda weights: norms(weights).mean(0))
        half = hypot(half, mean_margin(norms(self.sample.weights).tolist()))
        return Interval(value, max(value - half, 0.0), value + half)


class _InNorm(NamedTuple):
    """Measures the dual norm of the mean over all samples, between an estimate from below and one from above."""

    sample: _Sample
    objective: Objective
    product: Product

    def step(self, direction: Tensor) -> Tensor:
        """The norm's step along the direction, of size 1."""
        step = self.product.units(self.objective.split(direction))
        size = self.product.exact.size(step)
        return torch.cat([part.reshape(-1).to(direction) for part in step]) / size.to(direction)

    def size_of(self, weights: list[Tensor]) -> float:
        return float(self.product.exact.size(weights))

    def norm(self, vectors: Tensor) -> Interval:
        """Of the mean vector.

        With the part f of all samples in the batch, a mean of the others D_{−a} has the part f' = f · (its share of the
        batch). Given D_{−a}, group a is drawn from the rest, and E D_a = ED − (D_{−a} − ED) f'/(1 − f'). This is why
        (1 − f')⟨D_a, u⟩ + f'⟨D_{−a}, u⟩ with u = unit(D_{−a}) has the mean ⟨ED, u⟩.
        """
        if not vectors.isfinite().all():
            return Interval(nan, nan, nan)
        mean = self.sample.mean(vectors)
        upper = self._inner(mean, self._unit(mean))
        if self.sample.fraction == 1:
            return Interval(upper, upper, upper)
        lower, own = 0.0, []
        for weight, group in zip(self.sample.weights.tolist(), vectors, strict=True):
            others = (mean - weight * group) / (1 - weight)
            u = self._unit(others)
            seen = self.sample.fraction * (1 - weight)
            own.append(self._inner(group, u))
            lower += weight * ((1 - seen) * own[-1] + seen * self._inner(others, u))
        lower = min(max(lower, 0.0), upper)
        half = mean_margin(own) * sqrt(1 - self.sample.fraction)
        return Interval(sqrt(lower * upper), max(lower - half, 0.0), upper + half)

    def mean_norm(self, draws: Iterable[Tensor]) -> Interval:
        """The mean over a population of mean vectors' norms, of which ``draws`` are drawn."""
        found = [self.norm(vectors) for vectors in draws]
        value, low, high = map(fmean, zip(*found, strict=True))
        chance = mean_margin([one.value for one in found])
        return Interval(value, max(value - hypot(value - low, chance), 0.0), value + hypot(high - value, chance))

    def _unit(self, vector: Tensor) -> Tensor:
        units = self.product.exact.units(self.objective.split(vector))
        return torch.cat([unit.reshape(-1) for unit in units])

    def _inner(self, one: Tensor, other: Tensor) -> float:
        return float(one.double() @ other.double())


def _gram(vectors: Tensor) -> Tensor:
    return (vectors @ vectors.T).double().cpu()


def _root(square: float) -> float:
    return 0.0 if square < 0 else sqrt(square)  # what is not a number stays so
