"""Who leaves a saddle or a sharp minimum at which learning rate: the map that claim C8 is judged by.

Every method runs from the same random starts at every learning rate of one grid. A run has left at step t if it is away
at step t and at every later step of its limit, so one that comes back, or diverges, has not left.

A learning rate means different lengths of step for methods that normalize and for those that do not, so equal numbers
do not compare. Two rules make the rates of two methods comparable:

* **Each at its best rate**: the one at which most starts leave, then the one that takes fewest steps, then the
  smallest. It is found with other starts than those judged. This is the rule of the verdict: no method loses by a bad
  rate.
* **First steps of equal length**, reported beside it: a start's gradient method has the rate r/‖∇F(w_0)‖ against the
  normalized method's r. It is not the rule of the verdict because near a saddle it gives a rate far above 2/L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sngd.diagnose.interval import Interval
from sngd.paper.closed_form.share_done import steps as each
from sngd.paper.verdicts import Quantity, above, reach_of_share, reported, share_interval
from sngd.problems.analytic import sharp_and_flat, strict_saddle, tensor_decomposition
from sngd.problems.problem import Problem
from sngd.studies.figures import plain_style, save, styles
from sngd.training.schema import Count, NonNegative, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("GD", "NGD", "SGD", "SNGD", "Noisy-GD", "Saddle-NGD")
PAIRS = (("NGD", "GD"), ("SNGD", "SGD"), ("Saddle-NGD", "Noisy-GD"))  # with the gradient normalized, and as it is

SHARP = (3.0, 0.0)  # the sharp minimum of ``sharp_and_flat``
DIM, CONDITION, RADIUS = 10, 10.0, 1.0  # of the saddles with L = 1: d, κ, and the radius of the ball to leave
NOISE = 0.1  # perturbations have E‖lr·ξ‖² = (NOISE·lr)² in any dimension, for both perturbed methods
PERIOD = 10  # Saddle-NGD is perturbed every so many steps, Noisy-GD at each
BATCH_SIZE = 16  # of tensor decomposition
PERTURBED_EVERY = {"Noisy-GD": 1, "Saddle-NGD": PERIOD}

RATES = tuple(float(f"{10 ** (k / 4):.3g}") for k in range(-12, 9))  # 0.001 to 100 in quarters of a decade
SEED, TUNING_SEED = 0, 1_000_000


class Place(NamedTuple):
    """Where runs begin, what they descend, and when they are away.

    ``has_left`` maps iterates (…, *shape) to booleans (…). ``exact`` and ``noisy`` have the same F; their samples are
    those of the methods with full and with stochastic gradients. ``project`` is applied after every step.
    """

    exact: Problem
    noisy: Problem
    batch_size: int
    draw_start: Callable[[torch.Generator], Tensor]
    has_left: Callable[[Tensor], Tensor]
    limit: int
    project: Callable[[Tensor], Tensor] = lambda w: w


_TITLES = {
    "saddle": "from near a strict saddle",
    "manifold": "from beside a saddle's stable manifold",
    "sharp": "from a sharp minimum into a flat one",
    "tensor": "from near a saddle of tensor decomposition",
}


class Row(NamedTuple):
    """A row of the map: a method, and the normalized method whose first step it takes as long ("" at its own rate)."""

    method: str
    as_long_as: str = ""

    @property
    def label(self) -> str:
        return f"{self.method}, first step as {self.as_long_as}'s" if self.as_long_as else self.method


ROWS = (*map(Row, METHODS), *(Row(theirs, ours) for ours, theirs in PAIRS))


class PlaceMeasured(TypedDict):
    """Of a place, see ``measure_map``."""

    limit: Count
    tuning: dict[str, list[tuple[Count, NonNegative]]]
    left: dict[str, list[Count]]
    lr: dict[str, Positive]
    steps: dict[str, list[Count | None]]


class EscapeMap(TypedDict):
    """What ``measure_map`` returns."""

    starts: Count
    tuning_starts: Count
    rates: list[Positive]
    places: dict[str, PlaceMeasured]


# ---- places --------------------------------------------------------------------------------------------------


def places(components: int) -> dict[str, Place]:
    """The places of the map; tensor decomposition has so many components.

    * ``saddle``: a strict saddle (d = 10, κ = 10, L = 1), from a random point near it. Away is F below half of the
      saddle's.
    * ``manifold``: the same, from 0.9 along the saddle's stable manifold and a little off it.
    * ``sharp``: the sharp minimum beside a flat one, from a random point of its hole. Away is nearer to the flat one.
    * ``tensor``: tensor decomposition, from a random point near the saddle of equal rows. Away is F below half of the
      saddle's.

    Distances from the saddle or its manifold are log-uniform in [10⁻¹², 10⁻¹]. Gradient noise is σ = 0.1 at batch size
    1; on tensor decomposition it is that of 16 samples.
    """
    saddle = partial(strict_saddle, DIM, condition=CONDITION, dtype=torch.float64)
    bowl = partial(sharp_and_flat, dtype=torch.float64)
    tensor = tensor_decomposition(components, dtype=torch.float64).problem
    exact, noisy = saddle(sigma=0.0, n=1).problem, saddle().problem
    origin = torch.zeros(DIM, dtype=torch.float64)
    equal_rows = torch.full((components, components), components**-0.5, dtype=torch.float64)
    lower = partial(_is_lower, value_of(exact), origin)
    return {
        "saddle": Place(exact, noisy, 1, partial(_near, origin), lower, 200),
        "manifold": Place(exact, noisy, 1, _beside_manifold, lower, 200),
        "sharp": Place(bowl(sigma=0.0, n=1).problem, bowl().problem, 1, _in_hole, _is_flat, 60),
        "tensor": Place(
            exact=tensor,
            noisy=tensor,
            batch_size=BATCH_SIZE,
            draw_start=partial(_near, equal_rows),
            has_left=partial(_is_lower, value_of(tensor), equal_rows),
            limit=500,
            project=partial(normalize, dim=-1),  # rows back onto the sphere, as in Ge et al. and Levy
        ),
    }


def _near(point: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.randn(point.shape, generator=generator, dtype=torch.float64)
    near: Tensor = point + _distance(generator) * direction / direction.norm()
    return near


def _beside_manifold(generator: torch.Generator) -> Tensor:
    along = torch.randn(DIM, generator=generator, dtype=torch.float64)
    along[0] = 0
    point: Tensor = 0.9 * RADIUS * along / along.norm()
    point[0] = _distance(generator)
    return point


def _distance(generator: torch.Generator) -> Tensor:
    distance: Tensor = 10 ** (-12 + 11 * torch.rand((), generator=generator, dtype=torch.float64))
    return distance


def _in_hole(generator: torch.Generator) -> Tensor:
    """Uniform in the disc about the sharp minimum with half of the hole's width as its radius."""
    direction = torch.randn(2, generator=generator, dtype=torch.float64)
    radius = 0.15 * torch.rand((), generator=generator, dtype=torch.float64).sqrt()
    point: Tensor = torch.tensor(SHARP, dtype=torch.float64) + radius * direction / direction.norm()
    return point


