"""Ways to count SPIDER's gradients, which the paper does not state: the same runs on another axis.

SPIDER-SFO evaluates B samples at an anchor, and b samples at two points at each of the M − 1 steps that follow. A step
of the other methods evaluates b samples at one point, so all ways of counting agree on them.

By the last way SPIDER-SFO's runs of Figure 2 end at a quarter of the axis. Those of ``EXPERIMENTS`` last to its
end.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sngd.cost import Cost, differences
from sngd.paper.trained.experiments import BATCH_SIZES, FRESH, Experiment, fig2, scaled
from sngd.paper.trained.runs import CURVE_KEYS, ArmMeasured, ExperimentMeasured, FigureMeasured


class Counting(NamedTuple):
    """What a period of SPIDER counts, from what it evaluates and its batch size b."""

    name: str
    of_period: Callable[[Cost, int], Cost]


COUNTINGS = (
    Counting("every evaluation", lambda evaluated, _: evaluated),
    Counting("differences once", lambda evaluated, b: evaluated._replace(between=b)),
    Counting("b a step", lambda evaluated, b: evaluated._replace(anchor=b, between=b)),
)
"""The first is that of the runs."""
BY_STEP = COUNTINGS[-1]


def _to_the_end(experiment: Experiment, anchor_batch_size: int = 1024) -> Experiment:
    """The same with SPIDER-SFO's budget such that its runs, counted by ``BY_STEP``, end where the others do."""
    b = experiment.batch_size
    evaluated = differences(anchor_batch_size, b, anchor_batch_size // (2 * b))  # the method's defaults
    longer = experiment.epochs * evaluated.of_a_period / BY_STEP.of_period(evaluated, b).of_a_period
    arms = [replace(arm, epochs=longer) if arm.method == "spider-sfo" else arm for arm in experiment.arms]
    return replace(experiment, arms=tuple(arms), first_seed=FRESH)


_FIGURE_2 = [_to_the_end(fig2(b)) for b in BATCH_SIZES]
EXPERIMENTS = {
    "quick": [_to_the_end(scaled(fig2(32), problem="digits-mlp", epochs=4, seeds=2))],
    "small": _FIGURE_2,
    "paper": _FIGURE_2,
}


def recount(measured: FigureMeasured, counting: Counting) -> FigureMeasured:
    """A figure's measurements under another counting.

    SPIDER's runs then spent less, so every arm is cut at the budget that the cheapest arm of its experiment ends with,
    and its final values are those of its curve there (linear between evaluations; null after divergence).
    """
    experiments = {key: _recount_experiment(found, counting) for key, found in measured["experiments"].items()}
    return {**measured, "experiments": experiments}


def _recount_experiment(experiment: ExperimentMeasured, counting: Counting) -> ExperimentMeasured:
    costs = {label: _costs(arm, experiment, counting) for label, arm in experiment["arms"].items()}
    whole = [axis[-1] for label, axis in costs.items() if not experiment["arms"][label]["diverged"]]
    budget = min(whole or [axis[-1] for axis in costs.values()])
    arms = {label: _cut_at_budget(arm, costs[label], budget) for label, arm in experiment["arms"].items()}
    return {**experiment, "epochs": budget, "arms": arms}


def _costs(arm: ArmMeasured, experiment: ExperimentMeasured, counting: Counting) -> list[float]:
    costs = arm["curves"]["grads_over_n"]
    if "period" not in arm["params"]:
        return costs
    n, b = experiment["n"], experiment["batch_size"]
    evaluated = differences(arm["params"]["anchor_batch_size"], b, arm["params"]["period"])
    return [recount_calls(cost * n, evaluated, counting.of_period(evaluated, b)) / n for cost in costs]


def recount_calls(calls: float, evaluated: Cost, counted: Cost) -> float:
    """What counts in a run of so many evaluations; a part of a step counts in proportion."""
    periods, rest = divmod(calls, evaluated.of_a_period)
    anchors, between = min(1, rest / evaluated.anchor), max(0, rest - evaluated.anchor) / evaluated.between
    return periods * counted.of_a_period + anchors * counted.anchor + between * counted.between


def _cut_at_budget(arm: ArmMeasured, costs: Sequence[float], budget: float) -> ArmMeasured:
    kept = [*(cost for cost in costs if cost < budget), budget]
    losses, accuracies = ([_interpolate(kept, costs, seed) for seed in arm["curves"][key]] for key in CURVE_KEYS)
    return {
        **arm,
        "final": {"train_loss": [seed[-1] for seed in losses], "test_accuracy": [seed[-1] for seed in accuracies]},
        "curves": {"grads_over_n": kept, "train_loss": losses, "test_accuracy": accuracies},
    }


def _interpolate(wanted: Sequence[float], costs: Sequence[float], values: Sequence[float | None]) -> list[float | None]:
    """Linear between the costs; null beyond the last value."""
    numbers = np.interp(wanted, costs, np.array(values, dtype=np.float64), right=np.nan)  # null becomes NaN
    return [None if np.isnan(number) else float(number) for number in numbers]
