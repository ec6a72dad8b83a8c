"""Verdicts on the paper's claims, computed from measurements.

A study's judge turns measurements into ``Evidence``: quantities, each with its interval and with the claim's
requirement. A requirement has one of three answers. It is

* *shown* if the whole interval lies on the claimed side,
* *contradicted* if the whole interval lies on the other side,
* *open* if the interval holds both, or if there is too little to judge by.

A count of all trials has no interval: it is shown if it is as required, and contradicted by one exception.

A claim's ``Verdict`` follows from the answers to what it requires. The claim is

* *shown* if every requirement is shown,
* *contradicted* if an essential requirement is contradicted. Where several comparisons are essential, one of them lies
  on the other side by chance more easily than a single one would. So the claim is contradicted only if a comparison is
  still on the other side when its interval is widened to allow for their number (``Quantity.firm``),
* *open* otherwise, even if a part of it is shown: the ``Tally`` says how much,
* *not tested in this profile* if there is no evidence, or none that requires anything.

A requirement also states the least effect that would have been shown with probability ``POWER``, given the number of
seeds, their measured spread and the test. What is open and has a large such number was measured too coarsely.

Where the paper can be read in several ways, the verdict also has the outcome under each of the other readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import sqrt
from statistics import stdev
from typing import Literal, NamedTuple, NotRequired, TypedDict, cast

from sngd.diagnose.interval import Interval, student_t
from sngd.studies.markdown import markdown_table

Answer = Literal["shown", "contradicted", "open"]
SHOWN: Answer = "shown"
CONTRADICTED: Answer = "contradicted"
OPEN: Answer = "open"
NOT_TESTED = "not tested in this profile"

LEVEL = 0.999  # of intervals, unless a study has another; it is high because a dozen must hold together
POWER = 0.8  # the probability with which the least effect stated would have been shown


@dataclass(frozen=True)
class Quantity:
    """A measured number and what the claim requires of it; made by the functions below.

    ``low`` and ``high`` are the ends of its interval, None for a number without one. A count has the number
    of trials, ``of``. ``required`` is empty and ``answer`` None for what is reported as context only.

    ``seen_from`` and ``seen_to``: if the truth is in this range, the requirement is shown with probability ``POWER``.
    None for an end that the requirement does not limit, and both for what has no such number, such as a count.

    ``firm``: a contradiction of it contradicts the claim, if it is essential. False if it no longer is a contradiction
    when the interval is widened to allow for the number of comparisons.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    required: str = ""
    answer: Answer | None = None
    essential: bool = False
    of: int | None = None
    seen_from: float | None = None
    seen_to: float | None = None
    firm: bool = True

    @property
    def measured(self) -> str:
        """``0.92 [0.81, 1.01]``, or ``3 of 4``."""
        if self.of is not None:
            return f"{self.value:,.0f} of {self.of:,}"
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.3g}, {self.high:.3g}]"

    @property
    def seen(self) -> str:
        """``≥ 0.31``, ``in [1.8, 2.2]``, ``never``, or nothing: where the truth would be shown to be as required."""
        if self.seen_from is not None and self.seen_to is not None:
            within = self.seen_from <= self.seen_to
            return f"in [{self.seen_from:.3g}, {self.seen_to:.3g}]" if within else "never"
        if self.seen_from is not None:
            return f"≥ {self.seen_from:.3g}"
        return "" if self.seen_to is None else f"≤ {self.seen_to:.3g}"


class Tally(NamedTuple):
    """How many requirements there are, and how many of them are shown and contradicted; the rest is open."""

    of: int
    shown: int
    contradicted: int

    def __str__(self) -> str:
        """``12 of 16 shown, 1 contradicted``."""
        return f"{self.shown} of {self.of} shown" + (f", {self.contradicted} contradicted" * (self.contradicted > 0))


