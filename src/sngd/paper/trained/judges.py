"""The evidence on claims C1 to C6, from the measurements of Figures 2 to 4 and from nothing else.

A claim is divided into comparisons, one for each setting, competitor and criterion. Each compares two methods in runs
with the same seeds, which share initial weights and samples. A comparison is shown if Student's interval of the mean
paired difference lies on the claim's side, contradicted if it lies on the other side, and open if it holds both.

*The level.* The claim is shown if every comparison is. So it is shown wrongly only if a false comparison passes its own
test. With tests at 2.5 % the probability of this is at most 2.5 %, for any number of comparisons and any dependence
between them (an intersection–union test; Berger 1982). Intervals of 95 %, as in ``sngd compare``, are therefore enough.
It is otherwise with the claim's contradiction, for which one comparison suffices: one of k lies on the other side by
chance up to k times as often as a single one. So the claim is contradicted only if a comparison is contradicted by an
interval of level 1 − 5 %/k too (Bonferroni). Then a false claim is shown, and a true one contradicted, with a
probability of at most 2.5 % each.

*Divergence* counts as the worst result. If the claimed winner diverges with any seed and its competitor with none, the
comparison is contradicted; if both diverge, it is open. A diverged run of the competitor alone counts as the worst of
its other runs, which favors the competitor; if there are no other runs, the comparison is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise, product
from math import exp, log, sqrt
from statistics import fmean, variance
from typing import NamedTuple, cast

from sngd.diagnose.interval import Interval, mean_interval
from sngd.paper.trained.runs import ArmMeasured, CurveKey, ExperimentMeasured, FigureMeasured
from sngd.paper.verdicts import (
    CONTRADICTED,
    OPEN,
    POWER,
    Evidence,
    Quantity,
    above,
    every,
    never,
    reach_of_mean,
    reported,
    undecided,
)
from sngd.training.plan_words import build_plan

LEVEL = 0.95

Values = list[float | None]  # one a seed, the smaller the better; None for a run that diverged
Comparison = Callable[[float], Quantity | None]  # by the level of its interval; None if one of its arms was not run

# ---- C1, C2: a small model -----------------------------------------------------------------------------------


def judge_large_rate(fig2: FigureMeasured) -> Evidence:
    """C1 from Figure 2: final training loss and test accuracy of SNGD, α = 0.1, against SPIDER-SFO's two curves."""
    comparisons = [
        partial(_compare, key, experiment, criterion, "SNGD, α=0.1", competitor)
        for key, experiment in fig2["experiments"].items()
        for competitor, criterion in product(("SPIDER-SFO, α=0.1", "SPIDER-SFO, α=0.001"), FINAL)
    ]
    return _evidence([fig2], comparisons)


def judge_small_rate(fig2: FigureMeasured) -> Evidence:
    """C2 from Figure 2: SPIDER-SFO against SNGD, both with α = 0.001, as §6.1 says: "in terms of both training loss and
    test accuracy after 20 epochs". The mean along the curve is context."""
    arms = ("SPIDER-SFO, α=0.001", "SNGD, α=0.001")
    experiments = fig2["experiments"].items()
    comparisons = [partial(_compare, key, found, criterion, *arms) for key, found in experiments for criterion in FINAL]
    along = [_as_context(_compare(key, found, ALONG, *arms)) for key, found in experiments]
    return _evidence([fig2], comparisons, [quantity for quantity in along if quantity])


def _as_context(quantity: Quantity | None) -> Quantity | None:
    """Nothing is required of it."""
    return quantity and replace(quantity, required="", answer=None, essential=False, seen_from=None)


# ---- C4, C6: large models, large batches ---------------------------------------------------------------------

STAGED = ("S-SNGD(v1), α=0.5", "S-SNGD(v2), α=0.5")


def judge_stages(fig3: FigureMeasured) -> Evidence:
    """C4 from Figure 3: both S-SNGD against SNGD and SPIDER-SFO with either α."""
    competitors = [f"{method}, α={lr}" for method in ("SNGD", "SPIDER-SFO") for lr in (0.5, 0.1)]
    comparisons = [
        partial(_compare, key, experiment, criterion, staged, competitor)
        for key, experiment in fig3["experiments"].items()
        for staged, competitor, criterion in product(STAGED, competitors, FINAL)
    ]
    return _evidence([fig3], comparisons, _best_accuracy(fig3))


