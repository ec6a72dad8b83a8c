"""Verdicts on the paper's claims, computed from measurements.

A study's judge turns measurements into ``Evidence``: quantities, each with its interval and with the claim's
requirement. The claim's ``Verdict`` is then

* *reproduced* if every requirement is met,
* *not reproduced* if an essential requirement fails, or if none is met,
* *reproduced in part* otherwise, and
* *not tested in this profile* if there is no evidence, or none that requires anything.

A requirement is met only if the whole interval meets it.

Where the paper can be read in several ways, the verdict also has the outcome under each of the other readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, NotRequired, TypedDict, cast

from sngd.diagnose.interval import Interval
from sngd.studies.markdown import markdown_table

REPRODUCED = "reproduced"
IN_PART = "reproduced in part"
NOT_REPRODUCED = "not reproduced"
NOT_TESTED = "not tested in this profile"

LEVEL = 0.999  # of intervals, unless a study has another; it is high because a dozen must hold together


@dataclass(frozen=True)
class Quantity:
    """A measured number and what the claim requires of it; made by the functions below.

    ``low`` and ``high`` are the ends of its interval, None for a number without one. A count has the number
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
    """A study's quantities on a claim.

    ``error_rate`` bounds the probability that any of the intervals and comparisons misses the truth. If ``test`` says
    so, it bounds the probability that a false claim counts as reproduced instead. ``departures`` are differences from
    the paper's setting, and limits of the study.
    """

    profile: str
    quantities: tuple[Quantity, ...]
    test: str
    error_rate: float
    departures: tuple[str, ...] = ()


class ReadingOutcome(NamedTuple):
    """The claim's outcome under a reading of the paper.

    ``changed`` names the quantities whose requirement is met under this reading and not under the first, or the other
    way round.
    """

    name: str
    outcome: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A claim ("C9"), its text and its place in the paper, the evidence, and the files that it was computed from.

    ``readings`` were all run at one size, which may differ from the evidence's. The first is the reading of the
    evidence, and the others are compared with it.
    """

    claim: str
    text: str
    where: str
    evidence: Evidence | None = None
    sources: tuple[str, ...] = ()
    readings: tuple[ReadingOutcome, ...] = ()

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

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The readings under which the outcome is another than under the first."""
        return tuple(reading.name for reading in self.readings if reading.outcome != self.readings[0].outcome)


# ---- intervals -----------------------------------------------------------------------------------------------


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


def half(name: str, hits: int, n: int, *, essential: bool = False) -> Quantity:
    """At least half of ``n`` trials must be hits; without a trial it is not met."""
    return Quantity(name, hits, required="half", met=n <= 2 * hits > 0, essential=essential, of=n)


def never(name: str, hits: int, n: int, *, essential: bool = False) -> Quantity:
    """None of ``n`` trials may be a hit; without a trial it is not met."""
    return Quantity(name, hits, required="none", met=hits == 0 < n, essential=essential, of=n)


def _ends(measured: Interval | float) -> tuple[float, float | None, float | None]:
    if isinstance(measured, Interval):
        return measured.value, measured.low, measured.high
    return measured, None, None


# ---- shown ---------------------------------------------------------------------------------------------------


class ReadingEntry(TypedDict):
    """A ``ReadingOutcome`` in JSON."""

    name: str
    outcome: str
    changed: tuple[str, ...]


class QuantityEntry(TypedDict):
    """A ``Quantity`` in JSON."""

    name: str
    value: float
    low: float | None
    high: float | None
    required: str
    met: bool | None
    essential: bool
    of: int | None


class VerdictEntry(TypedDict):
    """A ``Verdict`` in JSON; what is not required is there if there is evidence."""

    claim: str
    text: str
    where: str
    outcome: str
    sources: list[str]
    readings: list[ReadingEntry]
    profile: NotRequired[str]
    quantities: NotRequired[tuple[QuantityEntry, ...]]
    test: NotRequired[str]
    error_rate: NotRequired[float]
    departures: NotRequired[tuple[str, ...]]


def as_json(verdict: Verdict) -> VerdictEntry:
    """The verdict as plain dicts, sequences, strings and numbers."""
    head = {"claim": verdict.claim, "text": verdict.text, "where": verdict.where, "outcome": verdict.outcome}
    evidence = asdict(verdict.evidence) if verdict.evidence else {}
    readings = [reading._asdict() for reading in verdict.readings]
    return cast(VerdictEntry, {**head, "sources": list(verdict.sources), "readings": readings, **evidence})


def cells(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """One row for each claim: header and cells, ready for a terminal or Markdown."""
    rows = [[v.claim, v.text, v.outcome, "; ".join(map(_requirement_text, _decisive_quantities(v)))] for v in verdicts]
    return ["claim", "text", "verdict", "decided by"], rows


def _decisive_quantities(verdict: Verdict) -> list[Quantity]:
    """The failures if there are any, else the essential requirements."""
    quantities = verdict.evidence.quantities if verdict.evidence else ()
    return [q for q in quantities if q.met is False] or [q for q in quantities if q.essential]


def _requirement_text(quantity: Quantity) -> str:
    return f"{quantity.name}: {quantity.measured}, required {quantity.required}"


def quantity_cells(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """One row for each quantity: header and cells."""
    rows = [[q.name, q.measured, q.required or "–", _met_text(q)] for q in evidence.quantities]
    return ["quantity", "measured", "required", "met"], rows


def _met_text(quantity: Quantity) -> str:
    if quantity.met is None:
        return ""
    return ("yes" if quantity.met else "no") + (", essential" if quantity.essential else "")


def reading_cells(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """One row for each claim that was judged under several readings, a column a reading: header and cells."""
    several = [verdict for verdict in verdicts if len(verdict.readings) > 1]
    names = list(dict.fromkeys(reading.name for verdict in several for reading in verdict.readings))
    rows = []
    for verdict in several:
        outcomes = {reading.name: _outcome_text(reading) for reading in verdict.readings}
        depends = f"depends on: {', '.join(verdict.depends_on)}" if verdict.depends_on else "does not depend on them"
        rows.append([verdict.claim, *(outcomes.get(name, "–") for name in names), depends])
    return ["claim", *names, "the verdict"], rows


def _outcome_text(reading: ReadingOutcome) -> str:
    return reading.outcome + (f" ({len(reading.changed)} changed)" if reading.changed else "")


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table of the verdicts, one of the readings if there are any, then every claim's evidence."""
    tested = [verdict for verdict in verdicts if verdict.evidence]
    summary = _table(["claim", "text", "verdict"], [[v.claim, v.text, f"**{v.outcome}**"] for v in verdicts])
    level = f"Intervals have a level of {100 * LEVEL:g} % unless the test says another"
    note = f"{level}; a requirement must hold for the whole interval."
    readings = reading_cells(verdicts)
    parts = [summary, *([_READINGS, _table(*readings)] if readings[1] else []), *([note] if tested else [])]
    return "\n\n".join([*parts, *map(_section, tested)]) + "\n"


_READINGS = (
    "Where the paper can be read in several ways, the same claims were judged under each reading, with runs of one "
    "(reduced) size. Changed are requirements that are met under one reading and not under the first, which is the "
    "figures'; – means that the reading changes nothing that the claim is judged by."
)


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
    return markdown_table(header, rows, text_columns=len(header))
