"""Large batches where they can be trained to the end: C12 to C14.

Figure 4's networks end far from a minimum after few passes. These small ones come nearer, at four batch sizes. §6.2
explains the advantage of S-SNGD by its leaving sharp minima, so the sharpness at the last weights is measured too, also
of Figure 4's runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from math import exp, log
from pathlib import Path
from statistics import fmean, linear_regression, median
from typing import TYPE_CHECKING, cast

from sngd.diagnose.interval import Interval, mean_interval
from sngd.paper.trained import runs
from sngd.paper.trained.comparing import (
    ERROR,
    FINAL,
    LEVEL,
    LOSS,
    TEST_LOSS,
    TINY,
    Comparison,
    Criterion,
    Pair,
    Values,
    as_context,
    compare,
    compare_values,
    count_divergence,
    evidence_of,
    final_comparisons,
    final_test_losses,
    has_arms,
)
from sngd.paper.trained.experiments import FIG4, FIG4_PAPER, FIG4_SMALL, FRESH, POLY, Arm, Experiment, papers_own
from sngd.paper.trained.pictures import page_of, starred
from sngd.paper.trained.runs import ArmMeasured, ExperimentMeasured, FigureMeasured
from sngd.paper.trained.sharpness import Sharpness, measure_sharpness, stored_sharpness
from sngd.paper.verdicts import Evidence, Quantity, above, reach_of_mean, reported, undecided
from sngd.studies.execution.execution import Execution
from sngd.studies.figures import DASH_LENGTHS, Style, plain_labels, plain_style, save, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINNER, LOSER = "S-SNGD", "S-SGD"
WITH_MOMENTUM = ("SNGM", "S-SGD with momentum")

# ---- what is run ---------------------------------------------------------------------------------------------


def _experiment(problem: str, batch_size: int, epochs: float = 40, seeds: int = 5) -> Experiment:
    """Figure 4's arms on a small network."""
    return Experiment(
        f"{problem.partition(':')[0]}-{batch_size}",
        problem,
        batch_size,
        epochs,
        tuple(Arm(arm.label, arm.method, plan=POLY, beyond=arm.beyond) for arm in FIG4.arms),
        seeds,
        eval_every=epochs / 4,
        grid=FIG4.grid,
        first_seed=FRESH,
        departures=(f"a small network, trained for {epochs:g} #grad/n",),
    )


# Other seeds of the two methods of the claims, at the learning rate that was best for both.
FIG4_AGAIN = replace(
    FIG4_SMALL,
    name="large-batch-again",
    arms=tuple(replace(arm, lr=1.0) for arm in papers_own(FIG4_SMALL)),
    grid=(),
    seeds=21,
    first_seed=200,
)
BATCH_SIZES = (128, 512, 2048, 8192)
TO_THE_END = [_experiment(problem, b) for problem in ("mnist-mlp", "fashion-mlp") for b in BATCH_SIZES]
EXPERIMENTS = {
    "quick": [_experiment("digits-mlp", b, 8, 2) for b in (64, 256)],
    "small": [*TO_THE_END, FIG4_SMALL, FIG4_AGAIN],
    "paper": [*TO_THE_END, FIG4_PAPER],
}


class LargeBatches(FigureMeasured):
    """The experiments, and λ_max where their runs ended: by experiment, label and seed."""

    sharpness: Sharpness


def run(profile: str, out: Path, command: str, execution: Execution) -> None:
    """As ``runs.run``; then every run's sharpness is measured."""
    runs.run("large-batches", profile, out, command, execution, table=EXPERIMENTS)
    measure_sharpness(EXPERIMENTS[profile], out, execution.titled("large-batches"))


def measure(profile: str, out: Path) -> LargeBatches:
    """The measurements of the runs in ``out``, and what sharpness.json holds.

    Raises:
        FileNotFoundError, ValueError: as ``runs.measure``.
    """
    measured = runs.measure("large-batches", profile, out, table=EXPERIMENTS)
    return cast(LargeBatches, {**measured, "sharpness": stored_sharpness(out)})


# ---- judged --------------------------------------------------------------------------------------------------


def judge_large_batches(measured: LargeBatches) -> Evidence:
    """C12: S-SNGD against S-SGD, both tuned, with the larger half of each problem's batch sizes. Others are context."""
    trained = _to_the_end(measured)
    large = _large(trained["experiments"])
    pairs = [Pair(key, e, WINNER, LOSER) for key, e in trained["experiments"].items() if key in large]
    context = [*final_test_losses(pairs), *_context(trained["experiments"], large)]
    return _evidence(trained, final_comparisons(pairs), context, looks=1 + _was_added(trained))


