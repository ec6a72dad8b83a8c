"""The two smoothness classes of the paper, and what the bounds need to know of them.

Theorems 1 and 3 (L-smooth) and Theorems 2 and 4 ((L0, L1)-smooth) differ in three constants only. With c, k and α_max
from the table, every step of normalized gradient descent with α ≤ α_max obeys

    ‖∇F(w)‖* ≤ c (F(w) − F(w₊))/α + k α + 2c ‖∇F(w) − g‖*

|                          | `Smooth(L)` | `RelaxedSmooth(L0, L1)` |
|--------------------------|-------------|-------------------------|
| `factor`, c              | 1           | 2                       |
| `curvature`, k           | L/2         | 2 L0                    |
| `max_lr`, α_max          | ∞           | 1/(2 L1)                |

‖·‖ is the norm of the steps and ‖·‖* its dual norm: both are the Euclidean norm for the paper's methods. The constants
of one norm are not those of another.
"""

from dataclasses import dataclass
from math import inf

from sngd.checks import non_negative, positive
from sngd.theory.inexact import EXACT, Inexact


@dataclass(frozen=True, slots=True)
class Smooth:
    """F(u) ≤ F(w) + ∇F(w)ᵀ(u − w) + (L/2)‖u − w‖² for all u, w.

    ‖∇F(u) − ∇F(w)‖* ≤ L‖u − w‖ implies it, and is what `momentum_bound` assumes.

    Args:
        L: L > 0, for instance the largest |eigenvalue| of the Hessian H; in another norm than the Euclidean one the
            largest ⟨u, Hv⟩ over ‖u‖ ≤ 1 and ‖v‖ ≤ 1, which for the largest absolute entry is at most Σ|H_ij|.

    Raises:
        ValueError: if L is not finite and positive.

    Examples:
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
    """F is twice differentiable and ‖∇²F(w)‖ ≤ L0 + L1 ‖∇F(w)‖* for all w.

    ‖∇²F(w)‖ is the largest ⟨u, ∇²F(w)v⟩ over ‖u‖ ≤ 1 and ‖v‖ ≤ 1.

    Args:
        L0: L0 > 0.
        L1: L1 ≥ 0; with L1 = 0, F is L0-smooth, and `Smooth(L0)` has the better constants.

    Raises:
        ValueError: if a constant is out of its range.

    Examples:
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


def check_lr(smoothness: Smoothness, lr: float, name: str = "lr", step: Inexact = EXACT) -> float:
    """`lr` as a float; ValueError unless it is positive and within the class's condition, α L1 ≤ ½.

    For an inexact step the condition is α L1 ≤ ½(1 − ε)/(1 + δ)².
    """
    lr = positive(name, lr)
    most = smoothness.max_lr * step.share / step.length**2
    if lr > most:
        limit = "1/(2 L1)" if step == EXACT else "(1 − ε)/(2 L1 (1 + δ)²)"
        raise ValueError(f"{name} must be at most {limit} = {most!r} for {smoothness}, got {lr!r}")
    return lr
