"""The table of a study: mean ± deviation over seeds, the best arm, and whether its lead is more than seed noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

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


class Spread(NamedTuple):
    """Mean and sample standard deviation (ddof = 1; None for a single seed) over n seeds."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Summary:
    """One arm. The spreads are over the answers of the runs that finished without diverging."""

    label: str
    lr: float | None
    runs: int
    finished: int  # diverged ones included
    diverged: int
    budget: float | None  # grads_over_n spent, the most over the seeds
    train_loss: Spread | None
    test_loss: Spread | None
    test_accuracy: Spread | None


def summarize(study: Study) -> list[Summary]:
    """One summary per arm, in the study's order."""
    return [_summary(label, runs) for label, runs in study.arms.items()]


def _summary(label: str, runs: list[Run]) -> Summary:
    ended = [run for run in runs if run.finished]
    budgets = [cost for run in ended if (cost := value(run.answer, "grads_over_n")) is not None]
    spreads = {key: _spread(list(_answers(runs, key).values())) for key in MEASURES}
    return Summary(
        label=label,
        lr=value(runs[0].config, "lr"),
        runs=len(runs),
        finished=len(ended),
        diverged=sum(run.diverged for run in ended),
        budget=max(budgets, default=None),
        **spreads,
    )


def _answers(runs: list[Run], key: str) -> dict[int, float]:
    """The answers by seed; runs that are under way, diverged, or did not measure ``key`` have none."""
    measured = {run.seed: value(run.answer, key) for run in runs if run.finished and not run.diverged}
    return {seed: answer for seed, answer in measured.items() if answer is not None}


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


# ---- who leads -----------------------------------------------------------------------------------------------


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
    answers = {label: _answers(runs, key) for label, runs in study.arms.items() if label not in unstable}
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
    exponent = _exponent(max(map(abs, values)))
    if not -4 <= exponent < 5:
        return [f"{number:.2e}" for number in values]
    return [f"{number:.{max(0, 2 - exponent)}f}" for number in values]


def _exponent(number: float) -> int:
    return math.floor(math.log10(abs(number))) if number else 0


# ---- shown ---------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    text: str
    best: bool = False


def cells(study: Study) -> tuple[list[str], list[list[Cell]]]:
    """The table as text, one row per arm: header and cells, ready for a terminal, Markdown or HTML.

    Measures that no run has are left out.
    """
    summaries = summarize(study)
    best = {key: verdict.best for key in MEASURES if (verdict := lead(study, key))}
    shown = [key for key in MEASURES if any(getattr(summary, key) for summary in summaries)]
    header = ["method", "lr", "#grad/n", "seeds"]
    header += [MEASURES[key].name + (" (%)" if MEASURES[key].percent else "") for key in shown]
    rows = []
    for summary in summaries:
        row = [Cell(summary.label), Cell(_plain(summary.lr)), Cell(_plain(summary.budget)), Cell(_seeds(summary))]
        row += [
            Cell(format_spread(getattr(summary, key), MEASURES[key].percent), best.get(key) == summary.label)
            for key in shown
        ]
        rows.append(row)
    return header, rows


def format_spread(spread: Spread | None, percent: bool = False) -> str:
    """``0.05123 ± 0.00041``: the mean with four significant digits (or per cent with two decimals)."""
    if spread is None:
        return "–"
    mean, deviation = spread.mean, spread.std
    if percent:
        return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
    exponent = _exponent(mean)
    if not -4 <= exponent < 5:
        scale = 10.0**exponent
        tail = "" if deviation is None else f" ± {deviation / scale:.3f}"
        return f"({mean / scale:.3f}{tail})e{exponent:+03d}" if tail else f"{mean:.3e}"
    decimals = max(0, 3 - exponent)
    return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")


def _plain(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"


def _seeds(summary: Summary) -> str:
    text = str(summary.finished) if summary.finished == summary.runs else f"{summary.finished} of {summary.runs}"
    return text + (f" ({summary.diverged} diverged)" if summary.diverged else "")


def as_json(study: Study) -> dict[str, Any]:
    """The table and the verdicts as plain dicts, lists, strings and finite numbers."""
    methods = []
    for summary in summarize(study):
        entry = asdict(summary)
        for key in MEASURES:
            spread = getattr(summary, key)
            entry[key] = spread._asdict() if spread else None
        methods.append(entry)
    verdicts = [asdict(verdict) for key in MEASURES if (verdict := lead(study, key))]
    for entry in verdicts:
        entry["interval"] = entry["interval"] and list(entry["interval"])
    return {"problem": study.problem, "methods": methods, "verdicts": verdicts, "tuning": study.tuning}


def as_markdown(study: Study) -> str:
    """The table in Markdown, best values in bold, and a line for each verdict."""
    header, rows = cells(study)
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for row in rows:
        texts = [cell.text.replace("|", "\\|") for cell in row]
        texts = [f"**{text}**" if cell.best else text for text, cell in zip(texts, row, strict=True)]
        lines.append("| " + " | ".join(texts) + " |")
    lines += ["", "Mean ± sample standard deviation over seeds; best mean in bold.", ""]
    lines += [f"* {statement}." for statement in statements(study)]
    return "\n".join(lines) + "\n"


def statements(study: Study) -> list[str]:
    """What the study found about training loss and test accuracy, a sentence each and none twice."""
    verdicts = (lead(study, key) for key in ("train_loss", "test_accuracy"))
    return list(dict.fromkeys(verdict.statement for verdict in verdicts if verdict))
