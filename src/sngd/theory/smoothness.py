"""The two smoothness classes of the paper, and what the bounds need to know of them.

Theorems 1 and 3 (L-smooth) and Theorems 2 and 4 ((L0, L1)-smooth) differ in three constants only. With c, k and α_max
from the table, every step of normalized gradient descent with α ≤ α_max obeys

    ‖∇F(w)‖ ≤ c (F(w) − F(w₊))/α + k α + 2c ‖∇F(w) − g‖

|                          | `Smooth(L)` | `RelaxedSmooth(L0, L1)` |
|--------------------------|-------------|-------------------------|
| `factor`, c              | 1           | 2                       |
| `curvature`, k           | L/2         | 2 L0                    |
| `max_lr`, α_max          | ∞           | 1/(2 L1)                |
"""

from dataclasses import dataclass
from math import inf

from sngd.checks import non_negative, positive


@dataclass(frozen=True, slots=True)
class Smooth:
    """F(u) ≤ F(w) + ∇F(w)ᵀ(u − w) + (L/2)‖u − w‖² for all u, w.

    Args:
        L: L > 0, for instance the largest |eigenvalue| of the Hessian.

    Raises:
        ValueError: if L is not finite and positive.

    Example:
        >>> Smooth(4).curvature, Smooth(4).max_lr
        (2.0, inf)
    """

    L: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "L", positive("L", self.L))

    @property
    def factor(self) -> float:
        """c = 1, the factor of the progress term (Theorem 1)."""
        return 1.0

    @property
    def curvature(self) -> float:
        """k = L/2, the curvature term per unit of learning rate (Theorem 1)."""
        return self.L / 2

    @property
    def max_lr(self) -> float:
        """No learning rate is too long for Theorem 1 to hold."""
        return inf


@dataclass(frozen=True, slots=True)
class RelaxedSmooth:
    """F is twice differentiable and ‖∇²F(w)‖ ≤ L0 + L1 ‖∇F(w)‖ for all w.

    Args:
        L0: L0 > 0.
        L1: L1 ≥ 0; with L1 = 0, F is L0-smooth, and `Smooth(L0)` has the better constants.

    Raises:
        ValueError: if a constant is out of its range.

    Example:
        >>> RelaxedSmooth(3, 2).curvature, RelaxedSmooth(3, 2).max_lr
        (6.0, 0.25)
    """

    L0: float
    L1: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "L0", positive("L0", self.L0))
        object.__setattr__(self, "L1", non_negative("L1", self.L1))

    @property
    def factor(self) -> float:
        """c = 2, the factor of the progress term (Theorem 2)."""
        return 2.0

    @property
    def curvature(self) -> float:
        """k = 2 L0, the curvature term per unit of learning rate (Theorem 2)."""
        return 2 * self.L0

    @property
    def max_lr(self) -> float:
        """The largest α with α L1 ≤ ½, the condition of Theorems 2 and 4."""
        return 0.5 / self.L1 if self.L1 else inf


Smoothness = Smooth | RelaxedSmooth


def check_lr(smoothness: Smoothness, lr: float, name: str = "lr") -> float:
    """`lr` as a float; ValueError unless it is positive and within the class's condition, α L1 ≤ ½."""
    lr = positive(name, lr)
    if lr > smoothness.max_lr:
        raise ValueError(f"{name} must be at most 1/(2 L1) = {smoothness.max_lr!r} for {smoothness}, got {lr!r}")
    return lr
