"""Beyond the paper: the lemmas and bounds of ``sngd.theory`` in every norm, on random quadratics of known constants.

Every instance is F(w) = ½⟨w, Hw⟩ with additive noise, whose L in the norm of its family is known exactly. The steps are
the library's own, ``SNGD`` with the norm by param group. Every instance is run with full gradients (NGD), with
mini-batches (SNGD), in stages (Theorem 3), with momentum, and with capped steps.

* The lemmas hold at every step: Lemma 1 for the gradient estimate, or with momentum for the mean m/(1 − β^(t+1)); for
  Newton–Schulz steps with the shortfall and overshoot that the step has; and the lemma of capped steps.
* The bounds hold for the mean over several runs, by the same test as in ``conformance``.

Both are repeated with L/4, to see that they can fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Generator, Tensor, nn

from sngd.checks import check_one_of
from sngd.norms import Col, Layer, Norm, Row, Sign, Spectral
from sngd.optim.sngd import SNGD
from sngd.optim.stagewise import StagewiseLR
from sngd.paper.closed_form.conformance import ERROR_RATE, SEEDS, TOLERANCE, WRONG, student
from sngd.paper.closed_form.families import log_uniform, normal
from sngd.paper.closed_form.share_done import steps as each
from sngd.stages import StagePlan, constant, harmonic
from sngd.studies.figures import plain_style, save
from sngd.theory import (
    Bound,
    Inexact,
    Smooth,
    capped_bound,
    capped_lemma,
    lemma1,
    momentum_bound,
    sngd_bound,
    stagewise_bound,
)
from sngd.training.schema import Count, NonNegative

INSTANCES = {"quick": 3, "small": 25}  # of each family, by profile
RUNS = ("ngd", "sngd", "s-sngd:harmonic", "nsgd-momentum", "capped-sngd")


class Ball(NamedTuple):
    """A weight, the norm of its steps, and the radius of its ball: its learning rate over that of the run."""

    norm: Norm
    shape: tuple[int, ...]
    radius: float = 1.0
    spelling: str | Norm | None = None  # what SNGD is given, if not the norm itself

    @property
    def scale(self) -> float:
        """The step's length in the bare norm, over that of the run."""
        return self.radius * self.norm.factor_of(self.shape)

    def matrices(self, v: Tensor) -> Tensor:
        """(…, rows, columns) of the weights (…, entries)."""
        return v.reshape(*v.shape[:-1], self.shape[0], prod(self.shape[1:]))

    def dual(self, v: Tensor) -> Tensor:
        """‖v‖* of (…, entries): (…)."""
        dual: Tensor = self.scale * (self.norm.bare_unit(self.matrices(v)).flatten(-2) * v).sum(-1)
        return dual

    def size(self, w: Tensor) -> Tensor:
        """‖w‖ of (…, entries): (…)."""
        return self.norm.bare_size(self.matrices(w)) / self.scale


class Instance(NamedTuple):
    """F(w) = ½⟨w, Hw⟩ in the product of the balls, with samples f(w; a) = F(w) + ⟨a, w⟩, Σa = 0."""

    balls: tuple[Ball, ...]
    hessian: Tensor
    noise: Tensor  # a_1 … a_n, (n, d)
    start: Tensor
    L: float
    sigma: float

    def value(self, w: Tensor) -> Tensor:
        """F of (…, d): (…)."""
        return 0.5 * ((w @ self.hessian) * w).sum(-1)

    @property
    def gap(self) -> float:
        """Δ = F(w_0), as inf F = F(0) = 0."""
        return self.value(self.start).item()

    @property
    def kappa(self) -> float:
        """√(Σ r²κ²) over the balls."""
        return sqrt(sum((ball.radius * ball.norm.kappa(ball.shape)) ** 2 for ball in self.balls))

    def parts(self, v: Tensor) -> tuple[Tensor, ...]:
        """(…, d) split into the balls' entries."""
        parts: tuple[Tensor, ...] = v.split([prod(ball.shape) for ball in self.balls], -1)
        return parts

    def dual(self, v: Tensor) -> Tensor:
        """The sum of the balls' dual norms."""
        return torch.stack([b.dual(part) for b, part in zip(self.balls, self.parts(v), strict=True)]).sum(0)

    def size(self, w: Tensor) -> Tensor:
        """The largest of the balls' norms."""
        return torch.stack([b.size(part) for b, part in zip(self.balls, self.parts(w), strict=True)]).amax(0)


