"""Verdicts follow from answers, and answers from intervals."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sngd.diagnose.interval import Interval
from sngd.paper import verdicts
from sngd.paper.verdicts import (
    CONTRADICTED,
    NOT_TESTED,
    OPEN,
    SHOWN,
    Evidence,
    Quantity,
    ReadingOutcome,
    Tally,
    Verdict,
    above,
    at_least,
    at_most,
    between,
    error_rate,
    every,
    never,
    reach_of_mean,
    reach_of_share,
    reported,
    share_interval,
    undecided,
)

GOOD, BAD, UNSURE = at_least("good", 2.0, 1), at_least("bad", 0.0, 1), at_least("unsure", Interval(1, 0, 2), 1)
VITAL, FATAL = at_least("vital", 2.0, 1, essential=True), at_least("fatal", 0.0, 1, essential=True)
BY_CHANCE = replace(FATAL, name="by chance", firm=False)
CONTEXT = reported("context", 7.0)


def verdict(*quantities):
    return Verdict("C0", "a | b", "§0", Evidence("quick", quantities, "counting", 0.01, ("small",)), ("x/m.json",))


@pytest.mark.parametrize(
    ("quantities", "outcome", "tally"),
    [
        ((GOOD, VITAL, CONTEXT), SHOWN, (2, 2, 0)),
        ((BAD, VITAL, CONTEXT), OPEN, (2, 1, 1)),
        ((UNSURE, VITAL), OPEN, (2, 1, 0)),
        ((BAD, GOOD), OPEN, (2, 1, 1)),
        ((GOOD, FATAL), CONTRADICTED, (2, 1, 1)),
        ((UNSURE, FATAL), CONTRADICTED, (2, 0, 1)),
        ((GOOD, BY_CHANCE), OPEN, (2, 1, 1)),
        ((BAD, BAD, CONTEXT), OPEN, (2, 0, 2)),
        ((CONTEXT,), NOT_TESTED, (0, 0, 0)),
        ((), NOT_TESTED, (0, 0, 0)),
    ],
)
def test_the_outcome_follows_from_the_answers(quantities, outcome, tally):
    assert (verdict(*quantities).outcome, verdict(*quantities).tally) == (outcome, tally)


def test_without_evidence_nothing_was_tested():
    assert Verdict("C0", "", "").outcome == NOT_TESTED


@pytest.mark.parametrize(
    ("quantity", "answer", "required"),
    [
        (at_least("x", Interval(2, 1, 3), 1), SHOWN, "≥ 1"),
        (at_least("x", Interval(2, 0.9, 3), 1), OPEN, "≥ 1"),
        (at_least("x", Interval(0, -1, 1), 1), OPEN, "≥ 1"),
        (at_least("x", Interval(0, -1, 0.9), 1), CONTRADICTED, "≥ 1"),
        (above("x", Interval(2, 1.1, 3), 1), SHOWN, "> 1"),
        (above("x", Interval(2, 1, 3), 1), OPEN, "> 1"),
        (above("x", Interval(1, 1, 1), 1), OPEN, "> 1"),
        (above("x", Interval(0, -1, 0.9), 1), CONTRADICTED, "> 1"),
        (above("x", Interval(math.nan, math.nan, math.nan), 1), OPEN, "> 1"),
        (above("x", 1.0, 1), CONTRADICTED, "> 1"),
        (at_most("x", Interval(2, 1, 3), 3), SHOWN, "≤ 3"),
        (at_most("x", Interval(2, 1, 3.1), 3), OPEN, "≤ 3"),
        (at_most("x", Interval(4, 3.1, 5), 3), CONTRADICTED, "≤ 3"),
        (between("x", Interval(2, 1, 3), 1, 3), SHOWN, "in [1, 3]"),
        (between("x", Interval(2, 0.9, 3), 1, 3), OPEN, "in [1, 3]"),
        (between("x", Interval(2, 1, 3.1), 1, 3), OPEN, "in [1, 3]"),
        (between("x", Interval(0, -1, 0.9), 1, 3), CONTRADICTED, "in [1, 3]"),
        (between("x", Interval(4, 3.1, 5), 1, 3), CONTRADICTED, "in [1, 3]"),
        (at_least("x", 1.0, 1), SHOWN, "≥ 1"),
        (at_most("x", 1.1, 1), CONTRADICTED, "≤ 1"),
        (between("x", 0.0, 1, 3), CONTRADICTED, "in [1, 3]"),
        (every("x", 3, 3), SHOWN, "all"),
        (every("x", 2, 3), CONTRADICTED, "all"),
        (every("x", 0, 0), OPEN, "all"),
        (never("x", 0, 3), SHOWN, "none"),
        (never("x", 1, 3), CONTRADICTED, "none"),
        (never("x", 0, 0), OPEN, "none"),
        (undecided("x", 5.0, "> 1, over several seeds"), OPEN, "> 1, over several seeds"),
        (reported("x", Interval(2, 1, 3)), None, ""),
    ],
)
def test_an_answer_is_of_the_whole_interval(quantity, answer, required):
    assert (quantity.answer, quantity.required) == (answer, required)


@pytest.mark.parametrize(
    ("quantity", "seen"),
    [
        (above("x", 2.0, 1, reach=0.5), "≥ 1.5"),
        (at_least("x", 2.0, 1, reach=0.5), "≥ 1.5"),
        (at_most("x", 2.0, 1, reach=0.5), "≤ 0.5"),
        (between("x", 2.0, 1, 3, reach=0.5), "in [1.5, 2.5]"),
        (between("x", 2.0, 1, 3, reach=1.5), "never"),
        (above("x", 2.0, 1), ""),
        (every("x", 3, 3), ""),
    ],
)
def test_what_would_be_shown_lies_beyond_the_limit(quantity, seen):
    assert quantity.seen == seen


def test_the_reach_of_a_mean_is_in_standard_errors():
    """The factor for 95 % and n = 3 is 5.653: 4.303, Student's quantile, and more for the deviation that is unknown."""
    assert reach_of_mean([1.0, 2.0, 3.0], 0.95) == pytest.approx(5.6535 / math.sqrt(3), rel=1e-4)
    normal = 1.959964 + 0.841621
    assert verdicts.noncentrality(10_000, 0.95) == pytest.approx(normal, rel=1e-3)


