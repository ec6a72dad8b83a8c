"""Verdicts: a claim against what was measured of it. Nobody writes an outcome; it follows from the quantities.

A study's judge turns measurements into ``Evidence``: quantities, each with its interval and with what the claim
requires of it. The claim's ``Verdict`` is then

* *reproduced* if every requirement is met,
* *not reproduced* if one fails that is essential, with which the claim stands or falls (or if none is met),
* *reproduced in part* otherwise, and
* *not tested in this profile* if there is no evidence, or none that requires anything.

A requirement that the interval leaves open is not met: what could not be shown has not been reproduced.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from sngd.diagnose.interval import Interval, student_t

REPRODUCED = "reproduced"
IN_PART = "reproduced in part"
NOT_REPRODUCED = "not reproduced"
NOT_TESTED = "not tested in this profile"

LEVEL = 0.999  # of every interval here: a dozen are judged together, and all must hold


@dataclass(frozen=True)
class Quantity:
    """A measured number and what the claim requires of it; made by the functions below.

    ``low`` and ``high`` are the ends of its ``LEVEL`` interval, None for a number without one. A count has the number
    of trials, ``of``. ``required`` is empty and ``met`` None for what is reported as context only.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    required: str = ""
    met: bool | None = None
    essential: bool = False
    of: int | None = None

    @property
    def measured(self) -> str:
        """``0.92 [0.81, 1.01]``, or ``3 of 4``."""
        if self.of is not None:
            return f"{self.value:,.0f} of {self.of:,}"
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Evidence:
    """What a study has to say about a claim.

    ``error_rate`` bounds the chance that any of the intervals and comparisons judged misses the truth. ``departures``
    are differences from the paper's setting, and limits of what was shown.
    """

    profile: str
    quantities: tuple[Quantity, ...]
    test: str
    error_rate: float
    departures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A claim ("C9"), its text and its place in the paper, the evidence, and the files that it was computed from."""

    claim: str
    text: str
    where: str
    evidence: Evidence | None = None
    sources: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        required = [q for q in self.evidence.quantities if q.met is not None] if self.evidence else []
        if not required:
            return NOT_TESTED
        if all(q.met for q in required):
            return REPRODUCED
        if any(q.essential and not q.met for q in required) or not any(q.met for q in required):
            return NOT_REPRODUCED
        return IN_PART


# ---- intervals -----------------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's ``LEVEL`` interval of the mean of at least two independent values, usually one a seed."""
    mean, n = statistics.fmean(values), len(values)
    half = student_t(n - 1, LEVEL) * statistics.stdev(values) / sqrt(n)
    return Interval(mean, mean - half, mean + half)


def share_interval(hits: int, n: int) -> Interval:
    """Clopper and Pearson's ``LEVEL`` interval of a probability, from ``hits`` of ``n`` ≥ 1 independent trials."""
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return Interval(hits / n, low, high)


def error_rate(intervals: float) -> float:
    """Union bound: the chance that any of so many intervals misses its number; one end of an interval counts half."""
    return min(1.0, round(intervals * (1 - LEVEL), 6))


# ---- quantities ----------------------------------------------------------------------------------------------


def reported(name: str, measured: Interval | float, of: int | None = None) -> Quantity:
    """Nothing is required of it; ``of`` makes it a count."""
    value, low, high = _ends(measured)
    return Quantity(name, value, low, high, of=of)


def above(name: str, measured: Interval | float, limit: float, *, essential: bool = False) -> Quantity:
    """The whole interval must be greater than ``limit``."""
    value, low, high = _ends(measured)
    return Quantity(name, value, low, high, f"> {limit:g}", (value if low is None else low) > limit, essential)


def at_least(name: str, measured: Interval | float, limit: float, *, essential: bool = False) -> Quantity:
    """The whole interval must be at least ``limit``."""
    value, low, high = _ends(measured)
    return Quantity(name, value, low, high, f"≥ {limit:g}", (value if low is None else low) >= limit, essential)