@dataclass(frozen=True)
class Evidence:
    """A study's quantities on a claim.

    ``error_rate`` bounds the probability that any of the intervals and comparisons misses the truth. If ``test`` says
    so, it bounds the probability of a wrong verdict instead. ``departures`` are differences from the paper's setting,
    and limits of the study. ``exempt`` says of which measured quantities nothing is required, although the claim could
    be taken to require it, and why.
    """

    profile: str
    quantities: tuple[Quantity, ...]
    test: str
    error_rate: float
    departures: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()


class ReadingOutcome(NamedTuple):
    """The claim's outcome under a reading of the paper; ``changed`` names the quantities with another answer than under
    the first reading.
    """

    name: str
    outcome: str
    tally: Tally
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A claim ("C9"), its text and its place in the paper, the evidence, and the files that it was computed from.

    ``readings`` were all run at one size, which may differ from the evidence's. The first is the reading of the
    evidence, and the others are compared with it. ``countings`` are the same for ways to count gradients; all come from
    the runs of the evidence.
    """

    claim: str
    text: str
    where: str
    evidence: Evidence | None = None
    sources: tuple[str, ...] = ()
    readings: tuple[ReadingOutcome, ...] = ()
    countings: tuple[ReadingOutcome, ...] = ()

    @property
    def required(self) -> list[Quantity]:
        """The quantities of which something is required."""
        return [q for q in self.evidence.quantities if q.answer] if self.evidence else []

    @property
    def outcome(self) -> str:
        required = self.required
        if not required:
            return NOT_TESTED
        if all(q.answer == SHOWN for q in required):
            return SHOWN
        return CONTRADICTED if any(q.answer == CONTRADICTED and q.essential and q.firm for q in required) else OPEN

    @property
    def tally(self) -> Tally:
        answers = [q.answer for q in self.required]
        return Tally(len(answers), answers.count(SHOWN), answers.count(CONTRADICTED))

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


# ---- power ---------------------------------------------------------------------------------------------------


def reach_of_mean(values: Sequence[float], level: float = LEVEL) -> float:
    """How far the true mean must lie from a limit for ``mean_interval`` to keep clear of it with probability ``POWER``.

    For n normal values with deviation σ this is δσ/√n with P(T > t) = ``POWER``, where t is the interval's quantile and
    T has the noncentral t distribution with n − 1 degrees of freedom and noncentrality δ. The deviation of the
    ``values``, of which there must be at least two, stands for σ; with few of them it is uncertain itself.
    """
    return noncentrality(len(values) - 1, level) * stdev(values) / sqrt(len(values))


@lru_cache
def noncentrality(dof: int, level: float) -> float:
    """δ of ``reach_of_mean``: the distance in standard errors, for ``dof`` ≥ 1 degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.stats import nct

    t = student_t(dof, level)
    return float(brentq(lambda delta: nct.sf(t, dof, delta) - POWER, 0, 4 * t + 10))


def reach_of_share(n: int, limit: float) -> float | None:
    """How far above ``limit`` a probability must be for ``share_interval`` of ``n`` trials to be at least ``limit``
    with probability ``POWER``; None if no outcome of so few trials shows that."""
    from scipy.stats import beta

    least = next((hits for hits in range(1, n + 1) if share_interval(hits, n).low >= limit), None)
    return None if least is None else float(beta.ppf(POWER, least, n - least + 1)) - limit


# ---- quantities ----------------------------------------------------------------------------------------------
#
# ``reach`` is how far the truth must be from the limit for the requirement to be shown with probability ``POWER``, in
# the quantity's own units; None if that is not known.


def reported(name: str, measured: Interval | float, of: int | None = None) -> Quantity:
    """Nothing is required of it; ``of`` makes it a count."""
    value, low, high = _ends(measured)
    return Quantity(name, value, low, high, of=of)


