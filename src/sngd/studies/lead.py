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
    best: str  # the superlative of the better end
    better: str
    sign: int  # +1: larger is better
    percent: bool


MEASURES = {
    "train_loss": Measure("training loss", "lowest", "lower", -1, False),
    "test_loss": Measure("test loss", "lowest", "lower", -1, False),
    "test_accuracy": Measure("test accuracy", "highest", "higher", +1, True),
}


@dataclass(frozen=True)
class Verdict:
    """The best arm's lead over the runner-up in one measure, positive when it is ahead.

    ``interval`` is the 95 % Student-t interval of the mean paired difference, None for fewer than two seeds.
    ``beyond_noise`` is True when the interval excludes zero, None when there is no interval.
    """

    key: str
    statement: str
    best: str | None = None
    runner_up: str | None = None
    lead: float | None = None
    interval: tuple[float, float] | None = None
    seeds: int = 0
    beyond_noise: bool | None = None


def lead(study: Study, key: str) -> Verdict | None:
    """Which arm is best in ``key``, and is its lead over the runner-up larger than seed noise?

    Arms are ranked by their mean over the seeds that all of them finished. The lead is judged on the differences
    d_k, seed by seed (a seed fixes initial weights and sample order, so pairing removes what the arms share):
    mean(d) ± t_{0.975, n−1} · std(d)/√n. An arm with a diverged run is not ranked, and the statement says so.
    The interval is for these two arms; it is not corrected for having picked them among several.

    Args:
        key: "train_loss", "test_loss" or "test_accuracy".

    Returns:
        The verdict, or None when no run measured ``key``.
    """
    if key not in MEASURES:
        raise ValueError(f"key must be one of {', '.join(MEASURES)}, is {key!r}")
    measure = MEASURES[key]
    if not any(run.finished for run in study.runs):
        return Verdict(key, "no run has finished yet")
    if all(run.diverged for run in study.runs if run.finished):
        return Verdict(key, "every finished run diverged")
    if not any(value(row, key) is not None for run in study.runs for row in run.rows):
        return None
    unstable = [label for label, runs in study.arms.items() if any(run.diverged for run in runs)]
    answers = {label: answers_of(runs, key) for label, runs in study.arms.items() if label not in unstable}
    answers = {label: by_seed for label, by_seed in answers.items() if by_seed}
    verdict = _ranked(answers, measure, key, len(study.arms))
    if not unstable:
        return verdict
    note = f"; not ranked, because runs diverged: {', '.join(unstable)}"
    return replace(verdict, statement=verdict.statement + note)


def _ranked(answers: dict[str, dict[int, float]], measure: Measure, key: str, arms: int) -> Verdict:
    if not answers:
        return Verdict(key, f"no finished run has a {measure.name} to compare")
    if len(answers) == 1:
        (only,) = answers
        if arms == 1:
            return Verdict(key, f"{only} is the only method: nothing to compare its {measure.name} with")
        return Verdict(key, f"only {only} can be ranked in {measure.name}", best=only)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in answers.values())))
    if not seeds:
        return Verdict(key, f"no seed was finished by every method: {measure.name} cannot be compared in pairs")
    means = {label: statistics.fmean(by_seed[seed] for seed in seeds) for label, by_seed in answers.items()}
    best, runner_up = sorted(means, key=lambda label: -measure.sign * means[label])[:2]
    differences = [measure.sign * (answers[best][seed] - answers[runner_up][seed]) for seed in seeds]
    return _judged(best, runner_up, differences, measure, key)


def _judged(best: str, runner_up: str, differences: list[float], measure: Measure, key: str) -> Verdict:
    n, mean = len(differences), statistics.fmean(differences)
    interval = _student_interval(differences)
    beyond_noise = interval[0] > 0 if interval else None
    shown = _alike([mean, *(interval or ())], measure.percent)
    if not any(differences):
        text = f"{best} and {runner_up} have the same {measure.name}"
    else:
        unit = " percentage points" if measure.percent else ""
        text = f"{best} has the {measure.best} {measure.name}: {shown[0]}{unit} {measure.better} than {runner_up}"
    if interval is None:
        text += "; one seed: seed noise unknown"
    else:
        outcome = "larger than seed noise" if beyond_noise else "not distinguishable from seed noise"
        text += f", 95 % interval [{shown[1]}, {shown[2]}] over {n} paired seeds: {outcome}"
    return Verdict(key, text, best, runner_up, mean, interval, n, beyond_noise)


def _student_interval(differences: list[float]) -> tuple[float, float] | None:
    n = len(differences)
    if n < 2:
        return None
    half = student_t(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def _alike(values: list[float], percent: bool) -> list[str]:
    """Numbers to be read together, all with the decimals that give the largest three significant digits."""
    if percent:
        return [f"{100 * number:.2f}" for number in values]
    largest = exponent(max(map(abs, values)))
    if not -4 <= largest < 5:
        return [f"{number:.2e}" for number in values]
    return [f"{number:.{max(0, 2 - largest)}f}" for number in values]


def exponent(number: float) -> int:
    """The power of ten of the leading digit; 0 for 0."""
    return math.floor(math.log10(abs(number))) if number else 0


def answers_of(runs: list[Run], key: str) -> dict[int, float]:
    """The answers by seed; runs that are under way, diverged, or did not measure ``key`` have none."""
    measured = {run.seed: value(run.answer, key) for run in runs if run.finished and not run.diverged}
    return {seed: answer for seed, answer in measured.items() if answer is not None}


def statements(study: Study) -> list[str]:
    """What the study found about training loss and test accuracy, a sentence each and none twice."""
    verdicts = (lead(study, key) for key in ("train_loss", "test_accuracy"))
    return list(dict.fromkeys(verdict.statement for verdict in verdicts if verdict))
