"""Figure 1: leaving saddles and sharp minima (claim C8), measured on closed-form landscapes and drawn.

The verdict is that of ``escape_map``, which has every method at every learning rate. The other measurements show how
time grows, at the few rates that their names give; they are reported, and nothing is required of them. Around saddles
these rates are 0.1, where with L = 1 the first step of GD in the ball of radius 1 is at most as long as NGD's, and for
GD also 1/L. The paths out of the sharp minimum are of one start and have the rate 1: with 0.1 all methods stay in its
hole, which is 0.3 wide. GD is also shown with the rate 10, at which it leaves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from math import exp, log, log10
from pathlib import Path
from statistics import linear_regression
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from sngd.checks import check_one_of
from sngd.diagnose.interval import Interval, mean_interval
from sngd.optim.perturbed import Perturbed
from sngd.optim.sngd import SNGD
from sngd.paper.closed_form.escape_map import (
    BATCH_SIZE,
    CONDITION,
    DIM,
    METHODS,
    NOISE,
    PERTURBED_EVERY,
    RADIUS,
    EscapeMap,
    draw_map,
    judge_map,
    measure_map,
    value_of,
)
from sngd.paper.closed_form.share_done import steps as each
from sngd.paper.verdicts import LEVEL, Evidence, Quantity, error_rate, reported
from sngd.problems.analytic import Analytic, sharp_and_flat, strict_saddle, tensor_decomposition
from sngd.problems.problem import Problem
from sngd.studies.figures import DASH_LENGTHS, plain_style, save, styles
from sngd.training.schema import Count, NonNegative, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT = 20_000  # steps after which a run counts as stuck
LRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # both methods' grid on tensor decomposition
TUNING_SEEDS = (1_000_000, 1_000_001)  # none of those measured


class Size(NamedTuple):
    seeds: int
    distances: tuple[float, ...]
    dims: tuple[int, ...]
    components: int  # of tensor decomposition
    steps: int  # on it
    starts: int  # of the map: judged
    tuning_starts: int


_DISTANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)

SIZES = {
    "quick": Size(2, (1e-1, 1e-4), (2, 8), 3, 100, 6, 4),
    "small": Size(10, _DISTANCES, (2, 4, 8, 16, 32, 64, 128, 256), 6, 2000, 40, 20),
}


class MethodAtRate(NamedTuple):
    method: str  # of METHODS
    lr: float

    @property
    def label(self) -> str:
        return f"{self.method}, lr {self.lr:g}"


Steps = dict[str, list[list[Count | None]]]  # by arm: for each place those of each seed


class StepsByDistance(TypedDict):
    """Steps against the distance, see ``measure``."""

    dim: Count
    distances: list[Positive]
    steps: Steps
    theory: dict[str, list[NonNegative]]


class StepsByDimension(TypedDict):
    """Steps against the dimension, see ``measure``."""

    dims: list[Count]
    steps: Steps


class TensorMeasured(TypedDict):
    """Tensor decomposition, see ``measure``; everything by method."""

    dim: Count
    batch_size: Count
    steps: list[Count]
    losses: dict[str, list[list[float]]]
    lr: dict[str, Positive]
    tuning: dict[str, list[tuple[Positive, float]]]


class Escape(TypedDict):
    """What ``measure`` returns."""

    profile: str
    map: EscapeMap
    trajectories: dict[str, dict[str, list[tuple[float, float]]]]
    from_saddle: StepsByDistance
    from_manifold: StepsByDistance
    dimension: StepsByDimension
    tensor: TensorMeasured


def measure(profile: str = "quick") -> Escape:
    """Measure claim C8; everything in the returned dict can be written as JSON.

    Args:
        profile: ``quick`` (seconds) or ``small`` (a few minutes).

    Returns:
        * ``map``: which starts each method leaves at each learning rate, see ``measure_map``.
        * ``trajectories``: landscape → method and rate → list of [x, y], from w_0 on.
        * ``from_saddle``: ``distances`` δ, and ``steps``: arm → for each δ the steps of each seed to leave the ball of
          radius 1 about a strict saddle (d = 10, κ = 10, L = 1) from a random point at distance δ of it; None for more
          than 20,000. ``theory``: arm → for each δ the steps GD needs on the quadratic with the same Hessian from a
          point with the mean square unstable part, log(√d/δ)/log(1 + α/κ), or Murray et al.'s 5√κ/α for NGD.
        * ``from_manifold``: the same from the points at distance 0.9 along the stable manifold and δ off it.
        * ``dimension``: ``dims``, and ``steps`` from exactly the saddle with perturbation.
        * ``tensor``: ``steps`` at which ``losses`` (method → seed → F) were taken on tensor decomposition from exactly
          its saddle, ``dim`` components; ``tuning``: method → list of [lr, final loss], ``lr``: method → the best.

    Raises:
        ValueError: no such profile.
    """
    check_one_of("profile", profile, SIZES)
    settings = SIZES[profile]
    parts: dict[str, Callable[[], object]] = {
        "map": lambda: measure_map(settings.starts, settings.tuning_starts, settings.components),
        "trajectories": lambda: {name: _trajectories(name) for name in _LANDSCAPES},
        "from_saddle": lambda: _steps_by_distance(settings, on_manifold=False),
        "from_manifold": lambda: _steps_by_distance(settings, on_manifold=True),
        "dimension": lambda: _steps_by_dimension(settings),
        "tensor": lambda: _tensor(settings),
    }
    return cast(Escape, {"profile": profile, **{name: measured() for name, measured in each(parts.items())}})


def _walk(
    problem: Problem, arm: MethodAtRate, start: Tensor | None, seed: int, batch_size: int = 0
) -> Iterator[Tensor]:
    """The iterates w_0, w_1, …, each valid until the next is asked for; batch size 0 is the full gradient."""
    samples, noise = (torch.Generator().manual_seed(2 * seed + k) for k in range(2))
    model = problem.build_model()
    (w,) = model.parameters()
    if start is not None:
        w.data.copy_(start)
    optimizer = _optimizer(arm, w, noise)
    inputs, targets = problem.train
    batch = torch.arange(problem.n)
    while True:
        yield w.detach()
        if batch_size:
            batch = torch.randint(problem.n, (batch_size,), generator=samples)
        optimizer.zero_grad()
        problem.loss(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()


def _optimizer(arm: MethodAtRate, w: Tensor, noise: torch.Generator) -> Optimizer:
    plain: Optimizer = SNGD([w], lr=arm.lr) if "NGD" in arm.method else SGD([w], lr=arm.lr)
    every = PERTURBED_EVERY.get(arm.method)
    if every is None:
        return plain
    return Perturbed(plain, std=NOISE * arm.lr / math.sqrt(w.numel()), every=every, generator=noise)


class _Landscape(NamedTuple):
    title: str
    analytic: Analytic
    starts: dict[MethodAtRate, tuple[float, float]]
    steps: int
    window: tuple[float, float, float, float]  # left, right, bottom, top


_exact = partial(strict_saddle, sigma=0.0, n=1, dtype=torch.float64)

_FROM_SHARP = (*(MethodAtRate(method, 1.0) for method in ("GD", "SGD", "NGD", "SNGD")), MethodAtRate("GD", 10.0))

_LANDSCAPES = {
    "saddle": _Landscape(
        "strict saddle",
        _exact(2, condition=5.0),
        {  # the landscape is symmetric: a quadrant each, so that no path hides another
            MethodAtRate("GD", 0.1): (-0.15, 2.5),
            MethodAtRate("NGD", 0.1): (0.15, 2.5),
            MethodAtRate("Noisy-GD", 0.1): (-0.15, -2.5),
            MethodAtRate("Saddle-NGD", 0.1): (0.15, -2.5),
        },
        steps=60,
        window=(-4.2, 4.2, -2.8, 2.8),
    ),
    "sharp_and_flat": _Landscape(
        "sharp minimum beside a flat one",
        sharp_and_flat(dtype=torch.float64),
        dict.fromkeys(_FROM_SHARP, (3.1, 0.1)),
        steps=60,
        window=(-2.6, 4.2, -2.7, 2.3),
    ),
}


def _trajectories(name: str) -> dict[str, list[tuple[float, float]]]:
    landscape = _LANDSCAPES[name]
    paths: dict[str, list[tuple[float, float]]] = {}
    for arm, start in landscape.starts.items():
        walk = _walk(landscape.analytic.problem, arm, torch.tensor(start), 0, int(arm.method in ("SGD", "SNGD")))
        paths[arm.label] = [(w[0].item(), w[1].item()) for w in islice(walk, landscape.steps + 1)]
    return paths


_FOR_DISTANCES = (MethodAtRate("GD", 0.1), MethodAtRate("GD", 1.0), MethodAtRate("NGD", 0.1), MethodAtRate("NGD", 0.01))
_FOR_DIMENSIONS = (
    MethodAtRate("Noisy-GD", 0.1),
    MethodAtRate("Noisy-GD", 1.0),
    MethodAtRate("Saddle-NGD", 0.1),
    MethodAtRate("Saddle-NGD", 0.01),
)


def _steps_by_distance(settings: Size, *, on_manifold: bool) -> StepsByDistance:
    problem = _exact(DIM, condition=CONDITION).problem
    steps: Steps = {}
    theory: dict[str, list[float]] = {}
    for arm in each(_FOR_DISTANCES):
        steps[arm.label] = [
            [
                _steps_to_leave(_walk(problem, arm, _start(distance, on_manifold, seed), seed))
                for seed in range(settings.seeds)
            ]
            for distance in settings.distances
        ]
        theory[arm.label] = [
            _predict_steps(arm, distance if on_manifold else distance / DIM**0.5) for distance in settings.distances
        ]
    return {"dim": DIM, "distances": list(settings.distances), "steps": steps, "theory": theory}


def _start(distance: float, on_manifold: bool, seed: int) -> Tensor:
    """A random point at ``distance`` from the saddle at 0, or ``distance`` off its stable manifold and 0.9 along it."""
    direction: Tensor = torch.randn(DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if not on_manifold:
        point: Tensor = distance * direction / direction.norm()
        return point
    direction[0] = 0
    point = 0.9 * RADIUS * direction / direction.norm()
    point[0] = distance
    return point


def _steps_to_leave(walk: Iterator[Tensor]) -> int | None:
    return next((t for t, w in enumerate(islice(walk, LIMIT + 1)) if w.norm() >= RADIUS), None)


def _predict_steps(arm: MethodAtRate, unstable: float) -> float:
    """Steps to leave from a point with the given unstable coordinate: of GD on the quadratic, or NGD's bound."""
    if arm.method == "NGD":
        return 5 * math.sqrt(CONDITION) * RADIUS / arm.lr
    return math.log(RADIUS / unstable) / math.log1p(arm.lr / CONDITION)