def above(
    name: str, measured: Interval | float, limit: float, *, essential: bool = False, reach: float | None = None
) -> Quantity:
    """The number must be greater than ``limit``."""
    value, low, high = _ends(measured)
    answer = _answer(measured, lambda x: x > limit, lambda x: x < limit)
    seen = None if reach is None else limit + reach
    return Quantity(name, value, low, high, f"> {limit:g}", answer, essential, seen_from=seen)


def at_least(
    name: str, measured: Interval | float, limit: float, *, essential: bool = False, reach: float | None = None
) -> Quantity:
    """The number must be at least ``limit``."""
    value, low, high = _ends(measured)
    answer = _answer(measured, lambda x: x >= limit, lambda x: x < limit)
    seen = None if reach is None else limit + reach
    return Quantity(name, value, low, high, f"≥ {limit:g}", answer, essential, seen_from=seen)


def at_most(
    name: str, measured: Interval | float, limit: float, *, essential: bool = False, reach: float | None = None
) -> Quantity:
    """The number must be at most ``limit``."""
    value, low, high = _ends(measured)
    answer = _answer(measured, lambda x: x <= limit, lambda x: x > limit)
    seen = None if reach is None else limit - reach
    return Quantity(name, value, low, high, f"≤ {limit:g}", answer, essential, seen_to=seen)


def _answer(
    measured: Interval | float, as_claimed: Callable[[float], bool], on_the_other_side: Callable[[float], bool]
) -> Answer:
    """Of an interval and a half-line; the limit itself is on neither side if the half-line does not include it."""
    if not isinstance(measured, Interval):
        return SHOWN if as_claimed(measured) else CONTRADICTED
    ends = (measured.low, measured.high)
    return SHOWN if all(map(as_claimed, ends)) else CONTRADICTED if all(map(on_the_other_side, ends)) else OPEN


def between(
    name: str,
    measured: Interval | float,
    least: float,
    most: float,
    *,
    essential: bool = False,
    reach: float | None = None,
) -> Quantity:
    """The number must lie in [``least``, ``most``]."""
    value, low, high = _ends(measured)
    bottom, top = value if low is None else low, value if high is None else high
    inside, outside = least <= bottom and top <= most, top < least or bottom > most
    answer = SHOWN if inside else CONTRADICTED if outside else OPEN
    seen = (None, None) if reach is None else (least + reach, most - reach)
    return Quantity(name, value, low, high, f"in [{least:g}, {most:g}]", answer, essential, None, *seen)


def every(name: str, hits: int, n: int, *, essential: bool = False) -> Quantity:
    """All of ``n`` trials must be hits; without a trial it is open."""
    answer = OPEN if n == 0 else SHOWN if hits == n else CONTRADICTED
    return Quantity(name, hits, required="all", answer=answer, essential=essential, of=n)


def never(name: str, hits: int, n: int, *, essential: bool = False) -> Quantity:
    """None of ``n`` trials may be a hit; without a trial it is open."""
    answer = OPEN if n == 0 else SHOWN if hits == 0 else CONTRADICTED
    return Quantity(name, hits, required="none", answer=answer, essential=essential, of=n)


def undecided(name: str, measured: Interval | float, required: str, of: int | None = None) -> Quantity:
    """Something is required that these measurements are too few to judge by; ``required`` says how many it takes."""
    value, low, high = _ends(measured)
    return Quantity(name, value, low, high, required, OPEN, essential=True, of=of)


def _ends(measured: Interval | float) -> tuple[float, float | None, float | None]:
    if isinstance(measured, Interval):
        return measured.value, measured.low, measured.high
    return measured, None, None


# ---- shown ---------------------------------------------------------------------------------------------------


class TallyEntry(TypedDict):
    """A ``Tally`` in JSON."""

    of: int
    shown: int
    contradicted: int


class ReadingEntry(TypedDict):
    """A ``ReadingOutcome`` in JSON."""

    name: str
    outcome: str
    tally: TallyEntry
    changed: tuple[str, ...]