def _is_lower(value: Callable[[Tensor], Tensor], saddle: Tensor, w: Tensor) -> Tensor:
    lower: Tensor = torch.func.vmap(torch.func.vmap(value))(w) < value(saddle) / 2
    return lower


def _is_flat(w: Tensor) -> Tensor:
    nearer: Tensor = w.norm(dim=-1) < (w - torch.tensor(SHARP, dtype=w.dtype)).norm(dim=-1)
    return nearer


def value_of(problem: Problem) -> Callable[[Tensor], Tensor]:
    """F as a function of w."""
    return partial(_mean_loss, problem.build_model(), samples=problem.train[0])


def _mean_loss(model: nn.Module, w: Tensor, samples: Tensor) -> Tensor:
    outputs: Tensor = torch.func.functional_call(model, {"w": w}, samples)
    return outputs.mean()


# ---- measured ------------------------------------------------------------------------------------------------


def measure_map(starts: int, tuning_starts: int, components: int, rates: Sequence[float] = RATES) -> EscapeMap:
    """The map of all places, methods and rates.

    Returns:
        ``rates``, the numbers of ``starts`` judged and tuned with, and for each place

        * ``limit``: steps of every run;
        * ``tuning``: method → for each rate how many tuning starts it leaves, and the mean steps (the limit + 1 for a
          run that has not left);
        * ``left``: row → for each rate how many of the judged starts it leaves. In the rows "GD, first step as NGD's"
          the rate is the length of the first step;
        * ``lr``: row → the rate of the comparison; a row with first steps as long as NGD's has NGD's;
        * ``steps``: row → at this rate, for each judged start the steps, None if it has not left.
    """
    measured = {
        name: _measure_place(place, starts, tuning_starts, rates) for name, place in each(places(components).items())
    }
    return {"starts": starts, "tuning_starts": tuning_starts, "rates": list(rates), "places": measured}