def _steps_by_dimension(settings: Size) -> StepsByDimension:
    steps: Steps = {}
    for arm in each(_FOR_DIMENSIONS):
        steps[arm.label] = []
        for dim in settings.dims:
            problem, saddle = _exact(dim, condition=CONDITION).problem, torch.zeros(dim, dtype=torch.float64)
            seeds = [_steps_to_leave(_walk(problem, arm, saddle, seed)) for seed in range(settings.seeds)]
            steps[arm.label].append(seeds)
    return {"dims": list(settings.dims), "steps": steps}


def _tensor(settings: Size) -> TensorMeasured:
    every = settings.steps // 100
    tuning: dict[str, list[tuple[float, float]]] = {}
    losses: dict[str, list[list[float]]] = {}
    best: dict[str, float] = {}
    for method in each(("Noisy-GD", "Saddle-NGD")):
        curves = partial(_tensor_losses, dim=settings.components, steps=settings.steps, every=every)
        tuning[method] = [
            (lr, _mean_of_tail([curves(MethodAtRate(method, lr), seed) for seed in TUNING_SEEDS])) for lr in each(LRS)
        ]
        best[method] = min(tuning[method], key=lambda pair: pair[1])[0]
        losses[method] = [curves(MethodAtRate(method, best[method]), seed) for seed in range(settings.seeds)]
    return {
        "dim": settings.components,
        "batch_size": BATCH_SIZE,
        "steps": list(range(0, settings.steps + 1, every)),
        "losses": losses,
        "lr": best,
        "tuning": tuning,
    }


