"""The cost of gradient estimates in oracle calls, computed from sizes alone, without a model and without torch.

One oracle call is the gradient ∇f(w; a) of one sample a at one point w.
"""

from typing import NamedTuple


class Cost(NamedTuple):
    """Oracle calls of an estimator's steps, which repeat in periods.

    A period is a step with an anchor (a gradient on many samples) and then steps with differences of gradients.

    Attributes:
        anchor: oracle calls of the anchor's step.
        between: oracle calls of each other step.
        period: M ≥ 1, number of steps of a period including the anchor's; the mean number if it is random.
    """

    anchor: float
    between: float
    period: float

    @property
    def of_a_period(self) -> float:
        """Mean number of oracle calls of a period."""
        return self.anchor + self.between * (self.period - 1)

    @property
    def mean(self) -> float:
        """Mean number of oracle calls of a step."""
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
    """SCSG: as ``differences``, with a random period whose mean is B/b steps.

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