def test_the_reach_of_a_share():
    assert reach_of_share(3, 0.5) is None
    far = 0.5 + reach_of_share(100, 0.5)
    least = next(hits for hits in range(101) if share_interval(hits, 100).low >= 0.5)
    chance = sum(math.comb(100, hits) * far**hits * (1 - far) ** (100 - hits) for hits in range(least, 101))
    assert chance == pytest.approx(0.8)


def test_the_share_interval_is_clopper_and_pearsons():
    tail = (1 - verdicts.LEVEL) / 2
    assert share_interval(0, 20) == Interval(0, 0, pytest.approx(1 - tail ** (1 / 20)))
    assert share_interval(20, 20) == Interval(1, pytest.approx(tail ** (1 / 20)), 1)
    value, low, high = share_interval(7, 20)
    assert low < value == 0.35 < high


def test_the_error_rate_is_a_union_bound():
    assert error_rate(4) == pytest.approx(4 * (1 - verdicts.LEVEL))
    assert error_rate(10_000) == 1


@given(st.lists(st.sampled_from([GOOD, BAD, UNSURE, VITAL, FATAL, BY_CHANCE, CONTEXT])))
def test_a_better_answer_never_worsens_the_outcome(quantities):
    order = [CONTRADICTED, OPEN, SHOWN]
    ranks = [order.index(verdict(*quantities, last).outcome) for last in (FATAL, UNSURE, GOOD)]
    assert ranks == sorted(ranks)


