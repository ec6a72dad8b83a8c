"""The table of a study: mean ± deviation over seeds, with the best arm in bold."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np

from sngd.studies.lead import METRICS, Ranking, answers_of, exponent, format_difference, lead, statements
from sngd.studies.markdown import markdown_table
from sngd.studies.runs import Run, Study, Tuning, band, value

SPREAD_NOTE = "Mean ± sample standard deviation over seeds, at the end of each run; best mean in bold"
DIFFERENCE_NOTE = "Differences: mean over paired seeds ± half of its 95 % interval"


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
    spreads = {key: _spread(list(answers_of(runs, key).values())) for key in METRICS}
    return Summary(
        label=label,
        lr=value(runs[0].config, "lr"),
        runs=len(runs),
        finished=len(ended),
        diverged=sum(run.diverged for run in ended),
        budget=max(budgets, default=None),
        **spreads,
    )


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


class Cell(NamedTuple):
    text: str
    best: bool = False


def cells(study: Study) -> tuple[list[str], list[list[Cell]]]:
    """The table as text, one row per arm: header and cells, ready for a terminal, Markdown or HTML.

    Measures that no run has are left out.
    """
    summaries = summarize(study)
    best = {key: ranking.best for key in METRICS if (ranking := lead(study, key))}
    shown = [key for key in METRICS if any(getattr(summary, key) for summary in summaries)]
    header = ["method", "lr", "#grad/n", "seeds"]
    header += [METRICS[key].name + (" (%)" if METRICS[key].percent else "") for key in shown]
    rows = []
    for summary in summaries:
        row = [
            Cell(summary.label),
            Cell(_number_text(summary.lr)),
            Cell(_number_text(summary.budget)),
            Cell(_seeds(summary)),
        ]
        row += [
            Cell(format_spread(getattr(summary, key), METRICS[key].percent), best.get(key) == summary.label)
            for key in shown
        ]
        rows.append(row)
    return header, rows


def behind(study: Study) -> tuple[list[str], list[list[str]]] | None:
    """By how much each arm is behind the best in each measure, as text: header and rows.

    None where the statements say it all: with fewer than three arms, or none of them ranked.
    """
    rankings = [ranking for key in METRICS if (ranking := lead(study, key)) and ranking.leads]
    if len(study.arms) < 3 or not rankings:
        return None
    rows = [[label, *(_behind(ranking, label) for ranking in rankings)] for label in study.arms]
    metrics = [METRICS[ranking.key] for ranking in rankings]
    return ["behind the best by", *(m.name + (" (percentage points)" if m.percent else "") for m in metrics)], rows


def _behind(ranking: Ranking, label: str) -> str:
    found = [format_difference(lead, METRICS[ranking.key].percent) for lead in ranking.leads if lead.other == label]
    return found[0] if found else "best" if label == ranking.best else "–"


def findings(study: Study) -> list[str]:
    """What the study found, a sentence each: which arm is best, or of one arm alone where it ended and on which way."""
    if len(study.arms) > 1:
        return statements(study)
    (summary,) = summarize(study)
    measured = [
        f"{metric.name} {format_spread(spread, metric.percent)}{' %' if metric.percent else ''}"
        for key, metric in METRICS.items()
        if (spread := getattr(summary, key))
    ]
    if not measured:
        return statements(study)
    seeds = f"over {summary.finished} seeds" if summary.finished > 1 else "with one seed (seed noise unknown)"
    diverged = f"; {summary.diverged} of them diverged and are left out" if summary.diverged else ""
    ended = (
        f"{summary.label} ended at #grad/n = {_number_text(summary.budget)} with {_joined(measured)}, {seeds}{diverged}"
    )
    return [ended, *_course(study, "train_loss"), *_course(study, "test_loss")]


def edge_notes(tuning: Tuning) -> list[str]:
    """A sentence for each arm whose best learning rate is the smallest or the largest of those tried."""
    grid = sorted(tuning["grid"])
    if len(grid) < 2:
        return []
    edges = {grid[0]: ("smallest", "smaller"), grid[-1]: ("largest", "larger")}
    return [
        f"{label}: the chosen learning rate {lr:g} is the {edges[lr][0]} of the grid; "
        f"a {edges[lr][1]} one may be better."
        for label, lr in tuning["chosen"].items()
        if lr in edges
    ]


def _joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _course(study: Study, key: str) -> list[str]:
    """How the mean of a loss went, and whether it was lower before the end by more than a hundredth.

    The last evaluation counts if it is one of the same samples as those before it.
    """
    curve = band(study.runs, key)
    samples = {run.curve_samples for run in study.runs}
    if curve is None or not np.isfinite(curve.mean).all() or len(samples) > 1:
        return []
    (count,) = samples
    mean = curve.mean[:-1] if count else curve.mean
    if len(mean) < 2:
        return []
    name, first, last = METRICS[key].name, mean[0], mean[-1]
    went = f"Its {name} went from {first:.4g} to {last:.4g}"
    if count:
        went = f"On {count:,} samples its {name} went from {first:.4g} to {last:.4g} before the end"
    least = int(np.argmin(mean))
    if mean[least] >= last - 0.01 * abs(last):
        return [went]
    return [f"{went}, and was lowest, {mean[least]:.4g}, at #grad/n = {curve.cost[least]:.4g}"]


def format_spread(spread: Spread | None, percent: bool = False) -> str:
    """``0.05123 ± 0.00041``: the mean with four significant digits (or per cent with two decimals)."""
    if spread is None:
        return "–"
    mean, deviation = spread.mean, spread.std
    if percent:
        return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
    power = exponent(mean)
    if not -4 <= power < 5:
        scale = 10.0**power
        tail = "" if deviation is None else f" ± {deviation / scale:.3f}"
        return f"({mean / scale:.3f}{tail})e{power:+03d}" if tail else f"{mean:.3e}"
    decimals = max(0, 3 - power)
    return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")


def _number_text(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"


def _seeds(summary: Summary) -> str:
    text = str(summary.finished) if summary.finished == summary.runs else f"{summary.finished} of {summary.runs}"
    return text + (f" ({summary.diverged} diverged)" if summary.diverged else "")


class SpreadEntry(TypedDict):
    """A ``Spread`` in JSON."""

    mean: float
    std: float | None
    n: int


class SummaryEntry(TypedDict):
    """A ``Summary`` in JSON."""

    label: str
    lr: float | None
    runs: int
    finished: int
    diverged: int
    budget: float | None
    train_loss: SpreadEntry | None
    test_loss: SpreadEntry | None
    test_accuracy: SpreadEntry | None


class DifferenceEntry(TypedDict):
    """A ``Difference`` in JSON."""

    other: str
    mean: float
    half_width: float | None


class RankingEntry(TypedDict):
    """A ``Ranking`` in JSON."""

    key: str
    statement: str
    best: str | None
    leads: list[DifferenceEntry]
    seeds: int
    beyond_noise: bool | None
    equal_calls: bool | None
    equal_tuning: bool | None


class TableEntry(TypedDict):
    """A study's table in JSON: a summary of each arm, a ranking in each metric."""

    problem: str
    methods: list[SummaryEntry]
    verdicts: list[RankingEntry]
    tuning: Tuning | None