def judge_large_batch(fig4: FigureMeasured) -> Evidence:
    """C6 from Figure 4: S-SNGD against S-SGD, each with the learning rate that its tuning chose."""
    experiments = fig4["experiments"]
    comparisons = [
        partial(_compare, key, experiment, criterion, "S-SNGD", "S-SGD")
        for key, experiment in experiments.items()
        for criterion in FINAL
    ]
    tunings = [experiment["tuning"] for experiment in experiments.values() if _has_arms(experiment, "S-SNGD", "S-SGD")]
    fair = sum(tuning is not None and "S-SGD" not in tuning["at_edge"] for tuning in tunings)
    # If a competitor's best rate is at the end of the grid, a better one may lie outside: the comparison is unfair.
    name = "experiments in which S-SGD's α is tuned, to one inside of the grid that both have"
    tuned = [every(name, fair, len(tunings))] if tunings else []
    edges = [
        f"{key}: the tuned α of {label} is at the edge of the grid; a better one may lie outside"
        for key, experiment in experiments.items()
        for label in (experiment["tuning"]["at_edge"] if experiment["tuning"] else [])
    ]
    return _evidence([fig4], comparisons, [*tuned, *_against_others(fig4), *_best_accuracy(fig4)], edges)


def _against_others(fig4: FigureMeasured) -> Iterator[Quantity]:
    """Beyond the paper: what S-SNGD gains over methods with momentum; nothing is required of it."""
    for key, experiment in fig4["experiments"].items():
        others = [label for label, arm in experiment["arms"].items() if arm["beyond"]]
        for other, criterion in product(others, FINAL):
            if found := _as_context(_compare(key, experiment, criterion, "S-SNGD", other)):
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


# ---- C3: how much the curves vary ----------------------------------------------------------------------------


EVALUATIONS = 20  # at least so many after the first quarter: of fewer, how rough a curve is cannot be said


def judge_variation(fig2: FigureMeasured, fig3: FigureMeasured) -> Evidence:
    """C3 from Figures 2 (α = 0.1) and 3 (α = 0.5): variation of training loss and test error, of SPIDER-SFO over SNGD.

    Once a quarter of the budget is spent, so that the first descent is left out,

    * roughness along the curve, a value a seed: how far an evaluation is from the line between its neighbours, as a
      standard deviation (root mean square of y_i − w y_{i−1} − (1 − w) y_{i+1}, over √(1 + w² + (1 − w)²), which is the
      deviation of y_i where y is noise about a line);
    * deviation across the seeds, its square a mean over the evaluations. The interval of the two methods' ratio is that
      of Fisher's F as if there were a single evaluation, since those of a run depend on one another.

    A curve with fewer than ``EVALUATIONS`` evaluations there leaves the comparison open.
    """
    settings = [
        (key, experiment, (f"SNGD, α={lr}", f"SPIDER-SFO, α={lr}"))
        for figure, lr in ((fig2, 0.1), (fig3, 0.5))
        for key, experiment in figure["experiments"].items()
    ]
    comparisons = [
        partial(variation, key, experiment, curve, *labels)
        for key, experiment, labels in settings
        for curve in _CURVES
        for variation in (_variation_along, _variation_across)
    ]
    context = [
        quantity
        for key, experiment, labels in settings
        if _has_arms(experiment, *labels)
        for label in labels
        for quantity in _count_rises(key, experiment, label)
    ]
    note = (
        "variation is of the curves as drawn, training loss and test error, once a quarter of the budget is spent; a "
        f"curve with fewer than {EVALUATIONS} evaluations there decides nothing"
    )
    return _evidence([fig2, fig3], comparisons, context, [note], extra="; Fisher's F for deviations across seeds")


class _Curve(NamedTuple):
    """What varies: a curve, and the factor of its unit."""

    name: str
    key: CurveKey
    scale: float


_CURVES = (_Curve("training loss", "train_loss", 1), _Curve("test error", "test_accuracy", 100))