def test_json_has_all_that_decides():
    base = verdict(VITAL, BAD)
    first = ReadingOutcome("first", OPEN, Tally(2, 1, 1))
    described = json.loads(json.dumps(verdicts.as_json(replace(base, countings=(first,))), allow_nan=False))
    assert described["outcome"] == OPEN
    assert described["tally"] == {"of": 2, "shown": 1, "contradicted": 1}
    assert described["countings"] == [{"name": "first", "outcome": OPEN, "tally": described["tally"], "changed": []}]
    assert described["readings"] == []
    assert described["claim"] == "C0"
    assert described["sources"] == ["x/m.json"]
    assert described["error_rate"] == 0.01
    assert described["departures"] == ["small"]
    assert [(q["name"], q["value"], q["required"], q["answer"]) for q in described["quantities"]] == [
        ("vital", 2.0, "≥ 1", SHOWN),
        ("bad", 0.0, "≥ 1", CONTRADICTED),
    ]
    assert "quantities" not in verdicts.as_json(Verdict("C1", "", ""))


def test_the_table_names_what_decided():
    made = [verdict(VITAL, BAD, UNSURE), verdict(VITAL, UNSURE), verdict(VITAL, GOOD), Verdict("C1", "text", "")]
    header, rows = verdicts.cells(made)
    assert header == ["claim", "text", "verdict", "of what it requires", "decided by"]
    assert rows[0] == ["C0", "a | b", OPEN, "1 of 3 shown, 1 contradicted", "bad: 0, required ≥ 1"]
    assert rows[1][2:] == [OPEN, "1 of 2 shown", "unsure: 1 [0, 2], required ≥ 1"]
    assert rows[2][2:] == [SHOWN, "2 of 2 shown", "vital: 2, required ≥ 1"]
    assert rows[3][2:] == [NOT_TESTED, "", ""]


def test_markdown_has_a_summary_and_a_section_for_each_tested_claim():
    evidence = Evidence("quick", (VITAL, BAD, BY_CHANCE, CONTEXT), "counting", 0.01, ("small",), ("nothing of y",))
    tested = replace(verdict(), evidence=evidence)
    text = verdicts.as_markdown([tested, Verdict("C1", "later", "")])
    assert "| C0 | a \\| b | **open** | 1 of 3 shown, 2 contradicted |" in text
    assert "| C1 | later | **not tested in this profile** |  |" in text
    assert "## C0: open (1 of 3 shown, 2 contradicted)" in text
    assert "## C1" not in text
    assert "| vital | 2 | ≥ 1 | shown, essential |  |" in text
    assert "| bad | 0 | ≥ 1 | contradicted |  |" in text
    assert "| by chance | 0 | ≥ 1 | contradicted, essential, if it were the only one |  |" in text
    assert "| context | 7 | – |  |  |" in text
    assert "Error rate: at most 1 %." in text
    assert "* Departure: small.\n* Exempt: nothing of y." in text
    assert "[x/m.json](x/m.json)" in text


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        (
            ((SHOWN, CONTRADICTED), (CONTRADICTED, SHOWN)),
            "No way of counting gives C1 and C2 together: each contradicts one of them.",
        ),
        (
            ((SHOWN, OPEN), (CONTRADICTED, SHOWN)),
            "No way of counting shows C1 and C2 together, and this is open if it is: once.",
        ),
        (((SHOWN, SHOWN), (OPEN, SHOWN)), "C1 and C2 are shown together if it is: once."),
    ],
)
def test_ways_of_counting_are_compared(outcomes, sentence):
    tally = Tally(1, 1, 0)
    made = [
        replace(
            verdict(VITAL), claim=claim, countings=(ReadingOutcome("all", a, tally), ReadingOutcome("once", b, tally))
        )
        for claim, (a, b) in zip(("C1", "C2"), outcomes, strict=True)
    ]
    text = verdicts.as_markdown([*made, verdict(VITAL)])
    assert "| claim | all | once |\n" in text
    assert f"| C1 | {outcomes[0][0]} (1 of 1 shown) | {outcomes[0][1]} (1 of 1 shown) |" in text
    assert f"\n\n{sentence}\n\n" in text
    assert "| C0 |" not in text.split("| claim | all | once |")[1].split(sentence)[0]


def test_a_quantity_shows_its_interval():
    assert Quantity("x", 0.92, 0.81, 1.014).measured == "0.92 [0.81, 1.01]"
    assert Quantity("x", 0.92).measured == "0.92"
    assert never("x", 1, 12_000).measured == "1 of 12,000"