def as_json(study: Study) -> TableEntry:
    """The table and the rankings as plain dicts, lists, strings and finite numbers."""
    return {
        "problem": study.problem,
        "methods": [_summary_entry(summary) for summary in summarize(study)],
        "verdicts": [_ranking_entry(ranking) for key in METRICS if (ranking := lead(study, key))],
        "tuning": study.tuning,
    }


def _summary_entry(summary: Summary) -> SummaryEntry:
    return {
        "label": summary.label,
        "lr": summary.lr,
        "runs": summary.runs,
        "finished": summary.finished,
        "diverged": summary.diverged,
        "budget": summary.budget,
        "train_loss": _spread_entry(summary.train_loss),
        "test_loss": _spread_entry(summary.test_loss),
        "test_accuracy": _spread_entry(summary.test_accuracy),
    }


def _spread_entry(spread: Spread | None) -> SpreadEntry | None:
    return None if spread is None else {"mean": spread.mean, "std": spread.std, "n": spread.n}


def _ranking_entry(ranking: Ranking) -> RankingEntry:
    return {
        "key": ranking.key,
        "statement": ranking.statement,
        "best": ranking.best,
        "leads": [{"other": d.other, "mean": d.mean, "half_width": d.half_width} for d in ranking.leads],
        "seeds": ranking.seeds,
        "beyond_noise": ranking.beyond_noise,
        "equal_calls": ranking.equal_calls,
        "equal_tuning": ranking.equal_tuning,
    }


def as_markdown(study: Study) -> str:
    """The table in Markdown, best values in bold, a line for each ranking, and all differences."""
    header, rows = cells(study)
    texts = [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in rows]
    lines = [markdown_table(header, texts), "", f"{SPREAD_NOTE}.", ""]
    lines += [f"* {sentence}." for sentence in findings(study)]
    if differences := behind(study):
        lines += ["", markdown_table(*differences), "", f"{DIFFERENCE_NOTE}."]
    return "\n".join(lines) + "\n"
