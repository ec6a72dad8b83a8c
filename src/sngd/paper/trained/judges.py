"""The evidence on claims C1, C2 and C4 to C6, from the measurements of Figures 2 to 4 and from nothing else.

A claim is divided into comparisons, one for each setting, competitor and criterion; ``comparing`` says how they are
made, and what follows from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from statistics import fmean

from sngd.diagnose.interval import mean_interval
from sngd.paper.trained.comparing import (
    ALONG,
    FINAL,
    LEVEL,
    Pair,
    as_context,
    compare,
    departures_of,
    evidence_of,
    final_comparisons,
    final_test_losses,
    has_arms,
)
from sngd.paper.trained.runs import ArmMeasured, ExperimentMeasured, FigureMeasured
from sngd.paper.verdicts import Evidence, Quantity, every, reported
from sngd.training.plan_words import build_plan

# ---- C1, C2: a small model -----------------------------------------------------------------------------------


def judge_large_rate(fig2: FigureMeasured) -> Evidence:
    """C1 from Figure 2: final training loss and test accuracy of SNGD, α = 0.1, against SPIDER-SFO's two curves."""
    pairs = [
        Pair(key, experiment, "SNGD, α=0.1", competitor)
        for key, experiment in fig2["experiments"].items()
        for competitor in ("SPIDER-SFO, α=0.1", "SPIDER-SFO, α=0.001")
    ]
    return evidence_of([fig2], final_comparisons(pairs), final_test_losses(pairs))


def judge_small_rate(fig2: FigureMeasured) -> Evidence:
    """C2 from Figure 2: SPIDER-SFO against SNGD, both with α = 0.001, as §6.1 says: "in terms of both training loss and
    test accuracy after 20 epochs". The mean along the curve is context."""
    arms = ("SPIDER-SFO, α=0.001", "SNGD, α=0.001")
    pairs = [Pair(key, experiment, *arms) for key, experiment in fig2["experiments"].items()]
    along = [as_context(compare(pair.key, pair.experiment, ALONG, *arms)) for pair in pairs]
    context = [*(quantity for quantity in along if quantity), *final_test_losses(pairs)]
    return evidence_of([fig2], final_comparisons(pairs), context)


# ---- C4, C6: large models, large batches ---------------------------------------------------------------------

STAGED = ("S-SNGD(v1), α=0.5", "S-SNGD(v2), α=0.5")


def judge_stages(fig3: FigureMeasured) -> Evidence:
    """C4 from Figure 3: both S-SNGD against SNGD and SPIDER-SFO with either α."""
    competitors = [f"{method}, α={lr}" for method in ("SNGD", "SPIDER-SFO") for lr in (0.5, 0.1)]
    pairs = [
        Pair(key, experiment, staged, competitor)
        for key, experiment in fig3["experiments"].items()
        for staged, competitor in product(STAGED, competitors)
    ]
    return evidence_of([fig3], final_comparisons(pairs), [*final_test_losses(pairs), *_best_accuracy(fig3)])


def judge_large_batch(fig4: FigureMeasured) -> Evidence:
    """C6 from Figure 4: S-SNGD against S-SGD, each with the learning rate that its tuning chose."""
    experiments = fig4["experiments"]
    pairs = [Pair(key, experiment, "S-SNGD", "S-SGD") for key, experiment in experiments.items()]
    tunings = [experiment["tuning"] for experiment in experiments.values() if has_arms(experiment, "S-SNGD", "S-SGD")]
    fair = sum(tuning is not None and "S-SGD" not in tuning["at_edge"] for tuning in tunings)
    # If a competitor's best rate is at the end of the grid, a better one may lie outside: the comparison is unfair.
    name = "experiments in which S-SGD's α is tuned, to one inside of the grid that both have"
    tuned = [every(name, fair, len(tunings))] if tunings else []
    edges = [
        f"{key}: the tuned α of {label} is at the edge of the grid; a better one may lie outside"
        for key, experiment in experiments.items()
        for label in (experiment["tuning"]["at_edge"] if experiment["tuning"] else [])
    ]
    context = [*final_test_losses(pairs), *_against_others(fig4), *_best_accuracy(fig4)]
    return evidence_of([fig4], final_comparisons(pairs), [*tuned, *context], edges)