class QuantityEntry(TypedDict):
    """A ``Quantity`` in JSON."""

    name: str
    value: float
    low: float | None
    high: float | None
    required: str
    answer: Answer | None
    essential: bool
    of: int | None
    seen_from: float | None
    seen_to: float | None
    firm: bool


class VerdictEntry(TypedDict):
    """A ``Verdict`` in JSON; what is not required is there if there is evidence."""

    claim: str
    text: str
    where: str
    outcome: str
    tally: TallyEntry
    sources: list[str]
    readings: list[ReadingEntry]
    countings: list[ReadingEntry]
    profile: NotRequired[str]
    quantities: NotRequired[tuple[QuantityEntry, ...]]
    test: NotRequired[str]
    error_rate: NotRequired[float]
    departures: NotRequired[tuple[str, ...]]
    exempt: NotRequired[tuple[str, ...]]


def as_json(verdict: Verdict) -> VerdictEntry:
    """The verdict as plain dicts, sequences, strings and numbers."""
    head = {"claim": verdict.claim, "text": verdict.text, "where": verdict.where, "outcome": verdict.outcome}
    evidence = asdict(verdict.evidence) if verdict.evidence else {}
    made: dict[str, object] = {"tally": verdict.tally._asdict(), "sources": list(verdict.sources)}
    for key, readings in (("readings", verdict.readings), ("countings", verdict.countings)):
        made[key] = [{**reading._asdict(), "tally": reading.tally._asdict()} for reading in readings]
    return cast(VerdictEntry, {**head, **made, **evidence})


