"""Compare two arms of an experiment, and make the evidence on a claim of several such comparisons.

A claim is divided into comparisons, one for each setting, competitor and criterion. Each compares two methods in runs
with the same seeds, which share initial weights and samples. A comparison is shown if Student's interval of the mean
paired difference lies on the claim's side, contradicted if it lies on the other side, and open if it holds both.

*The level.* The claim is shown if every comparison is. So it is shown wrongly only if a false comparison passes its own
test. With tests at 2.5 % the probability of this is at most 2.5 %, for any number of comparisons and any dependence
between them (an intersection–union test; Berger 1982). Intervals of 95 %, as in ``sngd compare``, are therefore enough.
It is otherwise with the claim's contradiction, for which one comparison suffices: one of k lies on the other side by
chance up to k times as often as a single one. So the claim is contradicted only if a comparison is contradicted by an
interval of level 1 − 5 %/k too (Bonferroni). Then a false claim is shown, and a true one contradicted, with a
probability of at most 2.5 % each, as long as no run diverges.

*Divergence* counts as the worst result. If the claimed winner diverges with any seed and its competitor with none, the
comparison is contradicted; if both diverge, it is open. A diverged run of the competitor alone counts as the worst of
its other runs, which favors the competitor; if there are no other runs, the comparison is shown. Where runs diverge,
this keeps the probability of showing a false claim, but not that of contradicting a true one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import exp, log
from typing import NamedTuple, cast

from sngd.diagnose.interval import Interval, mean_interval
from sngd.paper.trained.runs import ArmMeasured, CurveKey, ExperimentMeasured, FigureMeasured, machines
from sngd.paper.verdicts import CONTRADICTED, Evidence, Quantity, above, every, never, reach_of_mean, undecided

LEVEL = 0.95
TINY = 1e-12  # no loss or deviation is taken to be less: they have logarithms

Values = list[float | None]  # one a seed, the smaller the better; None for a run that diverged
Comparison = Callable[[float], Quantity | None]  # by the level of its interval; None if one of its arms was not run

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
        for curve in curves_of(arm, "train_loss")
    ]


def _final_test_losses(arm: ArmMeasured) -> Values:
    return list(arm["final"].get("test_loss", ()))


LOSS = Criterion("final training loss", _final_losses)
ERROR = Criterion("final test error in percentage points", _final_errors)
ALONG = Criterion("mean training loss along the curve", _mean_losses)
TEST_LOSS = Criterion("final test loss", _final_test_losses)
FINAL = (LOSS, ERROR)


def compare(
    key: str, experiment: ExperimentMeasured, criterion: Criterion, winner: str, loser: str, level: float = LEVEL
) -> Quantity | None:
    """How much more ``loser`` has than ``winner``, which must be positive; None if one was not run, or not measured."""
    if not has_arms(experiment, winner, loser):
        return None
    name = f"{key}: {criterion.name}, {loser} − {winner}"
    ours, theirs = (criterion.values(experiment["arms"][label]) for label in (winner, loser))
    if not ours or not theirs:  # not measured
        return None
    return compare_values(name, ours, theirs, level)


class Pair(NamedTuple):
    """Two arms of an experiment, by their labels; the claim says that ``winner`` ends with less than ``loser``."""

    key: str  # the experiment's
    experiment: ExperimentMeasured
    winner: str
    loser: str


def final_comparisons(pairs: Iterable[Pair]) -> list[Comparison]:
    """Each pair's final training loss and test error."""
    return [
        partial(compare, pair.key, pair.experiment, criterion, pair.winner, pair.loser)
        for pair in pairs
        for criterion in FINAL
    ]


def final_test_losses(pairs: Iterable[Pair]) -> list[Quantity]:
    """Each pair's final test loss, as context."""
    found = [as_context(compare(pair.key, pair.experiment, TEST_LOSS, pair.winner, pair.loser)) for pair in pairs]
    return [quantity for quantity in found if quantity]