def _tensor_losses(arm: MethodAtRate, seed: int, *, dim: int, steps: int, every: int) -> list[float]:
    saddle = torch.full((dim, dim), dim**-0.5, dtype=torch.float64)
    problem = tensor_decomposition(dim, start=saddle, dtype=torch.float64).problem
    walk = _walk(problem, arm, None, seed, BATCH_SIZE)
    value = value_of(problem)
    losses = []
    for t, w in enumerate(islice(walk, steps + 1)):
        w.copy_(torch.nn.functional.normalize(w))  # rows back onto the sphere, as in Ge et al. and Levy
        if t % every == 0:
            losses.append(value(w).item())
    return losses


def _mean_of_tail(curves: Sequence[Sequence[float]]) -> float:
    """Mean over seeds and the last tenth of the run, so that a single good step does not decide."""
    tails = [loss for curve in curves for loss in curve[-max(1, len(curve) // 10) :]]
    return sum(tails) / len(tails)


def draw(measurements: Escape, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``fig1`` and ``fig1-map``, as PNG and SVG, of what ``measure`` returned into ``folder`` (made if absent).

    Returns:
        The files written, in that order.
    """
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    with plain_style():
        figure = Figure(figsize=(15, 9), layout="constrained")
        axes = figure.subplots(2, 3)
        for ax, (name, paths) in zip(axes[:, 0], measurements["trajectories"].items(), strict=True):
            _draw_landscape(ax, _LANDSCAPES[name], paths)
        _draw_distance(axes[0, 1], measurements["from_saddle"], "from a random point this far from the saddle")
        _draw_distance(axes[1, 1], measurements["from_manifold"], "from 0.9 along the stable manifold, this far off")
        _draw_dimension(axes[0, 2], measurements["dimension"])
        _draw_tensor(axes[1, 2], measurements["tensor"])
        seeds = len(measurements["dimension"]["steps"][_FOR_DIMENSIONS[0].label][0])
        figure.suptitle(
            f"Leaving saddles and sharp minima ({measurements['profile']} profile)\n"
            f"line: mean of {seeds} seeds; band: lowest to highest seed",
            fontsize=11,
        )
        pictures = save(figure, Path(folder) / "fig1")
    subtitle = f"{measurements['profile']} profile"
    return [*pictures, *draw_map(measurements["map"], Path(folder) / "fig1-map", subtitle)]


def _draw_landscape(ax: Axes, landscape: _Landscape, paths: Mapping[str, Sequence[Sequence[float]]]) -> None:
    left, right, bottom, top = landscape.window
    xs, ys = torch.linspace(left, right, 150).double(), torch.linspace(bottom, top, 100).double()
    points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    heights = torch.func.vmap(torch.func.vmap(value_of(landscape.analytic.problem)))(points)
    ax.contourf(xs, ys, heights, levels=24, cmap="Greys", alpha=0.5)
    ax.contour(xs, ys, heights, levels=24, colors="#999999", linewidths=0.4)
    look = styles(METHODS)
    for arm in reversed(landscape.starts):
        x, y = zip(*paths[arm.label], strict=True)
        color = look[arm.method].color
        dashes = DASH_LENGTHS["dash" if arm.lr > 1 else "solid"]
        ax.plot(x, y, color=color, linewidth=1.1, dashes=dashes, marker=".", markersize=3, label=arm.label)
        ax.plot(x[0], y[0], color="black", marker="*", markersize=11, markeredgecolor="white", zorder=3)
        ax.plot(x[-1], y[-1], color=color, marker="s", markersize=7, markeredgecolor="white", zorder=3)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="$w_0$", ylabel="$w_1$")
    ax.set_title(f"{landscape.title}, {landscape.steps} steps from ★ to ■", fontsize=10)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)  # no path is hidden


def _draw_distance(ax: Axes, measured: StepsByDistance, title: str) -> None:
    _draw_steps(ax, measured["distances"], measured["steps"])
    for arm in _FOR_DISTANCES:
        color, _ = _look(arm)
        ax.plot(measured["distances"], measured["theory"][arm.label], color=color, linewidth=0.8, dashes=(1, 2))
    ax.plot([], [], color="black", linewidth=0.8, dashes=(1, 2), label="theory: of GD; at most 5√κ/lr of NGD")
    ax.invert_xaxis()
    ax.set_xlabel("distance δ")
    ax.set_title(
        f"steps to leave the ball of radius 1 about a saddle (d = {measured['dim']}, κ = 10)\n{title}", fontsize=10
    )
    ax.legend(fontsize=8, loc="upper left", ncols=2)


def _draw_dimension(ax: Axes, measured: StepsByDimension) -> None:
    _draw_steps(ax, measured["dims"], measured["steps"])
    ax.set_xscale("log", base=2)
    ax.set_xlabel("dimension d")
    ax.set_title("steps to leave it from exactly the saddle, perturbed", fontsize=10)
    ax.legend(fontsize=8, loc="upper left", ncols=2)


def _draw_steps(ax: Axes, positions: Sequence[float], steps: Steps) -> None:
    """Mean and range over seeds of each arm; a stuck run counts as the limit, which the axis then shows."""
    for label, runs in steps.items():
        method, lr = label.split(", lr ")
        color, dashes = _look(MethodAtRate(method, float(lr)))
        counts = [[LIMIT if t is None else t for t in seeds] for seeds in runs]
        (line,) = ax.plot(positions, [sum(c) / len(c) for c in counts], color=color, marker=".", label=label)
        line.set_dashes(dashes)
        ax.fill_between(positions, [min(c) for c in counts], [max(c) for c in counts], color=color, alpha=0.18, lw=0)
    ax.set(xscale="log", yscale="log", ylabel="steps", ylim=(10, LIMIT))
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)


def _look(arm: MethodAtRate) -> tuple[str, tuple[float, ...]]:
    """Colour of the method, dashes of the learning rate."""
    return styles(METHODS)[arm.method].color, DASH_LENGTHS["solid" if arm.lr == 0.1 else "dash"]


def _draw_tensor(ax: Axes, measured: TensorMeasured) -> None:
    for method, curves in measured["losses"].items():
        color = styles(METHODS)[method].color
        columns = list(zip(*curves, strict=True))
        mean = [sum(column) / len(column) for column in columns]
        ax.plot(measured["steps"], mean, color=color, label=f"{method}, lr {measured['lr'][method]:g}")
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        ax.fill_between(measured["steps"], low, high, color=color, alpha=0.18, lw=0)
    grid = ", ".join(f"{lr:g}" for lr in LRS)
    ax.set(yscale="log", xlabel=f"steps (batch size {measured['batch_size']})", ylabel="F(w)")
    ax.set_title(
        f"tensor decomposition, {measured['dim']} components, from exactly a saddle\nlr of each the best of {grid}",
        fontsize=10,
    )
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
    ax.legend(fontsize=8)


def judge(measured: Escape) -> Evidence:
    """C8 from the measurements of ``escape``: by the map alone, with the other measurements beside it."""
    steps = measured["dimension"]["steps"]
    quantities = (
        *judge_map(measured["map"]),
        *_distances(measured["from_saddle"], "from random points near a saddle"),
        *_distances(measured["from_manifold"], "from beside its stable manifold"),
        *(
            _reported_count(
                f"runs from exactly a saddle that Saddle-NGD (lr 0.1) leaves before {slow}, over all dimensions",
                *_count_earlier(steps, "Saddle-NGD, lr 0.1", slow),
            )
            for slow in ("Noisy-GD, lr 0.1", "Noisy-GD, lr 1")
        ),
        _reported_count(
            "runs of tensor decomposition, from exactly a saddle and with rates for the lowest final F, in which "
            "Saddle-NGD halves F before Noisy-GD",
            *_count_halving_first(measured),
        ),
        reported("final F of Saddle-NGD over that of Noisy-GD there", _final_ratio(measured)),
    )
    rates = measured["map"]["rates"]
    return Evidence(
        profile=measured["profile"],
        quantities=quantities,
        test=f"exact sign tests over {measured['map']['starts']} starts, with Clopper and Pearson's intervals. A "
        "share is of the starts that one of two methods leaves at an earlier step than the other; steps are medians. "
        f"Each method has the best of {len(rates)} rates from {rates[0]:g} to {rates[-1]:g}, found with "
        f"{measured['map']['tuning_starts']} other starts. Growths: Student's t over seeds",
        error_rate=error_rate(sum(quantity.low is not None for quantity in quantities)),
        departures=(
            "closed-form landscapes, with full and with stochastic gradients: the paper's Figure 1 is a drawing",
            "required is that starts are left earlier with each method at its own best rate; first steps of equal "
            "length, and single rates, are reported beside it",
            "a run has left if F is below half of the saddle's, or it is nearer to the flat than to the sharp minimum, "
            f"from some step until its last ({_limits(measured['map'])})",
        ),
    )


def _limits(measured: EscapeMap) -> str:
    return ", ".join(f"{name}: step {found['limit']}" for name, found in measured["places"].items())


def _reported_count(name: str, hits: int, n: int) -> Quantity:
    return reported(name, hits, of=n)


def _distances(measured: StepsByDistance, place: str) -> Iterator[Quantity]:
    steps, distances = measured["steps"], measured["distances"]
    slow, quick = "GD, lr 0.1", "NGD, lr 0.1"
    for other in (slow, "GD, lr 1"):
        name = f"runs {place} in which {quick}, leaves before {other}"
        yield _reported_count(name, *_count_earlier(steps, quick, other))
    within = [
        t <= bound
        for seeds, bound in zip(steps[quick], measured["theory"][quick], strict=True)
        for t in map(_count, seeds)
    ]
    yield _reported_count(f"runs of {quick}, {place} within Murray et al.'s 5√κ r/α steps", sum(within), len(within))
    growth = mean_interval([-_slope(distances, column) for column in _columns(steps[slow])], LEVEL)
    yield reported(f"steps that {slow}, needs more {place} for every decade nearer", growth)
    middle = (len(distances) - 1) // 2
    late = mean_interval([log(column[-1] / column[middle]) for column in _columns(steps[quick])], LEVEL)
    name = f"steps of {quick}, {place} at δ = {distances[-1]:g} over those at {distances[middle]:g} (1: levels off)"
    yield reported(name, Interval(*map(exp, late)))


def _count_earlier(steps: Steps, first: str, second: str) -> tuple[int, int]:
    """In how many of the pairs (same place, same seed) ``first`` takes fewer steps; and how many pairs there are."""
    pairs = [
        (_count(a), _count(b))
        for ours, theirs in zip(steps[first], steps[second], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return sum(a < b for a, b in pairs), len(pairs)


def _count(steps: int | None) -> int:
    return LIMIT + 1 if steps is None else steps


def _columns(steps: Sequence[Sequence[int | None]]) -> list[list[int]]:
    """A seed's steps at each distance."""
    return [[max(1, _count(t)) for t in column] for column in zip(*steps, strict=True)]


def _slope(distances: Sequence[float], steps: Sequence[int]) -> float:
    return linear_regression([log10(distance) for distance in distances], steps).slope


def _count_halving_first(measured: Escape) -> tuple[int, int]:
    losses = measured["tensor"]["losses"]
    ours, theirs = ([_step_of_halving(curve) for curve in losses[name]] for name in ("Saddle-NGD", "Noisy-GD"))
    return sum(a < b for a, b in zip(ours, theirs, strict=True)), len(ours)


def _step_of_halving(curve: Sequence[float]) -> float:
    return next((t for t, loss in enumerate(curve) if loss < curve[0] / 2), math.inf)


def _final_ratio(measured: Escape) -> Interval:
    """Geometric mean over seeds of the last losses' ratio."""
    losses = measured["tensor"]["losses"]
    ratios = [log(a[-1] / b[-1]) for a, b in zip(losses["Saddle-NGD"], losses["Noisy-GD"], strict=True)]
    return Interval(*map(exp, mean_interval(ratios, LEVEL)))
