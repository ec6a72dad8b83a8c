"""Stage plans: a stage is a number of steps with one learning rate, and a plan is a list of stages.

S-SNGD (Zhao, Xie, Li 2021, Algorithm 2) runs T stages; stage t takes M_t steps of learning rate α_t, and the
iterate (a value of the weights) drawn at random from it is returned with probability p_{t+1} / Σp. A `StagePlan` holds
the triples (α_t, M_t, p_{t+1}):

| plan         | α_t                         | length of stage t            | weight p_{t+1} | source               |
|--------------|-----------------------------|------------------------------|----------------|----------------------|
| `constant`   | α                           | all steps                    | 1              | Algorithm 1          |
| `poly`       | α (1 − t/T)^r               | one epoch                    | 1              | §5, v1               |
| `multistep`  | α, divided at milestones    | from milestone to milestone  | 1              | §5, v2               |
| `harmonic`   | ρ / (t + 1)                 | ⌈S / α_t⌉                    | 1 / α_t        | Corollary 1          |
| `geometric`  | ρ^(t + 1)                   | ⌈S / α_t⌉                    | (2ρ)^−(t + 1)  | Corollary 2          |
| `agnostic`   | α 2^(−3t/4)                 | 2^t steps                    | α_t M_t        | Hübler et al. 2024   |

`agnostic` sets the momentum of every stage too. `warmed_up` makes any of them begin with a rising learning rate.

Write any other plan as a list: `StagePlan([(0.5, 100), (0.1, 500)])`; a third number is a stage's weight, a fourth its
momentum. `sngd.optim.stagewise.StagewiseLR` sets an
optimizer's learning rates from a plan; `sngd.iterates.RandomIterate` draws the output.
"""

import math
import operator
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Self


@dataclass(frozen=True, slots=True)
class Stage:
    """`steps` steps of learning rate `lr`. The random output comes from this stage with a probability ∝ `weight`.

    Args:
        lr: α_t > 0. For SNGD it is the length of every step.
        steps: M_t ≥ 1.
        weight: p_{t+1} > 0, relative to the other stages' weights; the paper's bounds (Theorems 3 and 4) assume
            weights that never decrease from stage to stage.
        momentum: β_t in (0, 1) for the steps of this stage; None leaves the optimizer's momentum alone.

    Raises:
        ValueError: if a value is out of its range or not finite.
    """

    lr: float
    steps: int
    weight: float = 1.0
    momentum: float | None = None

    def __post_init__(self) -> None:
        # Convert numpy's numbers to plain ones, because a plan goes into JSON and into weights-only checkpoints.
        object.__setattr__(self, "lr", _positive("lr", self.lr))
        object.__setattr__(self, "steps", _count("steps", self.steps))
        object.__setattr__(self, "weight", _positive("weight", self.weight))
        if self.momentum is not None:
            object.__setattr__(self, "momentum", _momentum(self.momentum))

    @classmethod
    def covering(cls, lr: float, distance: float, weight: float = 1.0) -> Self:
        """The shortest stage whose normalized steps can travel `distance`: M = ⌈S/α⌉ (Algorithm 2).

        A quotient S/α within 1e-9 (relative) of an integer is taken as that integer, so that 0.3/0.1 is 3 steps.

        Raises:
            ValueError: if `lr` or `distance` is not finite and positive, or S/α overflows.
        """
        quotient = _positive("distance", distance) / _positive("lr", lr)
        if quotient == math.inf:
            raise ValueError(f"distance / lr must be finite, got {distance!r} / {lr!r}")
        nearest = round(quotient)
        whole = nearest >= 1 and abs(quotient - nearest) <= 1e-9 * nearest
        return cls(lr, nearest if whole else math.ceil(quotient), weight)