def _matrix(norm: Norm, spelling: str | Norm | None = None) -> Callable[[Generator], Instance]:
    """A family of one matrix W, F(W) = ½⟨W, AWB⟩."""

    def draw_instance(generator: Generator) -> Instance:
        shape = (_size(generator), _size(generator))
        return _instance([Ball(norm, shape, spelling=spelling)], generator)

    return draw_instance


def _product(generator: Generator) -> Instance:
    """A matrix and two vectors, each in a ball of its own, with learning rates of their own."""
    norms: list[tuple[Norm, tuple[int, ...], str | Norm | None]] = [
        (_EXACT, (_size(generator), _size(generator)), None),
        (Sign(), (_size(generator),), None),
        (_EUCLIDEAN, (_size(generator),), "l2"),
    ]
    radii = [1.0, *(log_uniform(0.3, 3, generator) for _ in norms[1:])]  # the plan sets the lr of the first group
    balls = [Ball(norm, shape, radius, text) for (norm, shape, text), radius in zip(norms, radii, strict=True)]
    return _instance(balls, generator)


def _instance(balls: list[Ball], generator: Generator) -> Instance:
    """H is block diagonal, so that L is the sum of the blocks' L: each attains its own maximum."""
    blocks, constants = zip(*(_block(ball, generator) for ball in balls), strict=True)
    hessian = torch.block_diag(*blocks)
    sigma = log_uniform(0.03, 3, generator)
    noise = normal(64, len(hessian), generator=generator)
    noise -= noise.mean(0)
    noise *= sigma / noise.square().sum(1).mean().sqrt()
    start = 2 * normal(len(hessian), generator=generator)
    return Instance(tuple(balls), hessian, noise, start, sum(constants), sigma)


def _block(ball: Ball, generator: Generator) -> tuple[Tensor, float]:
    """A ⊗ B, with which ⟨W, AWB⟩ is the quadratic form, and L in the norm of the ball.

    A and B are positive semidefinite, and their entries are D_ii D_jj times positive numbers, for a diagonal D of
    signs. So the largest ⟨U, AVB⟩ is attained at U = V, and is, for the bare norms, with singular values s in order,

    * s_1(A) s_1(B) for the Frobenius norm;
    * Σ s_i(A) s_i(B) for the spectral norm (von Neumann's inequality, attained by aligned matrices);
    * Σ|A_ij| Σ|B_ij| for the largest entry (attained by signs);
    * Σ|A_ij| s_1(B) for the largest row (rows ± the first eigenvector of B), and s_1(A) Σ|B_ij| for the largest column.
    """
    A, B = _same_signs(ball.shape[0], generator), _same_signs(prod(ball.shape[1:]), generator)
    a, b = torch.linalg.svdvals(A), torch.linalg.svdvals(B)
    rank = min(len(a), len(b))
    bare = {
        "layer": a[0] * b[0],
        "spectral": a[:rank] @ b[:rank],
        "sign": A.abs().sum() * B.abs().sum(),
        "row": A.abs().sum() * b[0],
        "col": a[0] * B.abs().sum(),
    }[ball.norm.name]
    return torch.kron(A, B), bare.item() * ball.scale**2


def _same_signs(size: int, generator: Generator) -> Tensor:
    root = normal(size, size, generator=generator).abs() * log_uniform(0.3, 3, generator) / size
    signs = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
    return signs.double().outer(signs.double()) * (root @ root.T)


def _size(generator: Generator) -> int:
    return int(torch.randint(2, 5, (), generator=generator))


_EXACT = Spectral(coefficients="svd")
_EUCLIDEAN = Layer(scaled=False)

FAMILIES: dict[str, Callable[[Generator], Instance]] = {
    "l2": _matrix(_EUCLIDEAN, "l2"),
    "layer": _matrix(Layer()),
    "sign": _matrix(Sign()),
    "spectral": _matrix(_EXACT),
    "spectral, Newton–Schulz": _matrix(_EXACT, Spectral()),
    "row": _matrix(Row()),
    "col": _matrix(Col()),
    "product": _product,
}


