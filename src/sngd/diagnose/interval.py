"""A measured number with its confidence interval."""

from math import cos, pi, sin, sqrt, tan
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, ``low`` ≤ ``high``; the level is its maker's to say.

    Example:
        >>> str(Interval(900.0, 811.0, 1012.5))
        '900 [811, 1012]'
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def student_t(dof: int, level: float = 0.95) -> float:
    """t with P(|T| ≤ t) = ``level`` in (0, 1) for Student's T with ``dof`` ≥ 1 degrees of freedom.

    In θ = arctan(t/√dof) the probability is a finite sum (Abramowitz & Stegun, 26.7.3 and 26.7.4).

    Example:
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