class StagePlan(tuple[Stage, ...]):
    """An immutable sequence of stages, one after the other; after its last step the last stage goes on.

    Args:
        stages: at least one stage, each a `Stage`, `(lr, steps)`, `(lr, steps, weight)` or
            `(lr, steps, weight, momentum)`; either all stages have a momentum or none.

    Raises:
        ValueError: if there is no stage, or a stage is malformed; the message gives its index.

    Examples:
        >>> plan = StagePlan([(0.5, 80), (0.05, 40)])
        >>> plan.steps, plan.stage_at(79), plan.lr_at(80)
        (120, 0, 0.05)
    """

    _ends: tuple[int, ...]  # step at which each stage has ended

    def __new__(cls, stages: Iterable[Stage | Sequence[float]]) -> Self:
        plan = super().__new__(cls, [_as_stage(index, item) for index, item in enumerate(stages)])
        if not plan:
            raise ValueError("stages must hold at least one stage, got none")
        without = [index for index, stage in enumerate(plan) if stage.momentum is None]
        if without and len(without) < len(plan):
            raise ValueError(f"stages[{without[0]}] must have a momentum, as other stages have one")
        plan._ends = tuple(accumulate(stage.steps for stage in plan))
        return plan

    @property
    def steps(self) -> int:
        """Σ M_t, the steps of all stages together."""
        return self._ends[-1]

    @property
    def sets_momentum(self) -> bool:
        """Whether the stages have a momentum."""
        return self[0].momentum is not None

    def stage_at(self, step: int) -> int:
        """Index of the stage that takes step number `step` ≥ 0, counted from the start; O(log T)."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step!r}")
        return min(bisect_right(self._ends, step), len(self) - 1)

    def lr_at(self, step: int) -> float:
        """Learning rate of step number `step` ≥ 0."""
        return self[self.stage_at(step)].lr

    def steps_left(self, step: int) -> int:
        """How many steps its stage has from step number `step` ≥ 0 on, this one included; 0 after the plan's end."""
        return max(0, self._ends[self.stage_at(step)] - step)

    def iterate_weight(self, step: int) -> float:
        """p_{t+1} / M_t: the weight, in one draw over all iterates, of the iterate *before* step `step` ≥ 0.

        Algorithm 2 draws twice: `w̄_{t+1}` uniformly from the `M_t` iterates of stage t, then the output `w̄_i` with
        probability `p_i / Σp`. So it returns `w_{t,m}` with probability `(p_{t+1} / Σp) · (1 / M_t)`. A single draw
        with weights `p_{t+1} / M_t` gives the same probability, because their sum over all iterates is Σp.
        """
        stage = self[self.stage_at(step)]
        return stage.weight / stage.steps

    def as_list(self) -> list[list[float]]:
        """`[[lr, steps, weight], …]`, momentum last if the plan has it: plain numbers, for JSON and checkpoints."""
        return [
            [stage.lr, stage.steps, stage.weight] + ([] if stage.momentum is None else [stage.momentum])
            for stage in self
        ]

    @classmethod
    def from_list(cls, stages: Iterable[Sequence[float]]) -> Self:
        """The plan whose `as_list` is `stages`."""
        return cls(stages)

    def __repr__(self) -> str:
        shown = [_brief(stage) for stage in (self if len(self) <= 6 else self[:4])]
        if len(self) > 6:
            shown += ["…", _brief(self[-1])]
        return f"StagePlan({len(self)} stages, {self.steps} steps: {', '.join(shown)})"


def _as_stage(index: int, item: Stage | Sequence[float]) -> Stage:
    if isinstance(item, Stage):
        return item
    try:
        return Stage(*item)  # type: ignore[arg-type]
    except TypeError:
        allowed = "a Stage, (lr, steps), (lr, steps, weight) or (lr, steps, weight, momentum)"
        raise ValueError(f"stages[{index}] must be {allowed}, got {_shown(item)}") from None
    except ValueError as error:
        raise ValueError(f"stages[{index}]: {error}") from None


def _brief(stage: Stage) -> str:
    weight = "" if stage.weight == 1 else f" (weight {stage.weight:g})"
    momentum = "" if stage.momentum is None else f" (momentum {stage.momentum:g})"
    return f"{stage.lr:g} × {stage.steps}{weight}{momentum}"


def constant(lr: float, steps: int) -> StagePlan:
    """One stage: `steps` steps of learning rate `lr`, all iterates weighing the same (Algorithm 1)."""
    return StagePlan([Stage(lr, steps)])


def poly(lr: float, epochs: float, steps_per_epoch: float = 1, power: float = 1.1) -> StagePlan:
    """α_t = α (1 − t/T)^r for t = 0 … T − 1, where t counts epochs: S-SNGD v1 of the paper (α = 0.5, r = 1.1).

    Args:
        lr: α, the learning rate of the first epoch.
        epochs: T > 0; a fraction makes the last stage a part of an epoch.
        steps_per_epoch: above 0; with 1, t counts steps. It may be a fraction, such as n / batch_size = 468.75: epoch t
            begins at step round(t · steps_per_epoch), so the plan has round(epochs · steps_per_epoch) steps. An epoch
            that gets no step of its own is left out.
        power: r > 0.

    Raises:
        ValueError: if a value is out of its range, or the plan has no step.
    """
    lr, epochs, power = _positive("lr", lr), _positive("epochs", epochs), _positive("power", power)
    starts = range(math.ceil(epochs))
    return _by_epochs([lr * (1 - t / epochs) ** power for t in starts], [*starts, epochs], steps_per_epoch)


