"""Inexact steps: what the bounds need to know of a step that is not the steepest one of length one."""

from dataclasses import dataclass

from sngd.checks import non_negative, shown


@dataclass(frozen=True, slots=True)
class Inexact:
    """Steps w₊ = w + αv with ⟨g, v⟩ ≤ −(1 − ε)‖g‖* and ‖v‖ ≤ 1 + δ, for the g that v is made of.

    The exact step −v = unit(g) has ε = δ = 0. Newton–Schulz iterations for the spectral norm return a matrix with the
    singular vectors of g, and singular values between 1 − ε and 1 + δ instead of 1.

    Args:
        shortfall: ε in [0, 1), the share of ‖g‖* that the step loses.
        overshoot: δ ≥ 0, by how much the step is longer than α at most, over α.

    Raises:
        ValueError: if a value is out of its range.

    Examples:
        >>> step = Inexact(shortfall=0.25, overshoot=0.5)
        >>> step.share, step.length, step.error
        (0.75, 1.5, 2.25)
    """

    shortfall: float = 0.0
    overshoot: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shortfall", non_negative("shortfall", self.shortfall))
        object.__setattr__(self, "overshoot", non_negative("overshoot", self.overshoot))
        if self.shortfall >= 1:
            raise ValueError(f"shortfall must be in [0, 1), got {shown(self.shortfall)}")

    @property
    def share(self) -> float:
        """1 − ε."""
        return 1 - self.shortfall

    @property
    def length(self) -> float:
        """1 + δ."""
        return 1 + self.overshoot

    @property
    def error(self) -> float:
        """2 + δ − ε, the factor of ‖∇F(w) − g‖*."""
        return self.length + self.share


EXACT = Inexact()
"""The exact step: ε = δ = 0."""