class Walk(NamedTuple):
    """What the checks need of several runs: (steps + 1, seeds) of values, (steps, seeds) of the rest."""

    values: Tensor  # F(w_t)
    norms: Tensor  # ‖∇F(w_t)‖*
    errors: Tensor  # ‖∇F(w_t) − g_t‖*, with momentum of the mean
    shortfalls: Tensor  # ε of the step
    overshoots: Tensor  # δ of the step


def walk(
    instance: Instance, plan: StagePlan, batch_size: int | None, options: Mapping[str, float], generator: Generator
) -> Walk:
    """Run the plan once for each seed, one seed if ``batch_size`` is None: then all gradients are full.

    Args:
        options: ``momentum``, which is normalized, and ``max_scale`` of ``SNGD``.
    """
    seeds = 1 if batch_size is None else SEEDS
    w = instance.start.repeat(seeds, 1)
    views = [
        [nn.Parameter(part.view(ball.shape)) for part, ball in zip(instance.parts(row), instance.balls, strict=True)]
        for row in w
    ]
    apart = "max_scale" in options or any(ball.spelling == "l2" for ball in instance.balls)
    optimizers = [
        _optimizer(instance, plan, seed, options) for seed in ([[one] for one in views] if apart else [views])
    ]
    schedulers = [StagewiseLR(optimizer, plan) for optimizer in optimizers]
    beta, mean = options.get("momentum", 0.0), torch.zeros_like(w)
    rows: list[tuple[Tensor, ...]] = []
    for t in range(plan.steps):
        gradient = w @ instance.hessian
        estimate = gradient
        if batch_size is not None:
            drawn = torch.randint(len(instance.noise), (seeds, batch_size), generator=generator)
            estimate = gradient + instance.noise[drawn].mean(1)
        for weights, g in zip(views, estimate, strict=True):
            for view, part in zip(weights, instance.parts(g), strict=True):
                view.grad = part.view_as(view).clone()
        before = w.clone()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        mean = beta * mean + (1 - beta) * estimate
        followed = mean / (1 - beta ** (t + 1))
        v = (w - before) / plan.lr_at(t)
        dual = instance.dual(followed)
        shortfall = (1 + (followed * v).sum(1) / dual).clamp(min=0)
        overshoot = (instance.size(v) - 1).clamp(min=0)
        rows.append(
            (instance.value(before), instance.dual(gradient), instance.dual(gradient - followed), shortfall, overshoot)
        )
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return Walk(torch.cat([columns[0], instance.value(w).unsqueeze(0)]), *columns[1:])


def _optimizer(
    instance: Instance, plan: StagePlan, seeds: list[list[nn.Parameter]], options: Mapping[str, float]
) -> SNGD:
    """One for all ``seeds``, whose weights do not change each other's steps where each weight is a ball of its own."""
    groups = [
        {
            "params": [weights[number] for weights in seeds],
            "lr": plan[0].lr * ball.radius,
            "norm": ball.spelling or ball.norm,
        }
        for number, ball in enumerate(instance.balls)
    ]
    return SNGD(groups, normalize="momentum", **options)  # type: ignore[arg-type]


class NormFamily(TypedDict):
    """The instances of one family, see ``measure``."""

    instances: Count
    steps: Count
    lemma_violations: Count
    caught: Count
    comparisons: Count
    bound_violations: Count
    caught_by_bound: Count
    largest_lemma_ratio: NonNegative
    largest_ratio: NonNegative


class NormConformance(TypedDict):
    """What ``measure`` returns."""

    profile: str
    seeds: Count
    error_rate: NonNegative
    families: dict[str, NormFamily]