def multistep(
    lr: float, epochs: float, milestones: Sequence[float], steps_per_epoch: float = 1, factor: float = 0.1
) -> StagePlan:
    """The learning rate is multiplied by `factor` at each milestone: S-SNGD v2 of the paper is
    `multistep(0.5, 160, (80, 120), n / batch_size)`.

    Args:
        lr: α, the learning rate before the first milestone.
        epochs: total epochs > 0, possibly a fraction.
        milestones: epochs, possibly fractions, strictly increasing within (0, epochs).
        steps_per_epoch: above 0, possibly a fraction; epoch e begins at step round(e · steps_per_epoch), as in `poly`.
        factor: above 0.

    Raises:
        ValueError: if a value is out of its range, or the plan has no step.
    """
    lr, epochs, factor = _positive("lr", lr), _positive("epochs", epochs), _positive("factor", factor)
    bounds = [0, *milestones, epochs]
    if not all(start < end for start, end in pairwise(bounds)):
        got = _shown(list(milestones))
        raise ValueError(f"milestones must be strictly increasing within (0, {epochs:g}), got {got}")
    return _by_epochs([lr * factor**drop for drop in range(len(bounds) - 1)], bounds, steps_per_epoch)


def _by_epochs(lrs: Sequence[float], bounds: Sequence[float], steps_per_epoch: float) -> StagePlan:
    """Stage i has learning rate lrs[i] from epoch bounds[i] to epoch bounds[i + 1], both rounded to steps."""
    steps_per_epoch = _positive("steps_per_epoch", steps_per_epoch)
    ends = [round(epoch * steps_per_epoch) for epoch in bounds]
    if ends[-1] == 0:
        raise ValueError(
            f"epochs * steps_per_epoch must round to at least 1 step, got {bounds[-1]:g} * {steps_per_epoch:g}"
        )
    return StagePlan(
        Stage(lr, end - start) for lr, (start, end) in zip(lrs, pairwise(ends), strict=True) if end > start
    )


def warmed_up(plan: StagePlan, steps: int, stages: int = 5) -> StagePlan:
    """`plan` with its first `steps` steps replaced by `stages` stages in which the learning rate rises linearly.

    Let α be the plan's learning rate after `steps` steps. Stage i = 0, 1, … of the rise has the learning rate
    α (i + 1)/(stages + 1), and the weight and momentum that the plan has after `steps` steps. Goyal et al. 2017
    use such a rise for large batches and large first steps.

    Args:
        plan: at least `steps` + 1 steps long.
        steps: ≥ `stages`.
        stages: ≥ 1.

    Raises:
        ValueError: if a value is out of its range.

    Examples:
        >>> warmed_up(constant(0.3, 10), steps=4, stages=2).as_list()
        [[0.1, 2, 1.0], [0.2, 2, 1.0], [0.3, 6, 1.0]]
    """
    if not _count("stages", stages) <= _count("steps", steps) < plan.steps:
        raise ValueError(
            f"steps must be at least stages = {stages} and less than the plan's {plan.steps}, got {steps!r}"
        )
    index = plan.stage_at(steps)
    there, left = plan[index], plan._ends[index] - steps
    ends = [round(steps * i / stages) for i in range(stages + 1)]
    rise = [
        replace(there, lr=there.lr * (i + 1) / (stages + 1), steps=end - start)
        for i, (start, end) in enumerate(pairwise(ends))
    ]
    return StagePlan([*rise, replace(there, steps=left), *plan[index + 1 :]])


def harmonic(rho: float, stages: int, distance: float) -> StagePlan:
    """α_t = ρ/(t + 1), M_t = ⌈S/α_t⌉, p_{t+1} = 1/α_t = (t + 1)/ρ for t = 0 … T − 1 (Corollary 1).

    Args:
        rho: ρ > 0, the learning rate of the first stage.
        stages: T ≥ 1. The plan has about S T(T + 1) / (2ρ) steps.
        distance: S > 0, how far the normalized steps of each stage can travel.

    Raises:
        ValueError: if a value is out of its range.
    """
    rho, stages = _positive("rho", rho), _count("stages", stages)
    return StagePlan(Stage.covering(rho / t, distance, weight=t / rho) for t in range(1, stages + 1))