def compare_values(name: str, ours: Values, theirs: Values, level: float, *, ratio: bool = False) -> Quantity:
    """``theirs`` − ``ours`` must be above 0, or, with ``ratio``, their geometric mean ratio above 1."""
    left = [value for value in theirs if value is not None]
    if None in ours or not left:
        return count_divergence(name, ours.count(None), theirs.count(None), len(ours))
    pairs = [(a, max(left) if b is None else b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    limit = 1 if ratio else 0
    differences = [log(max(b, TINY) / max(a, TINY)) if ratio else b - a for a, b in pairs]
    if len(differences) < 2:  # seed noise is unknown
        return undecided(name, exp(differences[0]) if ratio else differences[0], f"> {limit}, over several seeds")
    mean, reach = mean_interval(differences, level), reach_of_mean(differences, level)
    if ratio:
        return above(name, Interval(*map(exp, mean)), 1, essential=True, reach=exp(reach) - 1)
    return above(name, mean, 0, essential=True, reach=reach)


def count_divergence(name: str, ours: int, theirs: int, seeds: int) -> Quantity:
    """In place of a comparison whose winner must not diverge, and whose loser may."""
    if ours and theirs:
        return undecided(f"{name}: runs of the latter that diverged; of the former too", ours, "none", seeds)
    if ours:
        return never(f"{name}: runs of the latter that diverged", ours, seeds, essential=True)
    name = f"{name}: runs of the former that diverged, none of the latter"
    if theirs < seeds:
        return undecided(name, theirs, "all", seeds)
    return every(name, theirs, seeds, essential=True)


def has_arms(experiment: ExperimentMeasured, *labels: str) -> bool:
    return all(label in experiment["arms"] for label in labels)


def as_context(quantity: Quantity | None) -> Quantity | None:
    """Nothing is required of it."""
    return quantity and replace(quantity, required="", answer=None, essential=False, seen_from=None)


def curves_of(arm: ArmMeasured, key: CurveKey) -> list[list[float] | None]:
    """A list a seed; None for a run that diverged, and others have a value at every evaluation."""
    runs = zip(arm["seeds"], arm["curves"][key], strict=True)
    return [None if seed in arm["diverged"] else cast(list[float], curve) for seed, curve in runs]


# ---- evidence ------------------------------------------------------------------------------------------------


def evidence_of(
    figures: Sequence[FigureMeasured],
    comparisons: Sequence[Comparison],
    others: Iterator[Quantity] | Sequence[Quantity] = (),
    departures: Sequence[str] = (),
    extra: str = "",
    looks: int = 1,
) -> Evidence:
    """``others`` are further requirements, or context; the claim was judged ``looks`` times, by other or more runs."""
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
        f"{100 * LEVEL:g} % intervals. The claim is shown wrongly with at most {50 * looks * (1 - LEVEL):.3g} %, since "
        "all comparisons must be shown (intersection–union test). It is contradicted wrongly with at most as much, "
        f"since one of {len(judged)} comparisons must lie on the other side with an interval of {100 * wide:.4g} % "
        f"(Bonferroni){f'. Both allow for {looks} looks' if looks > 1 else ''}",
        error_rate=round(looks * (1 - LEVEL) / 2, 6),
        departures=(*departures_of(figures), *departures),
    )


def _contradicted_at(level: float, compare: Comparison) -> bool:
    found = compare(level)
    return found is not None and found.answer == CONTRADICTED


def _range_text(numbers: Sequence[int]) -> str:
    return " to ".join(str(number) for number in dict.fromkeys([*numbers[:1], *numbers[-1:]]))


def departures_of(figures: Sequence[FigureMeasured]) -> tuple[str, ...]:
    """The experiments' own, each once and with the names of its experiments unless all have it; and the machine."""
    experiments = {key: e for figure in figures for key, e in figure["experiments"].items()}
    phrases = dict.fromkeys(phrase for e in experiments.values() for phrase in e["departures"])
    stated = []
    for phrase in phrases:
        having = [key for key, e in experiments.items() if phrase in e["departures"]]
        stated.append(phrase if len(having) == len(experiments) else f"{', '.join(having)}: {phrase}")
    found = dict.fromkeys(machine for figure in figures for machine in machines(figure))
    return (*stated, *(f"{machine}; the paper has a V100 and PyTorch 1.4" for machine in found))