def _measure_place(place: Place, starts: int, tuning_starts: int, rates: Sequence[float]) -> PlaceMeasured:
    tuning = {method: _tuned(place, Row(method), rates, tuning_starts) for method in each(METHODS)}
    best = {method: best_rate(tuning[method], rates) for method in METHODS}
    lr = {row.label: best[row.as_long_as or row.method] for row in ROWS}
    left, steps = {}, {}
    for row in ROWS:
        away = steps_to_leave(place, row, rates, starts, SEED)
        left[row.label] = (away >= 0).sum(dim=1).tolist()
        steps[row.label] = [t if t >= 0 else None for t in away[rates.index(lr[row.label])].tolist()]
    return {"limit": place.limit, "tuning": tuning, "left": left, "lr": lr, "steps": steps}


def _tuned(place: Place, row: Row, rates: Sequence[float], starts: int) -> list[tuple[int, float]]:
    away = steps_to_leave(place, row, rates, starts, TUNING_SEED)
    counted = torch.where(away < 0, place.limit + 1, away)
    return list(zip((away >= 0).sum(dim=1).tolist(), counted.double().mean(dim=1).tolist(), strict=True))


def best_rate(tuning: Sequence[tuple[int, float]], rates: Sequence[float]) -> float:
    """The rate at which most starts leave, then the one with the fewest mean steps, then the smallest."""
    return min(zip(tuning, rates, strict=True), key=lambda entry: (-entry[0][0], entry[0][1], entry[1]))[1]


def steps_to_leave(place: Place, row: Row, rates: Sequence[float], starts: int, seed: int) -> Tensor:
    """(rates, starts): the step from which on the run is away until its limit, −1 if it has not left."""
    draws = torch.Generator().manual_seed(seed)
    points = torch.stack([place.draw_start(draws) for _ in range(starts)])
    since = torch.full((len(rates), starts), -1)
    for t, w in enumerate(islice(walk(place, row, rates, points, seed), place.limit + 1)):
        since = torch.where(place.has_left(w), torch.where(since < 0, t, since), -1)
    return since


def walk(place: Place, row: Row, rates: Sequence[float], starts: Tensor, seed: int) -> Iterator[Tensor]:
    """The iterates w_0, w_1, … of shape (rates, starts, *shape) of all runs at once, one for each rate and start.

    Samples and noise are drawn for each start and are the same at every rate. A test holds it against the optimizers.
    """
    samples, noise = (torch.Generator().manual_seed(2 * seed + k) for k in range(2))
    stochastic = row.method in ("SGD", "SNGD")
    problem = place.noisy if stochastic else place.exact
    gradient, every = _gradient_of(problem), PERTURBED_EVERY.get(row.method)
    batch = torch.arange(problem.n).expand(len(starts), -1)
    lr = torch.tensor(rates, dtype=torch.float64)[:, None].expand(-1, len(starts))
    w = starts.expand(len(rates), *starts.shape)
    for t in count():
        yield w
        if stochastic:
            batch = torch.randint(problem.n, (len(starts), place.batch_size), generator=samples)
        g = gradient(w, problem.train[0][batch])
        norm = g.flatten(2).norm(dim=2)
        if row.as_long_as and t == 0:
            lr = lr / norm
        w = w - _times(_inverse(norm) * lr if "NGD" in row.method else lr, g)
        if every and t % every == 0:
            xi = torch.randn(starts.shape, generator=noise, dtype=torch.float64) / math.sqrt(starts[0].numel())
            w = w + _times(NOISE * lr, xi.expand_as(w))
        w = place.project(w)


