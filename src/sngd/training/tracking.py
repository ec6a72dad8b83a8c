"""Measure constants of the loss along a run: of the function that training minimizes, at a cost outside its budget."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from sngd.checks import shown, suggestion
from sngd.diagnose import Eigenvalue, Interval, Objective, extreme_eigenvalues, gradient_noise, local_smoothness
from sngd.norms import Product
from sngd.problems.problem import Problem, Samples

SAMPLES = 1024  # of noise and smoothness, at most
CURVATURE_SAMPLES, CURVATURE_STEPS, CURVATURE_TOLERANCE = 512, 40, 0.05  # two oracle calls a sample and step
DISTANCES = (0.01, 0.1, 1.0)  # at which smoothness is measured, in learning rates: SNGD's step has length lr
DIRECTIONS = 2  # off the step

Row = dict[str, float | None]
Generator = Callable[[str], torch.Generator]


@dataclass(frozen=True)
class Point:
    """Where something is measured."""

    objective: Objective
    lr: float
    generator: torch.Generator
    norm: Product

    def batch(self, size: int) -> object:
        return self.objective.draw(min(size, self.objective.n), self.generator)


def _noise(at: Point) -> Row:
    batch_size = noise_batch_size(at.objective, SAMPLES, at.norm)
    noise = gradient_noise(at.objective, samples=SAMPLES, batch_size=batch_size, generator=at.generator, norm=at.norm)
    row = _interval("noise_variance", noise.variance) | _interval("noise_scale", noise.scale)
    return row | _interval("noise_error", noise.batch_error) if noise.batch_error else row


def noise_batch_size(objective: Objective, samples: int, norm: Product) -> int:
    """The run's batch size, with which BatchNorm normalizes, unless ``samples`` or n have too few such batches."""
    batch_size = min(objective.chunk_size, SAMPLES // 8)
    return batch_size if norm.is_euclidean else max(1, min(batch_size, samples // 3, objective.n // 3))


def _smoothness(at: Point) -> Row:
    directions = DIRECTIONS if at.objective.dim > DIRECTIONS else 0
    found = local_smoothness(
        at.objective,
        lengths=[at.lr * distance for distance in DISTANCES],
        directions=directions,
        batch=at.batch(SAMPLES),
        generator=at.generator,
        norm=at.norm,
    )
    return {
        "smoothness_grad_norm": found.grad_norm.value,
        "smoothness_along": found.largest_along.value,
        "smoothness_off": found.largest_off.value if found.largest_off else None,
    }


def _curvature(at: Point) -> Row:
    found = extreme_eigenvalues(
        at.objective,
        batch=at.batch(CURVATURE_SAMPLES),
        max_steps=CURVATURE_STEPS,
        tolerance=CURVATURE_TOLERANCE,
        generator=at.generator,
    )
    return _end("hessian_max", found.largest) | _end("hessian_min", found.smallest)


def _end(name: str, eigenvalue: Eigenvalue) -> Row:
    """The error is the residual or, if larger, the distance at which the extreme eigenvalue itself may be."""
    low, high = eigenvalue.interval[1:]
    return {name: eigenvalue.value, f"{name}_error": max(eigenvalue.residual, high - low)}


def _interval(name: str, interval: Interval) -> Row:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


TRACKED: dict[str, Callable[[Point], Row]] = {"smoothness": _smoothness, "noise": _noise, "curvature": _curvature}


def tracking_cost() -> str:
    """Oracle calls of one evaluation, at most, in words."""
    smoothness = SAMPLES * (1 + len(DISTANCES) * (1 + DIRECTIONS))
    curvature = 2 * CURVATURE_SAMPLES * CURVATURE_STEPS
    noise = f"{SAMPLES:,} (in another norm than l2 {2 * SAMPLES:,})"
    return f"smoothness: {smoothness:,}, noise: {noise}, curvature: {curvature:,}"


def tracked_names(option: str, spelled: str) -> list[str]:
    """``smoothness,noise`` as a list; ValueError names the option, and what is not in ``TRACKED``."""
    names = [name.strip() for name in spelled.split(",")]
    for name in names:
        if name not in TRACKED:
            meant = suggestion(name, TRACKED) or ";"
            raise ValueError(f"{option}: unknown quantity {shown(name)}{meant} must be some of {','.join(TRACKED)}")
    return names


class Tracker:
    """Measures the quantities in ``names``, each time on other samples; smoothness and noise in ``norm``.

    Attributes:
        oracle_calls: ∇f(w; a) evaluated for the measurements so far; they are no part of the run's budget.
    """

    def __init__(self, names: Iterable[str], objective: Callable[[torch.Generator], Objective], norm: Product) -> None:
        self.names, self.objective, self.norm = list(names), objective, norm
        self.oracle_calls = 0

    def measure(self, lr: float, generator: torch.Generator) -> Row:
        """The columns of a row of metrics. A quantity that cannot be measured is left out (no direction, F not finite).

        Args:
            lr: the learning rate of the next step, the unit of distance for smoothness.
            generator: source of all random numbers, so that a resumed run measures the same.
        """
        objective = self.objective(generator)
        row: Row = {}
        for name in self.names:
            try:
                row |= TRACKED[name](Point(objective, lr, generator, self.norm))
            except ValueError:  # documented there: w is stationary, or something is not finite
                continue
        self.oracle_calls += objective.oracle_calls
        return row | {"tracking_calls": self.oracle_calls}


def training_objective(
    problem: Problem, model: torch.nn.Module, loss: Callable[[Samples], torch.Tensor], batch_size: int
) -> Callable[[torch.Generator], Objective]:
    """Makes F as training evaluates it: augmented inputs, dropout masks, BatchNorm over ``batch_size`` samples."""

    def objective(generator: torch.Generator) -> Objective:
        samples = problem.augmented(problem.train, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        return Objective(model, loss, samples, chunk_size=batch_size, seed=seed)

    return objective
