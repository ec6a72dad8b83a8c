"""What gradient estimates cost in oracle calls, from sizes alone: no model is needed, and no torch.

One oracle call is ∇f(w; a), for one sample at one point.
"""

from typing import NamedTuple


class Cost(NamedTuple):
    """Oracle calls of an estimator's steps, which repeat in periods: an anchor, then the steps between two anchors.

    Attributes:
        anchor: of the anchor.
        between: of each other step.
        period: M ≥ 1 steps of a period, the anchor among them; their mean number if it is random.
    """

    anchor: float
    between: float
    period: float

    @property
    def of_a_period(self) -> float:
        """Oracle calls of a period, on the average."""
        return self.anchor + self.between * (self.period - 1)

    @property
    def mean(self) -> float:
        """Oracle calls of a step, on the average over a period."""
        return self.of_a_period / self.period

    def of_steps(self, steps: int) -> int:
        """Oracle calls of the first ``steps`` steps; exact if all numbers are ints."""
        anchors = -(-steps // self.period)
        return int(anchors * self.anchor + (steps - anchors) * self.between)


def same_every_step(batch_size: float) -> Cost:
    """The mean gradient over ``batch_size`` samples at every step."""
    return Cost(batch_size, batch_size, 1)


def differences(anchor_batch_size: float, batch_size: float, period: float) -> Cost:
    """SPIDER and SVRG: B calls at an anchor, 2b at each other step, whose samples are evaluated at two points.

    At the anchor itself the two points are the same: the difference is zero, and neither evaluated nor counted.

    Raises:
        ValueError: one of the arguments is less than 1.
    """
    at_least_one(anchor_batch_size=anchor_batch_size, batch_size=batch_size, period=period)
    return Cost(anchor_batch_size, 2 * batch_size, period)


def differences_of_random_periods(anchor_batch_size: float, batch_size: float) -> Cost:
    """SCSG: the same with a period of B/b steps on the average.

    Raises:
        ValueError: b is less than 1, or B less than b.
    """
    at_least_one(anchor_batch_size=anchor_batch_size, batch_size=batch_size)
    if anchor_batch_size < batch_size:
        raise ValueError(f"anchor_batch_size must be at least batch_size = {batch_size}, got {anchor_batch_size}")
    return differences(anchor_batch_size, batch_size, anchor_batch_size / batch_size)


def at_least_one(**sizes: float) -> None:
    """ValueError that names the first of the sizes that is less than 1."""
    for name, value in sizes.items():
        if not value >= 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
