"""C15: SPIDER is "the best among existing" methods that reduce variance (§5), at equal calls and equal tuning."""

from __future__ import annotations

from collections.abc import Iterator

from sngd.paper.trained.comparing import (
    Criterion,
    Pair,
    Values,
    as_context,
    compare,
    evidence_of,
    final_comparisons,
    final_test_losses,
)
from sngd.paper.trained.experiments import FRESH, HALF_DECADES, Arm, Experiment
from sngd.paper.trained.runs import ArmMeasured, FigureMeasured
from sngd.paper.verdicts import Evidence, Quantity

WINNER = "SPIDER-SFO"
OTHERS = {"SVRG": "svrg", "SCSG": "scsg", "Natasha2": "natasha2"}


def _experiment(name: str, problem: str, batch_size: int, epochs: float, seeds: int) -> Experiment:
    arms = tuple(Arm(label, method, beyond=True) for label, method in {WINNER: "spider-sfo", **OTHERS}.items())
    return Experiment(
        name,
        problem,
        batch_size,
        epochs,
        arms,
        seeds,
        grid=HALF_DECADES[2:],
        first_seed=FRESH,
        grad_norm=True,
        departures=("the paper has no such experiment",),
    )


_MNIST = _experiment("mnist-mlp", "mnist-mlp", 128, 20, 5)
EXPERIMENTS = {
    "quick": [_experiment("digits-mlp", "digits-mlp", 32, 4, 2)],
    "small": [_MNIST],
    "paper": [_MNIST],
}


def judge_reduced_variance(measured: FigureMeasured) -> Evidence:
    """C15: SPIDER-SFO against each of the others, tuned on one grid. The final ‖∇F‖ is context."""
    pairs = [Pair(key, e, WINNER, other) for key, e in measured["experiments"].items() for other in OTHERS]
    return evidence_of([measured], final_comparisons(pairs), [*final_test_losses(pairs), *_grad_norms(pairs)])


def _grad_norms(pairs: list[Pair]) -> Iterator[Quantity]:
    for pair in pairs:
        if found := as_context(compare(pair.key, pair.experiment, _GRAD_NORM, pair.winner, pair.loser)):
            yield found


def _final_grad_norms(arm: ArmMeasured) -> Values:
    return list(arm["final"].get("grad_norm", ()))


_GRAD_NORM = Criterion("final ‖∇F‖", _final_grad_norms)