def harmonic_even(rho: float, stages: int, distance: float) -> StagePlan:
    """α_t and M_t of `harmonic`, and p_{t+1} = M_t α_t, which is S where nothing is rounded (Remark 1).

    Every iterate is drawn with a weight of its learning rate. For this the objective need not be bounded from above:
    the bound speaks of F(w_0) alone.

    Args:
        rho, stages, distance: see `harmonic`.

    Raises:
        ValueError: if a value is out of its range.
    """
    plan = harmonic(rho, stages, distance)
    return StagePlan(replace(stage, weight=stage.steps * stage.lr) for stage in plan)


def geometric(rho: float, stages: int, distance: float) -> StagePlan:
    """α_t = ρ^(t + 1), M_t = ⌈S/α_t⌉, p_{t+1} = (2ρ)^−(t + 1) for t = 0 … T − 1 (Corollary 2).

    The paper states α_t = ρ^t there; its proof, and this plan, have ρ^(t + 1).

    Args:
        rho: ρ in (0, ½).
        stages: T ≥ 1. The plan has about S ρ^−T / (1 − ρ) steps: every further stage is 1/ρ times as long.
        distance: S > 0, how far the normalized steps of each stage can travel.

    Raises:
        ValueError: if a value is out of its range, or ρ^T underflows.
    """
    if not 0 < rho < 0.5:
        raise ValueError(f"rho must be in (0, 0.5), got {rho!r}")
    most = int(-math.log(1e300) / math.log(rho))
    if _count("stages", stages) > most:
        raise ValueError(f"stages must be at most {most} for rho = {rho!r}, got {stages!r}")
    return StagePlan(Stage.covering(rho**t, distance, weight=(2 * rho) ** -t) for t in range(1, stages + 1))


def agnostic(lr: float, steps: int) -> StagePlan:
    """α_t = α 2^(−3t/4), M_t = 2^t, β_t = 1 − 2^(−t/2): a plan that needs none of the problem's constants.

    Hübler, Yang, Li and He (2024), Parameter-Agnostic Optimization under Relaxed Smoothness, lower the learning rate
    of normalized steps like s^(−3/4) and raise the momentum like 1 − s^(−1/2), where s = 1, 2, … counts the steps. Here
    both change when s is a power of two, so that N steps are about log₂ N stages. Whatever α is, E‖∇F(w̄)‖ then falls
    like N^(−1/4) log N; a better α makes it smaller by a factor only. Iterates weigh as much as their learning rate.

    The plan is for a momentum that is normalized, `SNGD(momentum=…, normalize="momentum")`. Stage 0 is one step. SNGD's
    mean begins at zero, so this step follows the gradient whatever β_0 is; β_0 is set to β_1.

    Args:
        lr: α > 0, the learning rate of the first step.
        steps: N ≥ 1, of all stages together; the last stage may be shorter than 2^t.

    Raises:
        ValueError: if a value is out of its range.

    Examples:
        >>> [(round(stage.lr, 3), stage.steps, round(stage.momentum, 3)) for stage in agnostic(1.0, 5)]
        [(1.0, 1, 0.293), (0.595, 2, 0.293), (0.354, 2, 0.5)]
    """
    lr, steps = _positive("lr", lr), _count("steps", steps)
    return StagePlan(_agnostic_stage(lr, t, min(2**t, steps + 1 - 2**t)) for t in range(steps.bit_length()))


def _agnostic_stage(lr: float, t: int, steps: int) -> Stage:
    lr *= 2 ** (-0.75 * t)
    return Stage(lr, steps, weight=lr * steps, momentum=1 - 2 ** (-max(t, 1) / 2))


# The wording of ``sngd.checks``, which this file does not import: it can be used where torch is not installed.


def _positive(name: str, value: float) -> float:
    if not hasattr(value, "__float__") or not 0 < _float(value) < math.inf:
        raise ValueError(f"{name} must be finite and greater than 0, got {_shown(value)}")
    return float(value)


def _momentum(value: float) -> float:
    if not hasattr(value, "__float__") or not 0 < _float(value) < 1:
        raise ValueError(f"momentum must be in (0, 1), got {_shown(value)}")
    return float(value)


def _float(value: float) -> float:
    """``value`` as a float; infinite if it is an int that no float can hold."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _count(name: str, value: int) -> int:
    if not hasattr(value, "__index__") or operator.index(value) < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {_shown(value)}")
    return operator.index(value)


def _shown(value: object) -> str:
    from sngd.checks import shown  # imported here, so that this file can be used without torch, which sngd imports

    return shown(value)