def _variation_along(
    key: str, experiment: ExperimentMeasured, curve: _Curve, smooth: str, rough: str, level: float
) -> Quantity | None:
    if not _has_arms(experiment, smooth, rough):
        return None
    arms = [experiment["arms"][label] for label in (smooth, rough)]
    count = _count_evaluations(arms)
    what = f"roughness of the {curve.name} along the curve"
    if count < _FEWEST:
        return undecided(f"{key}: evaluations for the {what}, {rough} / {smooth}", count, f"≥ {EVALUATIONS}")
    name = f"{key}: {what} ({count} evaluations), {rough} / {smooth}"
    ours, theirs = (_roughness(arm, curve) for arm in arms)
    found = _compare_values(name, ours, theirs, level, ratio=True)
    return found if count >= EVALUATIONS or found.of else _leave_open(found)  # divergence needs no evaluations


_FEWEST = 5  # evaluations, which have three residuals: a deviation of fewer is not even reported


def _leave_open(found: Quantity) -> Quantity:
    return replace(found, required=f"> 1, over at least {EVALUATIONS} evaluations", answer=OPEN)


def _count_evaluations(arms: Sequence[ArmMeasured]) -> int:
    return min(len(_after_first_quarter(arm["curves"]["grads_over_n"], arm)) for arm in arms)


def _roughness(arm: ArmMeasured, curve: _Curve) -> Values:
    costs = _after_first_quarter(arm["curves"]["grads_over_n"], arm)
    return [None if values is None else _deviation_from_line(costs, values) for values in _late_values(arm, curve)]


def _deviation_from_line(x: Sequence[float], y: Sequence[float]) -> float:
    """Of at least three points with increasing x; see ``judge_variation``."""
    squares = []
    for i in range(1, len(x) - 1):
        w = (x[i + 1] - x[i]) / (x[i + 1] - x[i - 1])
        squares.append((y[i] - w * y[i - 1] - (1 - w) * y[i + 1]) ** 2 / (1 + w**2 + (1 - w) ** 2))
    return sqrt(fmean(squares))


def _variation_across(
    key: str, experiment: ExperimentMeasured, curve: _Curve, smooth: str, rough: str, level: float
) -> Quantity | None:
    if not _has_arms(experiment, smooth, rough):
        return None
    arms = [experiment["arms"][label] for label in (smooth, rough)]
    count = _count_evaluations(arms)
    name = f"{key}: deviation of the {curve.name} across seeds ({count} evaluations), {rough} / {smooth}"
    ours, theirs = (_late_values(arm, curve) for arm in arms)
    left = [values for values in theirs if values]
    if len(ours) < 2:
        return None
    if None in ours or len(left) < 2:
        return _count_divergence(name, ours.count(None), theirs.count(None), len(ours))
    ratio, least = _deviation_ratio(left, [values for values in ours if values], level)
    found = above(name, ratio, 1, essential=True, reach=least - 1)
    return found if count >= EVALUATIONS else _leave_open(found)


def _deviation_ratio(
    rough: Sequence[Sequence[float]], smooth: Sequence[Sequence[float]], level: float
) -> tuple[Interval, float]:
    """The ratio, and the least true one whose interval is above 1 with probability ``POWER``."""
    ratio = _deviation(rough) / _deviation(smooth)
    dofs, tail = (len(rough) - 1, len(smooth) - 1), (1 - level) / 2
    least, low, most = (sqrt(_fisher_quantile(probability, *dofs)) for probability in (tail, 1 - POWER, 1 - tail))
    return Interval(ratio, ratio / most, ratio / least), most / low


@lru_cache
def _fisher_quantile(probability: float, dof: int, other_dof: int) -> float:
    from scipy.stats import f

    return float(f.ppf(probability, dof, other_dof))


def _deviation(curves: Sequence[Sequence[float]]) -> float:
    return max(sqrt(fmean(variance(at_once) for at_once in zip(*curves, strict=True))), _TINY)


def _count_rises(key: str, experiment: ExperimentMeasured, label: str) -> Iterator[Quantity]:
    for curve in _CURVES:
        late = [values for values in _late_values(experiment["arms"][label], curve) if values]
        rises = [later > earlier for values in late for earlier, later in pairwise(values)]
        if rises:
            yield reported(f"{key}: evaluations at which the {curve.name} rose, {label}", sum(rises), len(rises))