def measure(profile: str = "quick") -> NormConformance:
    """Hold the lemmas and bounds to random instances of each family; everything in the dict can be written as JSON.

    Args:
        profile: ``quick`` (3 instances a family) or ``small`` (25).

    Returns:
        ``profile``, ``seeds`` (runs averaged for a comparison), ``error_rate`` (family-wise, of all comparisons
        together) and ``families``: name → ``instances``; ``steps`` at which a lemma was checked, ``lemma_violations``
        among them; ``comparisons`` with a bound, ``bound_violations`` among them; ``caught`` and ``caught_by_bound``:
        instances in which a lemma or a bound fails with L/4; the largest measured number over the lemma's, and over
        the bound's.

    Raises:
        ValueError: no such profile.
    """
    check_one_of("profile", profile, INSTANCES)
    quantile = student(ERROR_RATE / (len(FAMILIES) * INSTANCES[profile] * len(RUNS)))
    return {
        "profile": profile,
        "seeds": SEEDS,
        "error_rate": ERROR_RATE,
        "families": {
            name: _family(number, draw_instance, INSTANCES[profile], quantile)
            for number, (name, draw_instance) in each(enumerate(FAMILIES.items()))
        },
    }


def _family(number: int, draw_instance: Callable[[Generator], Instance], instances: int, quantile: float) -> NormFamily:
    found: NormFamily = {
        "instances": instances,
        "steps": 0,
        "lemma_violations": 0,
        "caught": 0,
        "comparisons": 0,
        "bound_violations": 0,
        "caught_by_bound": 0,
        "largest_lemma_ratio": 0.0,
        "largest_ratio": 0.0,
    }
    for index in each(range(instances)):
        generator = torch.Generator().manual_seed(1000 * number + index)
        instance = draw_instance(generator)
        exact = not any(isinstance(ball.spelling, Spectral) for ball in instance.balls)
        equal_lrs = len({ball.radius for ball in instance.balls}) == 1
        caught = caught_by_bound = False
        for run in RUNS if exact and equal_lrs else RUNS[:-1]:  # the bound of capped steps is for these alone
            checked = _run(run, instance, exact, quantile, generator)
            found["steps"] += checked.ratios.size
            found["lemma_violations"] += checked.failures
            found["largest_lemma_ratio"] = max(found["largest_lemma_ratio"], float(checked.ratios.max()))
            found["comparisons"] += 1
            found["bound_violations"] += checked.violated
            found["largest_ratio"] = max(found["largest_ratio"], checked.ratio)
            caught |= checked.caught
            caught_by_bound |= checked.caught_by_bound
        found["caught"] += caught
        found["caught_by_bound"] += caught_by_bound
    return found


class _Checked(NamedTuple):
    ratios: np.ndarray  # ‖∇F(w_t)‖* over the lemma's right side
    failures: int
    caught: bool
    ratio: float  # the measured mean over the bound
    violated: bool
    caught_by_bound: bool


def _run(run: str, instance: Instance, exact: bool, quantile: float, generator: Generator) -> _Checked:
    options: dict[str, float] = {}
    steps = round(log_uniform(8, 48, generator))
    beta = 1 - log_uniform(0.05, 0.9, generator)
    curvature = instance.L / 2 if run != "nsgd-momentum" else instance.L * (0.5 + 2 * beta / (1 - beta))
    lr = sqrt(instance.gap / (curvature * steps)) * log_uniform(0.2, 5, generator)
    plan = constant(lr, steps)
    if run == "s-sngd:harmonic":
        plan = harmonic(lr * 3, round(log_uniform(2, 5, generator)), lr * 3 * log_uniform(1, 3, generator))
    elif run == "nsgd-momentum":
        options["momentum"] = beta
    elif run == "capped-sngd":
        options["max_scale"] = log_uniform(0.3, 1.5, generator) / instance.L
    batch_size = None if run == "ngd" else round(log_uniform(1, 64, generator))
    path = walk(instance, plan, batch_size, options, generator)

    weights = torch.tensor([plan.iterate_weight(t) for t in range(plan.steps)], dtype=torch.float64)
    gaps = (weights / weights.sum()) @ path.norms
    mean = gaps.mean().item()
    error = 0.0 if batch_size is None else gaps.std().item() / sqrt(SEEDS)

    def above(total: float) -> bool:
        return mean - total > quantile * error + TOLERANCE * total

    right, suspect = Smooth(instance.L), Smooth(instance.L / WRONG)
    ratios, failures = _lemma(right, plan, path, options, exact)
    total = _bound(right, instance, plan, batch_size, path, options, exact).total
    return _Checked(
        ratios,
        failures,
        _lemma(suspect, plan, path, options, exact)[1] > 0,
        mean / total,
        above(total),
        above(_bound(suspect, instance, plan, batch_size, path, options, exact).total),
    )