def judge_growth(measured: LargeBatches) -> Evidence:
    """C13: the logarithm of S-SGD's final training loss over S-SNGD's grows with that of the batch size.

    Each seed has a slope (least squares over the batch sizes), whose mean must be positive. How differences grow, in
    place of the ratio, is context.
    """
    trained = _to_the_end(measured)
    problems = _by_problem(trained["experiments"])
    comparisons = [partial(_compare_growth, problem, sizes) for problem, sizes in problems.items()]
    criteria = product(problems.items(), (*FINAL, TEST_LOSS))
    grown = [_growth_of_difference(problem, sizes, criterion) for (problem, sizes), criterion in criteria]
    context = [quantity for quantity in grown if quantity]
    return _evidence(trained, comparisons, context, looks=1 + _was_added(trained))


def judge_sharpness(measured: LargeBatches) -> Evidence:
    """C14: the sharpness where S-SGD ends over that where S-SNGD ends, in the geometric mean over seeds, above 1.

    It depends on how far the loss has fallen, so the ratio of the training losses stands beside it, and how sharp the
    minima are that methods with momentum end in. A run that diverged has no sharpness, and its seed is left out.
    Nothing is required of an experiment that other seeds replace.
    """
    experiments = {key: e for key, e in measured["experiments"].items() if has_arms(e, WINNER, LOSER)}
    sharpness = measured["sharpness"]
    comparisons = {key: partial(_compare_sharpness, key, e, sharpness, LOSER) for key, e in experiments.items()}
    replaced = [comparisons.pop(key) for key in experiments if _REPLACED.get(key) in experiments]
    earlier = [as_context(compare_earlier(LEVEL)) for compare_earlier in replaced]
    losses = [as_context(_compare_losses(key, e)) for key, e in experiments.items()]
    momentum = [
        as_context(_compare_sharpness(key, e, sharpness, label, LEVEL))
        for (key, e), label in product(experiments.items(), WITH_MOMENTUM)
        if label in e["arms"]
    ]
    found = [quantity for quantity in (*earlier, *losses, *momentum) if quantity]
    context = [*found, *_mean_sharpness(experiments, sharpness)]
    notes = [_SEEDS_REPLACED] if replaced else []
    # Fashion-MNIST's is no further look: the rate of two looks allows for it (docs/reproduction.md, "announced")
    return _evidence(measured, list(comparisons.values()), context, notes, looks=1 + len(replaced))


# By experiment, the one whose seeds replace its own when sharpness is compared.
_REPLACED = {FIG4_SMALL.name: FIG4_AGAIN.name}
_SEEDS_REPLACED = (
    f"the {FIG4_AGAIN.seeds} seeds of {FIG4_AGAIN.name} replace the {FIG4_SMALL.seeds} of {FIG4_SMALL.name}, by which "
    f"this claim was judged before and was open; these gave the number of {FIG4_AGAIN.seeds}"
)


def _mean_sharpness(experiments: Mapping[str, ExperimentMeasured], sharpness: Sharpness) -> Iterator[Quantity]:
    """Each arm's λ_max, in the geometric mean over the seeds that did not diverge."""
    for key, experiment in experiments.items():
        for label in experiment["arms"]:
            known = [value for value in sharpness.get(key, {}).get(label, {}).values() if value is not None]
            if len(known) > 1:
                mean = mean_interval([log(max(value, TINY)) for value in known], LEVEL)
                yield reported(f"{key}: λ_max where {label} ends, geometric mean", Interval(*map(exp, mean)))


_ADDED_LATER = "fashion-mlp's runs were added, as announced, when this claim had been judged by the other runs"


def _was_added(measured: LargeBatches) -> bool:
    """Whether there are Fashion-MNIST's runs, which the small profile had not at first."""
    problems = {e["problem"] for e in measured["experiments"].values()}
    return measured["profile"] == "small" and "fashion-mlp" in problems


def _evidence(
    measured: LargeBatches,
    comparisons: Sequence[Comparison],
    context: Sequence[Quantity],
    notes: Sequence[str] = (),
    looks: int = 1,
) -> Evidence:
    departures = (*([_ADDED_LATER] if _was_added(measured) else ()), *notes)
    return evidence_of([measured], comparisons, context, departures, looks=looks)


def _to_the_end(measured: LargeBatches) -> LargeBatches:
    """With the experiments on small networks alone, which are trained to the end."""
    kept = {key: e for key, e in measured["experiments"].items() if not e["problem"].startswith("cifar10")}
    return {**measured, "experiments": kept}