def _late_values(arm: ArmMeasured, curve: _Curve) -> list[list[float] | None]:
    """The smaller the better, a list a seed, after the first quarter; None for a run that diverged."""
    late = [values and _after_first_quarter(values, arm) for values in _curves(arm, curve.key)]
    if curve.key == "train_loss":
        return late
    return [values and [curve.scale * (1 - accuracy) for accuracy in values] for values in late]


def _curves(arm: ArmMeasured, key: CurveKey) -> list[list[float] | None]:
    """A list a seed; None for a run that diverged, and others have a value at every evaluation."""
    runs = zip(arm["seeds"], arm["curves"][key], strict=True)
    return [None if seed in arm["diverged"] else cast(list[float], curve) for seed, curve in runs]


def _after_first_quarter(values: Sequence[float], arm: ArmMeasured) -> list[float]:
    """Of a value an evaluation those once a quarter of the budget is spent."""
    costs = arm["curves"]["grads_over_n"]
    return [value for value, cost in zip(values, costs, strict=True) if cost >= costs[-1] / 4]


_TINY = 1e-12  # no loss or deviation is taken to be less: they have logarithms


# ---- C5: equal until a milestone -----------------------------------------------------------------------------


def judge_until_milestone(fig3: FigureMeasured) -> Evidence:
    """C5 from Figure 3: with the same seed, training loss and test accuracy of S-SNGD v2 and SNGD, α = 0.5, are equal
    to the last bit at each evaluation until v2's first milestone.

    Until there both have the same plan, so this checks that runs are deterministic and says nothing about the methods.
    """
    quantities = [
        quantity
        for key, experiment in fig3["experiments"].items()
        if _has_arms(experiment, STAGED[1], "SNGD, α=0.5")
        for quantity in _equal(key, experiment, STAGED[1], "SNGD, α=0.5")
    ]
    return Evidence(
        profile=fig3["profile"],
        quantities=tuple(quantities),
        test="a check of determinism: equality of numbers, evaluation by evaluation, in runs with the same seed. Until "
        "the milestone both methods do the same arithmetic. So a difference would be an error of the program, and "
        "equality says nothing about the methods",
        error_rate=0.0,
        departures=_departures([fig3]),
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


# ---- two arms compared ---------------------------------------------------------------------------------------


class Criterion(NamedTuple):
    """What is compared: its name, and an arm's values."""

    name: str
    values: Callable[[ArmMeasured], Values]


def _final_losses(arm: ArmMeasured) -> Values:
    return list(arm["final"]["train_loss"])


def _final_errors(arm: ArmMeasured) -> Values:
    return [None if accuracy is None else 100 * (1 - accuracy) for accuracy in arm["final"]["test_accuracy"]]


def _mean_losses(arm: ArmMeasured) -> Values:
    """Area under the curve over its length, by the trapezoidal rule."""
    costs = arm["curves"]["grads_over_n"]
    return [
        None
        if curve is None
        else sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(zip(costs, curve, strict=True)))
        / (costs[-1] - costs[0])
        for curve in _curves(arm, "train_loss")
    ]


LOSS = Criterion("final training loss", _final_losses)
ERROR = Criterion("final test error in percentage points", _final_errors)
ALONG = Criterion("mean training loss along the curve", _mean_losses)
FINAL = (LOSS, ERROR)


def _compare(
    key: str, experiment: ExperimentMeasured, criterion: Criterion, winner: str, loser: str, level: float = LEVEL
) -> Quantity | None:
    """How much more ``loser`` has than ``winner``, which must be positive; None if one of them was not run."""
    if not _has_arms(experiment, winner, loser):
        return None
    name = f"{key}: {criterion.name}, {loser} − {winner}"
    ours, theirs = (criterion.values(experiment["arms"][label]) for label in (winner, loser))
    return _compare_values(name, ours, theirs, level)