def _against_others(fig4: FigureMeasured) -> Iterator[Quantity]:
    """Beyond the paper: what S-SNGD gains over methods with momentum; nothing is required of it."""
    for key, experiment in fig4["experiments"].items():
        others = [label for label, arm in experiment["arms"].items() if arm["beyond"]]
        for other, criterion in product(others, FINAL):
            if found := as_context(compare(key, experiment, criterion, "S-SNGD", other)):
                yield found


_ELSEWHERE = {  # test accuracy in per cent
    ("cifar10-resnet20", 128): "momentum SGD elsewhere: 91.25, reruns 91.89 ± 0.16",
    ("cifar10-resnet56", 128): "momentum SGD elsewhere: 93.03, reruns 93.20 ± 0.12",
    ("cifar10-resnet20", 4096): "elsewhere: momentum 88.2–88.8, normalized momentum 89.3–90.0",
}


def _best_accuracy(figure: FigureMeasured) -> Iterator[Quantity]:
    """The best arm's test accuracy, beyond the paper or not, where others have published theirs."""
    for key, experiment in figure["experiments"].items():
        known = _ELSEWHERE.get((experiment["problem"], experiment["batch_size"]))
        arms = {label: arm["final"]["test_accuracy"] for label, arm in experiment["arms"].items()}
        known_of = {label: [value for value in values if value is not None] for label, values in arms.items()}
        finals = {label: values for label, values in known_of.items() if len(values) == len(arms[label]) > 1}
        if known and experiment["epochs"] == 160 and finals:
            best = max(finals, key=lambda label: fmean(finals[label]))
            accuracy = mean_interval([100 * value for value in finals[best]], LEVEL)
            yield reported(f"{key}: test accuracy (%) of the best, {best} ({known})", accuracy)


# ---- C5: equal until a milestone -----------------------------------------------------------------------------


def judge_until_milestone(fig3: FigureMeasured) -> Evidence:
    """C5 from Figure 3: with the same seed, training loss and test accuracy of S-SNGD v2 and SNGD, α = 0.5, are equal
    to the last bit at each evaluation until v2's first milestone.

    Until there both have the same plan, so this checks that runs are deterministic and says nothing about the methods.
    """
    quantities = [
        quantity
        for key, experiment in fig3["experiments"].items()
        if has_arms(experiment, STAGED[1], "SNGD, α=0.5")
        for quantity in _equal(key, experiment, STAGED[1], "SNGD, α=0.5")
    ]
    return Evidence(
        profile=fig3["profile"],
        quantities=tuple(quantities),
        test="a check of determinism: equality of numbers, evaluation by evaluation, in runs with the same seed. Until "
        "the milestone both methods do the same arithmetic. So a difference would be an error of the program, and "
        "equality says nothing about the methods",
        error_rate=0.0,
        departures=departures_of([fig3]),
    )


def _equal(key: str, experiment: ExperimentMeasured, staged: str, constant: str) -> Iterator[Quantity]:
    ours, theirs = (experiment["arms"][label] for label in (staged, constant))
    steps_per_epoch = experiment["n"] / experiment["batch_size"]
    first = build_plan(str(ours["plan"]), ours["lr"], experiment["epochs"], steps_per_epoch)[0]
    milestone = first.steps * experiment["batch_size"] / experiment["n"]
    mine, other = _rows(ours), _rows(theirs)
    before = [row for row in mine if 0 < row[1] <= milestone * (1 + 1e-9)]  # at 0 all runs of a seed are equal
    after = [row for row in mine if row[1] > milestone * (1 + 1e-9)]
    if before:
        name = f"{key}: evaluations until the first milestone, {milestone:.4g} #grad/n, at which both are equal"
        yield every(name, sum(mine[row] == other.get(row) for row in before), len(before), essential=True)
        hits = sum(mine[row] == other.get(row) for row in after)
        yield reported(f"{key}: evaluations after it at which they still are", hits, len(after))


def _rows(arm: ArmMeasured) -> dict[tuple[int, float], tuple[float | None, float | None]]:
    """(training loss, test accuracy) by (seed, #grad/n)."""
    curves = arm["curves"]
    return {
        (seed, cost): (loss, accuracy)
        for seed, losses, accuracies in zip(arm["seeds"], curves["train_loss"], curves["test_accuracy"], strict=True)
        for cost, loss, accuracy in zip(curves["grads_over_n"], losses, accuracies, strict=True)
    }