def cells(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """One row for each claim: header and cells, ready for a terminal or Markdown."""
    rows = [[*_summary(v), "; ".join(map(_requirement_text, _decisive_quantities(v)))] for v in verdicts]
    return ["claim", "text", "verdict", "of what it requires", "decided by"], rows


def _summary(verdict: Verdict) -> list[str]:
    return [verdict.claim, verdict.text, verdict.outcome, str(verdict.tally) if verdict.required else ""]


def _decisive_quantities(verdict: Verdict) -> list[Quantity]:
    """What is contradicted if anything is, else what is open, else the essential requirements."""
    required = verdict.required
    for answer in (CONTRADICTED, OPEN):
        if found := [q for q in required if q.answer == answer]:
            return found
    return [q for q in required if q.essential]


def _requirement_text(quantity: Quantity) -> str:
    return f"{quantity.name}: {quantity.measured}, required {quantity.required}"


def quantity_cells(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """One row for each quantity: header and cells."""
    rows = [[q.name, q.measured, q.required or "–", _answer_text(q), q.seen] for q in evidence.quantities]
    return ["quantity", "measured", "required", "answer", f"would be shown (power {POWER:g})"], rows


def _answer_text(quantity: Quantity) -> str:
    if quantity.answer is None:
        return ""
    weak = quantity.answer == CONTRADICTED and not quantity.firm
    return quantity.answer + (", essential" * quantity.essential) + (", if it were the only one" * weak)


def reading_cells(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """One row for each claim that was judged under several readings, a column a reading: header and cells."""
    several = [verdict for verdict in verdicts if len(verdict.readings) > 1]
    header, rows = _outcome_cells({verdict.claim: verdict.readings for verdict in several})
    for verdict, row in zip(several, rows, strict=True):
        row.append(f"depends on: {', '.join(verdict.depends_on)}" if verdict.depends_on else "does not depend on them")
    return [*header, "the verdict"], rows


def counting_cells(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """One row for each claim that was judged under several ways to count gradients, a column a way."""
    return _outcome_cells({verdict.claim: verdict.countings for verdict in verdicts if verdict.countings})


def _outcome_cells(by_claim: dict[str, tuple[ReadingOutcome, ...]]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(reading.name for readings in by_claim.values() for reading in readings))
    rows = []
    for claim, readings in by_claim.items():
        outcomes = {reading.name: f"{reading.outcome} ({reading.tally})" for reading in readings}
        rows.append([claim, *(outcomes.get(name, "–") for name in names)])
    return ["claim", *names], rows


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table of the verdicts, tables of the countings and readings if there are any, then every claim's evidence."""
    tested = [verdict for verdict in verdicts if verdict.evidence]
    rows = [[claim, text, f"**{outcome}**", tally] for claim, text, outcome, tally in map(_summary, verdicts)]
    summary = _table(["claim", "text", "verdict", "of what it requires"], rows)
    note = _NOTE.format(level=100 * LEVEL, power=POWER)
    countings, readings = counting_cells(verdicts), reading_cells(verdicts)
    parts = [
        summary,
        *([note] if tested else []),
        *([_COUNTINGS, _table(*countings), _shown_together(verdicts)] if countings[1] else []),
        *([_READINGS, _table(*readings)] if readings[1] else []),
    ]
    return "\n\n".join([*parts, *map(_section, tested)]) + "\n"


def _shown_together(verdicts: Sequence[Verdict]) -> str:
    """Whether a way of counting gives all the claims that depend on it: shown, contradicted or open, as a claim is."""
    counted = {verdict.claim: verdict.countings for verdict in verdicts if verdict.countings}
    claims = " and ".join(counted)
    outcomes: dict[str, list[str]] = {}
    for readings in counted.values():
        for reading in readings:
            outcomes.setdefault(reading.name, []).append(reading.outcome)
    ways = [way for way, found in outcomes.items() if found.count(SHOWN) == len(counted)]
    undecided = [way for way, found in outcomes.items() if CONTRADICTED not in found and way not in ways]
    if ways:
        return f"{claims} are shown together if it is: {'; '.join(ways)}."
    if undecided:
        return f"No way of counting shows {claims} together, and this is open if it is: {'; '.join(undecided)}."
    return f"No way of counting gives {claims} together: each contradicts one of them."


_NOTE = (
    "A requirement is *shown* if its whole interval lies on the claimed side, *contradicted* if the whole interval "
    "lies on the other side, and *open* if it holds both. A claim is *shown* if everything that it requires is shown, "
    "*contradicted* if an essential requirement is contradicted, and *open* otherwise. Intervals have a level of "
    "{level:g} % unless the test says another. The last column of each table says for which true values the "
    "requirement would have been shown with power {power:g}, given the number of seeds, their measured spread and the "
    "test, and enough evaluations where the requirement says how many. Counts have no interval and no such number: one "
    "exception contradicts them."
)
_COUNTINGS = (
    "The paper does not say how SPIDER-SFO's gradients are counted: every evaluation; the two evaluations of a "
    "sample's difference as one; or b samples a step, whatever the step evaluates. The same runs were judged under "
    "each way, all methods at the budget that SPIDER-SFO's runs have by it. By the second and the third way this is "
    "less than the figure's. Where a column says so, other runs last to the end of the figure's axis by that way."
)
_READINGS = (
    "Where the paper can be read in several ways otherwise, the same claims were judged under each reading, the "
    "figures' own among them, with runs of one size and the same seeds; – means that the reading changes nothing that "
    "the claim is judged by."
)


def _section(verdict: Verdict) -> str:
    evidence = verdict.evidence
    assert evidence is not None
    facts = [
        f"Profile: {evidence.profile}.",
        f"Test: {evidence.test}. Error rate: at most {100 * evidence.error_rate:.3g} %.",
        *(f"Departure: {departure}." for departure in evidence.departures),
        *(f"Exempt: {exemption}." for exemption in evidence.exempt),
        f"Computed from {', '.join(f'[{source}]({source})' for source in verdict.sources)}.",
    ]
    tally = f" ({verdict.tally})" if verdict.required else ""
    title = f"## {verdict.claim}: {verdict.outcome}{tally}\n\n{verdict.text} ({verdict.where})"
    return "\n\n".join([title, _table(*quantity_cells(evidence)), "\n".join(f"* {fact}" for fact in facts)])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, rows, text_columns=len(header))