def _large(trained: Mapping[str, ExperimentMeasured]) -> set[str]:
    """The experiments whose batches are above the median of their problem's."""
    sizes: dict[str, list[int]] = {}
    for experiment in trained.values():
        sizes.setdefault(experiment["problem"], []).append(experiment["batch_size"])
    return {key for key, e in trained.items() if e["batch_size"] > median(sizes[e["problem"]])}


def _context(trained: Mapping[str, ExperimentMeasured], large: Collection[str]) -> Iterator[Quantity]:
    """What S-SNGD gains with smaller batches, and what normalization gains where both have momentum."""
    small = [Pair(key, e, WINNER, LOSER) for key, e in trained.items() if key not in large]
    momentum = [Pair(key, e, *WITH_MOMENTUM) for key, e in trained.items()]
    for pair, criterion in product([*small, *momentum], (*FINAL, TEST_LOSS)):
        if found := as_context(compare(pair.key, pair.experiment, criterion, pair.winner, pair.loser)):
            yield found


def _by_problem(trained: Mapping[str, ExperimentMeasured]) -> dict[str, list[ExperimentMeasured]]:
    problems: dict[str, list[ExperimentMeasured]] = {}
    for experiment in trained.values():
        if has_arms(experiment, WINNER, LOSER):
            problems.setdefault(experiment["problem"], []).append(experiment)
    return problems


def _compare_growth(problem: str, sizes: Sequence[ExperimentMeasured], level: float) -> Quantity | None:
    """The slope of log(S-SGD's loss / S-SNGD's) against log b; None if there is one size, or one seed."""
    name = f"{problem}: growth of log(final training loss, {LOSER} / {WINNER}) with the logarithm of the batch size"
    ours, theirs = ([LOSS.values(e["arms"][label]) for e in sizes] for label in (WINNER, LOSER))
    seeds = len(ours[0])
    if len(sizes) < 2 or seeds < 2:
        return None
    if any(None in values for values in ours) or any(values.count(None) == seeds for values in theirs):
        return count_divergence(name, _count_diverged(ours), _count_diverged(theirs), seeds)
    ratios = [_log_ratios(cast("list[float]", a), b) for a, b in zip(ours, theirs, strict=True)]
    slopes = _slopes(sizes, ratios)
    return above(name, mean_interval(slopes, level), 0, essential=True, reach=reach_of_mean(slopes, level))


def _growth_of_difference(problem: str, sizes: Sequence[ExperimentMeasured], criterion: Criterion) -> Quantity | None:
    """The slope of S-SGD's value minus S-SNGD's against log b; None if a value is not there, or there are too few."""
    ours, theirs = ([criterion.values(e["arms"][label]) for e in sizes] for label in (WINNER, LOSER))
    known = [value for values in (*ours, *theirs) for value in values]
    if len(sizes) < 2 or None in known or not all(map(len, (*ours, *theirs))) or len(ours[0]) < 2:
        return None
    by_size = [
        [b - a for a, b in zip(cast("list[float]", mine), cast("list[float]", other), strict=True)]
        for mine, other in zip(ours, theirs, strict=True)
    ]
    name = f"{problem}: growth of {criterion.name}, {LOSER} − {WINNER}, with the logarithm of the batch size"
    return reported(name, mean_interval(_slopes(sizes, by_size)))


def _slopes(sizes: Sequence[ExperimentMeasured], values: Sequence[Sequence[float]]) -> list[float]:
    """Each seed's slope against log b, from its values by batch size."""
    logs = [log(e["batch_size"]) for e in sizes]
    return [linear_regression(logs, seed).slope for seed in zip(*values, strict=True)]


def _count_diverged(by_size: Sequence[Values]) -> int:
    """The most runs that diverged at one batch size."""
    return max(values.count(None) for values in by_size)


def _log_ratios(ours: Sequence[float], theirs: Values) -> list[float]:
    """A competitor's run that diverged counts as the worst of the others."""
    worst = max(value for value in theirs if value is not None)
    return [log(max(worst if b is None else b, TINY) / max(a, TINY)) for a, b in zip(ours, theirs, strict=True)]


def _compare_sharpness(
    key: str, experiment: ExperimentMeasured, sharpness: Sharpness, other: str, level: float
) -> Quantity | None:
    """Undecided if it is known for fewer than two seeds of both; None if there is none of any experiment."""
    ours, theirs = (
        _sharpness_of(experiment["arms"][label], sharpness.get(key, {}).get(label, {})) for label in (WINNER, other)
    )
    known = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    name = f"{key}: sharpness at the end, {other} / {WINNER}"
    if not sharpness:
        return None
    if len(known) < 2:
        return undecided(f"{name}: seeds of which both are known", len(known), "at least 2", len(ours))
    return compare_values(name, [a for a, _ in known], [b for _, b in known], level, ratio=True)


