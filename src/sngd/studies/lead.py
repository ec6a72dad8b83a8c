"""Who leads a study in a measure, and whether the lead is more than seed noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import NamedTuple

from sngd.diagnose.interval import student_t
from sngd.studies.runs import Run, Study, value


class Measure(NamedTuple):
    name: str
    better: str
    sign: int  # +1: larger is better
    percent: bool


MEASURES = {
    "train_loss": Measure("training loss", "lower", -1, False),
    "test_loss": Measure("test loss", "lower", -1, False),
    "test_accuracy": Measure("test accuracy", "higher", +1, True),
}


class Difference(NamedTuple):
    """By how much the best arm is better than ``other``: mean paired difference over the seeds, ≥ 0.

    ``half_width`` is that of its 95 % Student-t interval, None for a single seed.
    """

    other: str
    mean: float
    half_width: float | None


@dataclass(frozen=True)
class Verdict:
    """Which arm is best in one measure, and its lead over each other ranked arm, the runner-up's first.

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


def lead(study: Study, key: str) -> Verdict | None:
    """Which arm is best in ``key``, and is its lead over the runner-up larger than seed noise?

    Arms are ranked by their mean over the seeds that all of them finished. The lead is judged on the differences
    d_k, seed by seed (a seed fixes initial weights and sample order, so pairing removes what the arms share):
    mean(d) ± t_{0.975, n−1} · std(d)/√n. An arm with a diverged run is not ranked, and the statement says so.

    That the two arms were picked for being first and second needs no correction: with equal arms, the two best of
    many lie closer together than two at random (Gutmann and Maymin, "Is the selected population the best?", 1987).
    The intervals against arms further down are for one comparison each.

    Args:
        key: "train_loss", "test_loss" or "test_accuracy".

    Returns:
        The verdict, or None when no run measured ``key``.

    Raises:
        ValueError: no such ``key``.
    """
    if key not in MEASURES:
        raise ValueError(f"key must be one of {', '.join(MEASURES)}, is {key!r}")
    if not any(run.finished for run in study.runs):
        return Verdict(key, "no run has finished yet")
    if all(run.diverged for run in study.runs if run.finished):
        return Verdict(key, "every finished run diverged")
    if not any(value(row, key) is not None for run in study.runs for row in run.rows):
        return None
    unstable = [label for label, runs in study.arms.items() if any(run.diverged for run in runs)]
    answers = {label: answers_of(runs, key) for label, runs in study.arms.items() if label not in unstable}
    verdict = _ranked(study, key, {label: by_seed for label, by_seed in answers.items() if by_seed})
    if not unstable:
        return verdict
    note = f"; not ranked, because runs diverged: {', '.join(unstable)}"
    return replace(verdict, statement=verdict.statement + note)


def _ranked(study: Study, key: str, answers: dict[str, dict[int, float]]) -> Verdict:
    measure = MEASURES[key]
    if not answers:
        return Verdict(key, f"no finished run has a {measure.name} to compare")
    if len(answers) == 1:
        (only,) = answers
        if len(study.arms) == 1:
            return Verdict(key, f"{only} is the only method: nothing to compare its {measure.name} with")
        return Verdict(key, f"only {only} can be ranked in {measure.name}", best=only)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in answers.values())))
    if not seeds:
        return Verdict(key, f"no seed was finished by every method: {measure.name} cannot be compared in pairs")
    means = {label: statistics.fmean(by_seed[seed] for seed in seeds) for label, by_seed in answers.items()}
    best, *others = sorted(means, key=lambda label: -measure.sign * means[label])
    leads = [
        _difference(other, [measure.sign * (answers[best][seed] - answers[other][seed]) for seed in seeds])
        for other in others
    ]
    return _judged(study, Verdict(key, "", best, tuple(leads), len(seeds)))


def _difference(other: str, differences: list[float]) -> Difference:
    n = len(differences)
    half_width = student_t(n - 1) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else None
    return Difference(other, statistics.fmean(differences), half_width)


def _judged(study: Study, verdict: Verdict) -> Verdict:
    lead = verdict.leads[0]
    verdict = replace(
        verdict,
        beyond_noise=None if lead.half_width is None else lead.mean > lead.half_width,
        equal_calls=_equal_calls(study.arms[str(verdict.best)], study.arms[lead.other]),
        equal_tuning=_equal_tuning(study, str(verdict.best), lead.other),
    )
    return replace(verdict, statement=f"{_comparison(verdict)} {_terms(verdict)}")


def _equal_calls(one: list[Run], other: list[Run]) -> bool:
    """A run stops when its next step would exceed the budget, so equal budgets may be spent unequally."""
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


def _comparison(verdict: Verdict) -> str:
    measure, lead = MEASURES[verdict.key], verdict.leads[0]
    over = f"over {verdict.seeds} seeds" if verdict.seeds > 1 else "with one seed (seed noise unknown)"
    if not lead.mean and not lead.half_width:
        return f"{verdict.best} and {lead.other} have the same final {measure.name} {over}"
    by = format_difference(lead, measure.percent) + (" percentage points" if measure.percent else "")
    rival = f"{lead.other}'s, the next best" if len(verdict.leads) > 1 else f"{lead.other}'s"
    if verdict.beyond_noise is False:
        return f"{verdict.best}'s final {measure.name} is not shown to be {measure.better} than {rival}: {by} {over}"
    comma = "," if len(verdict.leads) > 1 else ""
    return f"{verdict.best}'s final {measure.name} is {measure.better} than {rival}{comma} by {by} {over}"


def _terms(verdict: Verdict) -> str:
    calls = "equal" if verdict.equal_calls else "unequal"
    tuning = {True: " and equal tuning", False: " but unequal tuning", None: ", untuned"}[verdict.equal_tuning]
    return f"at {calls} oracle calls{tuning}"


def format_difference(difference: Difference, percent: bool = False) -> str:
    """``0.0108 ± 0.0047``: the mean and half the width of its interval, in hundredths if ``percent``."""
    numbers = [difference.mean] if difference.half_width is None else [difference.mean, difference.half_width]
    return " ± ".join(_alike(numbers, percent))


def _alike(values: list[float], percent: bool) -> list[str]:
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
    verdicts = (lead(study, key) for key in ("train_loss", "test_accuracy"))
    return list(dict.fromkeys(verdict.statement for verdict in verdicts if verdict))
