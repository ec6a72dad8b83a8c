"""A measured number with its confidence interval, and Student's interval of a mean."""

from collections.abc import Sequence
from functools import lru_cache
from math import cos, isfinite, nan, pi, sin, sqrt, tan
from statistics import fmean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, ``low`` ≤ ``high``; the level is its maker's to say.

    Examples:
        >>> str(Interval(900.0, 811.0, 1012.5))
        '900 [811, 1012]'
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean of at least two independent values, usually one a seed.

    Examples:
        >>> str(mean_interval([1.0, 2.0, 3.0]))
        '2 [-0.4841, 4.484]'
    """
    mean, margin = fmean(values), mean_margin(values, level)
    return Interval(mean, mean - margin, mean + margin)


def mean_margin(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of ``mean_interval``, t s/√n with the sample deviation s; NaN if a value is not finite."""
    if not all(map(isfinite, values)):
        return nan
    n = len(values)
    return student_t(n - 1, level) * stdev(values) / sqrt(n)


@lru_cache
def student_t(dof: int, level: float = 0.95) -> float:
    """t with P(|T| ≤ t) = ``level`` in (0, 1) for Student's T with ``dof`` ≥ 1 degrees of freedom.

    In θ = arctan(t/√dof) the probability is a finite sum (Abramowitz & Stegun, 26.7.3 and 26.7.4).

    Examples:
        >>> round(student_t(9), 3)
        2.262
    """
    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _student_probability(middle, dof) < level else (low, middle)
    return sqrt(dof) * tan(high)


def _student_probability(angle: float, dof: int) -> float:
    odd, square = dof % 2, cos(angle) ** 2
    total, term = 0.0, cos(angle) if odd else 1.0
    for j in range(1 + odd, dof, 2):
        total += term
        term *= square * j / (j + 1)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