def _gradient_of(problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """(rates, starts, *shape) weights and (starts, batch, d) samples to gradients of the weights' shape."""
    one = torch.func.grad(partial(_mean_loss, problem.build_model()))
    return torch.func.vmap(torch.func.vmap(one), in_dims=(0, None))


def _times(factors: Tensor, vectors: Tensor) -> Tensor:
    return factors.reshape(*factors.shape, *[1] * (vectors.dim() - 2)) * vectors


def _inverse(norm: Tensor) -> Tensor:
    """1/‖g‖, and 0 where there is no direction, as ``SNGD`` skips such steps."""
    return torch.where((norm > 0) & norm.isfinite(), 1 / norm, 0)


# ---- judged --------------------------------------------------------------------------------------------------


def judge_map(measured: EscapeMap) -> list[Quantity]:
    """The comparisons of C8: each at its best rate, which is required, then with first steps of equal length.

    A comparison is of the starts that one method leaves at an earlier step than the other: the share of these that the
    normalized method leaves first, with Clopper and Pearson's interval (a sign test), must be above one half. Essential
    is SNGD against SGD, which the claim names, near a saddle and in a sharp minimum.
    """
    required, beside = [], []
    for name, found in measured["places"].items():
        for ours, theirs in PAIRS:
            essential = (ours, name) in (("SNGD", "saddle"), ("SNGD", "sharp"))
            compared, share, trials = _compared(name, found, ours, theirs)
            reach = reach_of_share(trials, 0.5)
            required.append(above(compared, share, 0.5, essential=essential, reach=reach))
            beside.append(reported(*_compared(name, found, ours, Row(theirs, ours).label)[:2]))
    return [*required, *beside]


def _compared(place: str, found: PlaceMeasured, ours: str, theirs: str) -> tuple[str, Interval, int]:
    """What is compared, the share of starts with its interval, and of how many starts."""
    ours_steps, theirs_steps = ([_finite(t) for t in found["steps"][row]] for row in (ours, theirs))
    pairs = list(zip(ours_steps, theirs_steps, strict=True))
    first, last = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    share = share_interval(first, first + last) if first + last else Interval(0.5, 0.0, 1.0)
    former, latter = _told(found, ours, ours_steps), _told(found, theirs, theirs_steps)
    return f"{place}: share that {former} leaves before {latter}", share, first + last


def _told(found: PlaceMeasured, row: str, steps: Sequence[float]) -> str:
    """``NGD (lr 0.562: 40 of 40 in 22 steps)``: how many starts it leaves, and its median steps."""
    middle = median_low(steps)
    left = f"{sum(map(math.isfinite, steps))} of {len(steps)}"
    return f"{row} (lr {found['lr'][row]:g}: {left}" + (f" in {middle:g} steps)" if math.isfinite(middle) else ")")


def _finite(steps: int | None) -> float:
    return math.inf if steps is None else steps


# ---- drawn ---------------------------------------------------------------------------------------------------


def draw_map(measured: EscapeMap, path: Path, subtitle: str) -> list[Path]:
    """Draw the map to ``path``.png and ``path``.svg: a panel a place, a row a method, a cell a learning rate."""
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    with plain_style():
        figure = Figure(figsize=(16, 8.6), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True).flat
        for ax, (name, found) in zip(axes, measured["places"].items(), strict=True):
            _draw_place(ax, measured, name, found)
        figure.suptitle(
            f"How many of {measured['starts']} random starts each method leaves, by learning rate ({subtitle})\n"
            f"framed: the rate of the comparison, best with {measured['tuning_starts']} other starts; below the line "
            "each start's rate makes the first step as long as the axis says",
            fontsize=11,
        )
        return save(figure, path)


def _draw_place(ax: Axes, measured: EscapeMap, name: str, found: PlaceMeasured) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    rates, look = measured["rates"], styles(METHODS)
    for y, row in enumerate(ROWS):
        color = to_rgb(look[row.method].color)
        for x, left in enumerate(found["left"][row.label]):
            share = left / measured["starts"]
            face = tuple(1 - share * (1 - part) for part in color)
            dark = sum(face) < 1.6
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="#dddddd", linewidth=0.5))
            text_color = "white" if dark else "black" if left else "#999999"
            ax.text(x, y, str(left), ha="center", va="center", fontsize=7.5, color=text_color)
        x = rates.index(found["lr"][row.label])
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.8, zorder=3))
    ax.axhline(len(METHODS) - 0.5, color="black", linewidth=1)
    ax.set_xticks(range(0, len(rates), 2), [f"{rate:g}" for rate in rates[::2]], fontsize=8)
    ax.set_yticks(range(len(ROWS)), [row.label for row in ROWS], fontsize=8)
    ax.set(xlim=(-0.5, len(rates) - 0.5), ylim=(len(ROWS) - 0.5, -0.5))
    ax.tick_params(length=0)
    ax.set_title(f"{name}: {_TITLES[name]}, {found['limit']} steps", fontsize=10)
    ax.set_xlabel("learning rate (of normalized methods: length of the step)", fontsize=8)