def _lemma(
    smoothness: Smooth, plan: StagePlan, path: Walk, options: Mapping[str, float], exact: bool
) -> tuple[np.ndarray, int]:
    """‖∇F(w)‖* over the lemma's right side at every step, and at how many the lemma fails beyond rounding."""
    ratios, failures = [], 0
    for t in range(plan.steps):
        lr = plan.lr_at(t)
        for s, (value, next_value) in enumerate(zip(path.values[t].tolist(), path.values[t + 1].tolist(), strict=True)):
            norm, error = path.norms[t, s].item(), path.errors[t, s].item()
            if "max_scale" in options:
                right = capped_lemma(smoothness, value, next_value, lr, options["max_scale"], error)
            else:
                step = Inexact() if exact else Inexact(path.shortfalls[t, s].item(), path.overshoots[t, s].item())
                right = lemma1(smoothness, value, next_value, lr, error, step)
            failures += norm > right + TOLERANCE * (norm + abs(value) / lr)
            ratios.append(norm / right if right > 0 else np.inf)
    return np.array(ratios), failures


def _bound(
    smoothness: Smooth,
    instance: Instance,
    plan: StagePlan,
    batch_size: int | None,
    path: Walk,
    options: Mapping[str, float],
    exact: bool,
) -> Bound:
    """The bound of the run. Its proof is a sum along each path, so the largest ε and δ of any step are enough."""
    step = Inexact() if exact else Inexact(path.shortfalls.max().item(), path.overshoots.max().item())
    sigma, b = (0.0, 1) if batch_size is None else (instance.sigma, batch_size)
    # Any: the arguments that all bounds share have several types
    common: dict[str, Any] = {"sigma": sigma, "batch_size": b, "kappa": instance.kappa}
    lr, steps, gap = plan[0].lr, plan.steps, instance.gap
    if len(plan) > 1:
        starts = [0, *np.cumsum([stage.steps for stage in plan])[:-1]]
        return stagewise_bound(smoothness, gap=path.values[starts].max().item(), plan=plan, step=step, **common)
    if "momentum" in options:
        beta = options["momentum"]
        return momentum_bound(smoothness, gap=gap, lr=lr, momentum=beta, steps=steps, step=step, **common)
    if "max_scale" in options:
        return capped_bound(smoothness, gap=gap, lr=lr, max_scale=options["max_scale"], steps=steps, **common)
    return sngd_bound(smoothness, gap=gap, lr=lr, steps=steps, step=step, **common)


def draw(measurements: NormConformance, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``norms.png`` and ``.svg`` of what ``measure`` returned into ``folder`` (made if absent).

    Returns:
        The files written, in that order.
    """
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    families = measurements["families"]
    names = list(families)
    with plain_style():
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for offset, key, label in ((-0.2, "largest_lemma_ratio", "a lemma"), (0.2, "largest_ratio", "a bound")):
            heights = [float(families[name][key]) for name in names]  # type: ignore[literal-required]
            left.barh(np.arange(len(names)) + offset, heights, height=0.38, label=label)
        left.axvline(1, color="black", linewidth=0.8)
        left.set(xlabel="largest ‖∇F‖* over what it is at most", yticks=range(len(names)), yticklabels=names)
        left.set_title("nothing may lie beyond 1", fontsize=10)
        for offset, key, label in ((-0.2, "caught", "by a lemma"), (0.2, "caught_by_bound", "by a bound")):
            shares = [families[name][key] / families[name]["instances"] for name in names]  # type: ignore[literal-required]
            right.barh(np.arange(len(names)) + offset, shares, height=0.38, label=label)
        right.set(xlabel=f"share of instances in which L/{WRONG} is caught", xlim=(0, 1))
        right.set_title("a wrong constant is found", fontsize=10)
        for ax in (left, right):
            ax.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        left.invert_yaxis()
        broken = sum(f["lemma_violations"] + f["bound_violations"] for f in families.values())
        steps = sum(f["steps"] for f in families.values())
        comparisons = sum(f["comparisons"] for f in families.values())
        figure.suptitle(
            f"{broken} violations in {steps:,} steps and {comparisons:,} comparisons, in every norm", fontsize=11
        )
        return save(figure, Path(folder) / "norms")