def _compare_values(name: str, ours: Values, theirs: Values, level: float, *, ratio: bool = False) -> Quantity:
    """``theirs`` − ``ours`` must be above 0, or, with ``ratio``, their geometric mean ratio above 1."""
    left = [value for value in theirs if value is not None]
    if None in ours or not left:
        return _count_divergence(name, ours.count(None), theirs.count(None), len(ours))
    pairs = [(a, max(left) if b is None else b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    limit = 1 if ratio else 0
    differences = [log(max(b, _TINY) / max(a, _TINY)) if ratio else b - a for a, b in pairs]
    if len(differences) < 2:  # seed noise is unknown
        return undecided(name, exp(differences[0]) if ratio else differences[0], f"> {limit}, over several seeds")
    mean, reach = mean_interval(differences, level), reach_of_mean(differences, level)
    if ratio:
        return above(name, Interval(*map(exp, mean)), 1, essential=True, reach=exp(reach) - 1)
    return above(name, mean, 0, essential=True, reach=reach)


def _count_divergence(name: str, ours: int, theirs: int, seeds: int) -> Quantity:
    """In place of a comparison whose winner must not diverge, and whose loser may."""
    if ours and theirs:
        return undecided(f"{name}: runs of the latter that diverged; of the former too", ours, "none", seeds)
    if ours:
        return never(f"{name}: runs of the latter that diverged", ours, seeds, essential=True)
    name = f"{name}: runs of the former that diverged, none of the latter"
    if theirs < seeds:
        return undecided(name, theirs, "all", seeds)
    return every(name, theirs, seeds, essential=True)


def _has_arms(experiment: ExperimentMeasured, *labels: str) -> bool:
    return all(label in experiment["arms"] for label in labels)


# ---- evidence ------------------------------------------------------------------------------------------------


def _evidence(
    figures: Sequence[FigureMeasured],
    comparisons: Sequence[Comparison],
    others: Iterator[Quantity] | Sequence[Quantity] = (),
    departures: Sequence[str] = (),
    extra: str = "",
) -> Evidence:
    """``others`` are further requirements, or context."""
    made = [(compare, found) for compare in comparisons if (found := compare(LEVEL))]
    wide = 1 - (1 - LEVEL) / max(1, len(made))  # allows for their number
    judged = [
        replace(found, firm=_contradicted_at(wide, compare)) if found.answer == CONTRADICTED else found
        for compare, found in made
    ]
    arms = [arm for figure in figures for e in figure["experiments"].values() for arm in e["arms"].values()]
    seeds = sorted({len(arm["seeds"]) for arm in arms})
    return Evidence(
        profile=figures[0]["profile"],
        quantities=(*judged, *others) if judged else (),
        test=f"Student's t of differences between runs with the same seed, {_range_text(seeds)} seeds{extra}; "
        f"{100 * LEVEL:g} % intervals. The claim is shown wrongly with at most {50 * (1 - LEVEL):.3g} %, since all "
        "comparisons must be shown (intersection–union test). It is contradicted wrongly with at most as much, since "
        f"one of {len(judged)} comparisons must lie on the other side with an interval of {100 * wide:.4g} % "
        "(Bonferroni)",
        error_rate=round((1 - LEVEL) / 2, 6),
        departures=(*_departures(figures), *departures),
    )


def _contradicted_at(level: float, compare: Comparison) -> bool:
    found = compare(level)
    return found is not None and found.answer == CONTRADICTED


def _range_text(numbers: Sequence[int]) -> str:
    return " to ".join(str(number) for number in dict.fromkeys([*numbers[:1], *numbers[-1:]]))


def _departures(figures: Sequence[FigureMeasured]) -> tuple[str, ...]:
    """The experiments' own, each once and with the names of its experiments unless all have it; and the machine."""
    experiments = {key: e for figure in figures for key, e in figure["experiments"].items()}
    phrases = dict.fromkeys(phrase for e in experiments.values() for phrase in e["departures"])
    stated = []
    for phrase in phrases:
        having = [key for key, e in experiments.items() if phrase in e["departures"]]
        stated.append(phrase if len(having) == len(experiments) else f"{', '.join(having)}: {phrase}")
    machines = dict.fromkeys(f"{f['device']}, PyTorch {f['environment']['torch']}" for f in figures if "device" in f)
    return (*stated, *(f"{machine}; the paper has a V100 and PyTorch 1.4" for machine in machines))
