"""Which arm of a study is best in a metric, and whether its lead is larger than seed noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import NamedTuple

from sngd.diagnose.interval import mean_margin
from sngd.studies.runs import Run, Study, value


class Metric(NamedTuple):
    name: str
    better: str
    sign: int  # +1: larger is better
    percent: bool


METRICS = {
    "train_loss": Metric("training loss", "lower", -1, False),
    "test_loss": Metric("test loss", "lower", -1, False),
    "test_accuracy": Metric("test accuracy", "higher", +1, True),
}


class Difference(NamedTuple):
    """By how much the best arm is better than ``other``: mean paired difference over the seeds, ≥ 0.

    ``half_width`` is that of its 95 % Student-t interval, None for a single seed.
    """

    other: str
    mean: float
    half_width: float | None


@dataclass(frozen=True)
class Ranking:
    """Which arm is best in one metric, and its lead over each other ranked arm, the runner-up's first.

    ``beyond_noise``: the interval of the lead over the runner-up excludes zero; None when there is no interval.
    ``equal_calls``: best and runner-up spent the same number of oracle calls, up to 2 %.
    ``equal_tuning``: both were tuned on the same learning rates; None when neither was tuned.
    """

    key: str
    statement: str
    best: str | None = None
    leads: tuple[Difference, ...] = ()
    seeds: int = 0
    beyond_noise: bool | None = None
    equal_calls: bool | None = None
    equal_tuning: bool | None = None


def lead(study: Study, key: str) -> Ranking | None:
    """Which arm is best in ``key``, and is its lead over the runner-up larger than seed noise?

    Arms are ranked by their mean over the seeds that all of them finished. The lead is judged on the differences
    d_k, seed by seed (a seed fixes initial weights and sample order, so pairing removes what the arms share):
    mean(d) ± t_{0.975, n−1} · std(d)/√n. An arm with a diverged run is not ranked, and the statement says so.

    The two arms are selected because they are first and second. This needs no correction: if arms are equal, the two
    best of many lie closer together than two random ones (Gutmann and Maymin, "Is the selected population the best?",
    1987). Each interval against an arm further down holds for that one comparison alone.

    Args:
        key: "train_loss", "test_loss" or "test_accuracy".

    Returns:
        The ranking, or None when no run measured ``key``.

    Raises:
        ValueError: no such ``key``.
    """
    if key not in METRICS:
        raise ValueError(f"key must be one of {', '.join(METRICS)}, is {key!r}")
    if not any(run.finished for run in study.runs):
        return Ranking(key, "no run has finished yet")
    if all(run.diverged for run in study.runs if run.finished):
        return Ranking(key, "every finished run diverged")
    if not any(value(row, key) is not None for run in study.runs for row in run.rows):
        return None
    unstable = [label for label, runs in study.arms.items() if any(run.diverged for run in runs)]
    answers = {label: answers_of(runs, key) for label, runs in study.arms.items() if label not in unstable}
    ranking = _rank(study, key, {label: by_seed for label, by_seed in answers.items() if by_seed})
    if not unstable:
        return ranking
    note = f"; not ranked, because runs diverged: {', '.join(unstable)}"
    return replace(ranking, statement=ranking.statement + note)


def _rank(study: Study, key: str, answers: dict[str, dict[int, float]]) -> Ranking:
    metric = METRICS[key]
    if not answers:
        return Ranking(key, f"no finished run has a {metric.name} to compare")
    if len(answers) == 1:
        (only,) = answers
        if len(study.arms) == 1:
            return Ranking(key, f"{only} is the only method: nothing to compare its {metric.name} with")
        return Ranking(key, f"only {only} can be ranked in {metric.name}", best=only)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in answers.values())))
    if not seeds:
        return Ranking(key, f"no seed was finished by every method: {metric.name} cannot be compared in pairs")
    means = {label: statistics.fmean(by_seed[seed] for seed in seeds) for label, by_seed in answers.items()}
    best, *others = sorted(means, key=lambda label: -metric.sign * means[label])
    leads = [
        _difference(other, [metric.sign * (answers[best][seed] - answers[other][seed]) for seed in seeds])
        for other in others
    ]
    return _judge_lead(study, Ranking(key, "", best, tuple(leads), len(seeds)))


def _difference(other: str, differences: list[float]) -> Difference:
    half_width = mean_margin(differences) if len(differences) > 1 else None
    return Difference(other, statistics.fmean(differences), half_width)


def _judge_lead(study: Study, ranking: Ranking) -> Ranking:
    lead = ranking.leads[0]
    ranking = replace(
        ranking,
        beyond_noise=None if lead.half_width is None else lead.mean > lead.half_width,
        equal_calls=_equal_calls(study.arms[str(ranking.best)], study.arms[lead.other]),
        equal_tuning=_equal_tuning(study, str(ranking.best), lead.other),
    )
    return replace(ranking, statement=f"{_comparison(ranking)} {_terms(ranking)}")


def _equal_calls(one: list[Run], other: list[Run]) -> bool:
    """Whether two arms spent the same, up to 2 %. A run stops when its next step would exceed the budget."""
    spent = [value(run.answer, "oracle_calls") or 0 for run in (*one, *other) if run.finished]
    return max(spent) - min(spent) <= 0.02 * max(spent)


def _equal_tuning(study: Study, one: str, other: str) -> bool | None:
    if not study.tuning:
        return None
    tried = {
        label: {trial["lr"] for trial in study.tuning["outcomes"] if trial["label"] == label} for label in (one, other)
    }
    return bool(tried[one]) and tried[one] == tried[other]


# ---- the statement -------------------------------------------------------------------------------------------


def _comparison(ranking: Ranking) -> str:
    metric, lead = METRICS[ranking.key], ranking.leads[0]
    over = f"over {ranking.seeds} seeds" if ranking.seeds > 1 else "with one seed (seed noise unknown)"
    if not lead.mean and not lead.half_width:
        return f"{ranking.best} and {lead.other} have the same final {metric.name} {over}"
    by = format_difference(lead, metric.percent) + (" percentage points" if metric.percent else "")
    rival = f"{lead.other}'s, the next best" if len(ranking.leads) > 1 else f"{lead.other}'s"
    if ranking.beyond_noise is False:
        return f"{ranking.best}'s final {metric.name} is not shown to be {metric.better} than {rival}: {by} {over}"
    comma = "," if len(ranking.leads) > 1 else ""
    return f"{ranking.best}'s final {metric.name} is {metric.better} than {rival}{comma} by {by} {over}"


def _terms(ranking: Ranking) -> str:
    calls = "equal" if ranking.equal_calls else "unequal"
    tuning = {True: " and equal tuning", False: " but unequal tuning", None: ", untuned"}[ranking.equal_tuning]
    return f"at {calls} oracle calls{tuning}"


def format_difference(difference: Difference, percent: bool = False) -> str:
    """``0.0108 ± 0.0047``: the mean and half the width of its interval, in hundredths if ``percent``."""
    numbers = [difference.mean] if difference.half_width is None else [difference.mean, difference.half_width]
    return " ± ".join(_with_common_decimals(numbers, percent))


def _with_common_decimals(values: list[float], percent: bool) -> list[str]:
    """Numbers to be read together, all with the decimals that give the largest three significant digits."""
    if percent:
        return [f"{100 * number:.2f}" for number in values]
    largest = exponent(max(map(abs, values)))
    if not -4 <= largest < 5:
        return [f"{number:.2e}" for number in values]
    return [f"{number:.{max(0, 2 - largest)}f}" for number in values]


def exponent(number: float) -> int:
    """The power of ten of the leading digit; 0 for 0, 309 for what is too large for a float."""
    if not math.isfinite(number):
        return 309
    return math.floor(math.log10(abs(number))) if number else 0


def answers_of(runs: list[Run], key: str) -> dict[int, float]:
    """The answers by seed; runs that are under way, diverged, or did not measure ``key`` have none."""
    measured = {run.seed: value(run.answer, key) for run in runs if run.finished and not run.diverged}
    return {seed: answer for seed, answer in measured.items() if answer is not None}


def statements(study: Study) -> list[str]:
    """What the study found about training loss and test accuracy, a sentence each and none twice."""
    rankings = (lead(study, key) for key in ("train_loss", "test_accuracy"))
    return list(dict.fromkeys(ranking.statement for ranking in rankings if ranking))