def _sharpness_of(arm: ArmMeasured, known: Mapping[str, float | None]) -> Values:
    return [known.get(str(seed)) for seed in arm["seeds"]]


def _compare_losses(key: str, experiment: ExperimentMeasured) -> Quantity:
    ours, theirs = (LOSS.values(experiment["arms"][label]) for label in (WINNER, LOSER))
    return compare_values(f"{key}: final training loss, {LOSER} / {WINNER}", ours, theirs, LEVEL, ratio=True)


# ---- drawn ---------------------------------------------------------------------------------------------------


_APART = 1.1  # a method's place over that of the one before it


def draw(measurements: LargeBatches, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``large-batches.png`` and ``.svg``: what the runs end with by batch size, a column a problem."""
    problems: dict[str, dict[str, ExperimentMeasured]] = {}
    for key, experiment in measurements["experiments"].items():
        problems.setdefault(experiment["problem"], {})[key] = experiment
    labels = list(dict.fromkeys(label for e in measurements["experiments"].values() for label in e["arms"]))
    look = styles(labels)
    rows: list[tuple[str, Callable[[str, str, ArmMeasured], Values]]] = [
        ("final training loss", lambda _key, _label, arm: LOSS.values(arm)),
        ("final test loss", lambda _key, _label, arm: TEST_LOSS.values(arm)),
        ("final test error (points)", lambda _key, _label, arm: ERROR.values(arm)),
        (
            "sharpness at the end",
            lambda key, label, arm: _sharpness_of(arm, measurements["sharpness"].get(key, {}).get(label, {})),
        ),
    ]
    with plain_style():
        title = "Large batches"
        drawn = "a mark each, and their geometric mean"
        figure, page = page_of(max(7.0, 4.2 * len(problems)), 2.7 * len(rows) + 1, title, measurements, drawn)
        grid = page.subplots(len(rows), len(problems), squeeze=False, sharex="col")
        for column, (problem, sizes) in zip(grid.T, problems.items(), strict=True):
            epochs = max(e["epochs"] for e in sizes.values())
            column[0].set_title(f"{problem}, {epochs:g} #grad/n", fontsize=10)
            column[-1].set_xlabel("batch size")
            for ax, (name, values_of) in zip(column, rows, strict=True):
                _draw_by_size(ax, sizes, look, values_of)
                ax.set_ylabel(name)
        handles, names = grid[0][0].get_legend_handles_labels()
        page.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9, handlelength=3)
        return save(figure, Path(folder) / "large-batches")


def _draw_by_size(
    ax: Axes,
    sizes: Mapping[str, ExperimentMeasured],
    look: Mapping[str, Style],
    values_of: Callable[[str, str, ArmMeasured], Values],
) -> None:
    from matplotlib.ticker import NullLocator

    batch_sizes = sorted({experiment["batch_size"] for experiment in sizes.values()})
    apart = _APART if len(batch_sizes) == 1 else 1.0  # methods at one batch size would hide each other
    for place, (label, (color, dash)) in enumerate(look.items()):
        shift = apart ** (place - (len(look) - 1) / 2)
        points: list[tuple[float, float]] = []
        for batch_size in batch_sizes:
            known = _values_at(batch_size, sizes, label, values_of)
            ax.plot([batch_size * shift] * len(known), known, color=color, marker="_", linestyle="none")
            points += [(batch_size * shift, exp(fmean(map(log, known))))] if known and min(known) > 0 else []
        if not points:
            continue
        name = starred(label, next(e["arms"][label] for e in sizes.values() if label in e["arms"]))
        (line,) = ax.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, linewidth=1.2, label=name)
        if DASH_LENGTHS[dash]:
            line.set_dashes(DASH_LENGTHS[dash])
    ax.set(xscale="log", yscale="log")
    plain_labels(ax.yaxis, *ax.get_ylim())
    ax.set_xticks(batch_sizes, [str(b) for b in batch_sizes])
    if len(batch_sizes) == 1:
        ax.set_xlim(batch_sizes[0] * _APART**-4, batch_sizes[0] * _APART**4)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)


def _values_at(
    batch_size: int,
    sizes: Mapping[str, ExperimentMeasured],
    label: str,
    values_of: Callable[[str, str, ArmMeasured], Values],
) -> list[float]:
    """What is known of the method's runs with this batch size, in all experiments that have them."""
    values = [
        values_of(key, label, experiment["arms"][label])
        for key, experiment in sizes.items()
        if experiment["batch_size"] == batch_size and label in experiment["arms"]
    ]
    return [value for of_experiment in values for value in of_experiment if value is not None]