def at_most(name: str, measured: Interval | float, limit: float, *, essential: bool = False) -> Quantity:
    """The whole interval must be at most ``limit``."""
    value, low, high = _ends(measured)
    return Quantity(name, value, low, high, f"≤ {limit:g}", (value if high is None else high) <= limit, essential)


def between(name: str, measured: Interval | float, least: float, most: float, *, essential: bool = False) -> Quantity:
    """The whole interval must lie in [``least``, ``most``]."""
    value, low, high = _ends(measured)
    met = least <= (value if low is None else low) and (value if high is None else high) <= most
    return Quantity(name, value, low, high, f"in [{least:g}, {most:g}]", met, essential)


def every(name: str, hits: int, n: int, *, essential: bool = False) -> Quantity:
    """All of ``n`` trials must be hits; without a trial it is not met."""
    return Quantity(name, hits, required="all", met=0 < n == hits, essential=essential, of=n)


def never(name: str, hits: int, n: int, *, essential: bool = False) -> Quantity:
    """None of ``n`` trials may be a hit; without a trial it is not met."""
    return Quantity(name, hits, required="none", met=hits == 0 < n, essential=essential, of=n)


def _ends(measured: Interval | float) -> tuple[float, float | None, float | None]:
    if isinstance(measured, Interval):
        return measured.value, measured.low, measured.high
    return measured, None, None


# ---- shown ---------------------------------------------------------------------------------------------------


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain dicts, lists, strings and numbers: ``claim``, ``text``, ``where``, ``outcome``,
    ``sources`` and, if there is evidence, ``profile``, ``quantities``, ``test``, ``error_rate``, ``departures``."""
    head = {"claim": verdict.claim, "text": verdict.text, "where": verdict.where, "outcome": verdict.outcome}
    evidence = asdict(verdict.evidence) if verdict.evidence else {}
    return {**head, "sources": list(verdict.sources), **evidence}


def cells(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """One row for each claim: header and cells, ready for a terminal or Markdown."""
    rows = [[v.claim, v.text, v.outcome, "; ".join(map(_brief, _deciding(v)))] for v in verdicts]
    return ["claim", "text", "verdict", "decided by"], rows


def _deciding(verdict: Verdict) -> list[Quantity]:
    """The failures if there are any, else the essential requirements."""
    quantities = verdict.evidence.quantities if verdict.evidence else ()
    return [q for q in quantities if q.met is False] or [q for q in quantities if q.essential]


def _brief(quantity: Quantity) -> str:
    return f"{quantity.name}: {quantity.measured}, required {quantity.required}"


def quantity_cells(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """One row for each quantity: header and cells."""
    rows = [[q.name, q.measured, q.required or "–", _mark(q)] for q in evidence.quantities]
    return ["quantity", "measured", "required", "met"], rows


def _mark(quantity: Quantity) -> str:
    if quantity.met is None:
        return ""
    return ("yes" if quantity.met else "no") + (", essential" if quantity.essential else "")


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table of the verdicts, then every claim's evidence."""
    tested = [verdict for verdict in verdicts if verdict.evidence]
    summary = _table(["claim", "text", "verdict"], [[v.claim, v.text, f"**{v.outcome}**"] for v in verdicts])
    note = f"Intervals have a level of {100 * LEVEL:g} %; a requirement must hold for the whole interval."
    return "\n\n".join([summary, *([note] if tested else []), *map(_section, tested)]) + "\n"


def _section(verdict: Verdict) -> str:
    evidence = verdict.evidence
    assert evidence is not None
    facts = [
        f"Profile: {evidence.profile}.",
        f"Test: {evidence.test}. Error rate: at most {100 * evidence.error_rate:.3g} %.",
        *(f"Departure: {departure}." for departure in evidence.departures),
        f"Computed from {', '.join(f'[{source}]({source})' for source in verdict.sources)}.",
    ]
    title = f"## {verdict.claim}: {verdict.outcome}\n\n{verdict.text} ({verdict.where})"
    return "\n\n".join([title, _table(*quantity_cells(evidence)), "\n".join(f"* {fact}" for fact in facts)])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
