"""Verdicts follow from quantities, and quantities from intervals."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sngd.diagnose.interval import Interval
from sngd.paper import verdicts
from sngd.paper.verdicts import (
    IN_PART,
    NOT_REPRODUCED,
    NOT_TESTED,
    REPRODUCED,
    Evidence,
    Quantity,
    Verdict,
    above,
    at_least,
    at_most,
    between,
    error_rate,
    every,
    half,
    never,
    reported,
    share_interval,
)

GOOD, BAD = at_least("good", 2.0, 1), at_least("bad", 0.0, 1)
VITAL, FATAL = at_least("vital", 2.0, 1, essential=True), at_least("fatal", 0.0, 1, essential=True)
CONTEXT = reported("context", 7.0)


def verdict(*quantities):
    return Verdict("C0", "a | b", "§0", Evidence("quick", quantities, "counting", 0.01, ("small",)), ("x/m.json",))


@pytest.mark.parametrize(
    ("quantities", "outcome"),
    [
        ((GOOD, VITAL, CONTEXT), REPRODUCED),
        ((BAD, VITAL, CONTEXT), IN_PART),
        ((BAD, GOOD), IN_PART),
        ((GOOD, FATAL), NOT_REPRODUCED),
        ((BAD, BAD, CONTEXT), NOT_REPRODUCED),
        ((CONTEXT,), NOT_TESTED),
        ((), NOT_TESTED),
    ],
)
def test_the_outcome_follows_from_the_quantities(quantities, outcome):
    assert verdict(*quantities).outcome == outcome


def test_without_evidence_nothing_was_tested():
    assert Verdict("C0", "", "").outcome == NOT_TESTED


@pytest.mark.parametrize(
    ("quantity", "met", "required"),
    [
        (at_least("x", Interval(2, 1, 3), 1), True, "≥ 1"),
        (at_least("x", Interval(2, 0.9, 3), 1), False, "≥ 1"),
        (above("x", Interval(2, 1.1, 3), 1), True, "> 1"),
        (above("x", Interval(2, 1, 3), 1), False, "> 1"),
        (above("x", 1.0, 1), False, "> 1"),
        (at_most("x", Interval(2, 1, 3), 3), True, "≤ 3"),
        (at_most("x", Interval(2, 1, 3.1), 3), False, "≤ 3"),
        (between("x", Interval(2, 1, 3), 1, 3), True, "in [1, 3]"),
        (between("x", Interval(2, 0.9, 3), 1, 3), False, "in [1, 3]"),
        (between("x", Interval(2, 1, 3.1), 1, 3), False, "in [1, 3]"),
        (at_least("x", 1.0, 1), True, "≥ 1"),
        (at_most("x", 1.1, 1), False, "≤ 1"),
        (between("x", 0.0, 1, 3), False, "in [1, 3]"),
        (every("x", 3, 3), True, "all"),
        (every("x", 2, 3), False, "all"),
        (every("x", 0, 0), False, "all"),
        (half("x", 2, 4), True, "half"),
        (half("x", 2, 5), False, "half"),
        (half("x", 0, 0), False, "half"),
        (never("x", 0, 3), True, "none"),
        (never("x", 1, 3), False, "none"),
        (never("x", 0, 0), False, "none"),
        (reported("x", Interval(2, 1, 3)), None, ""),
    ],
)
def test_a_requirement_must_hold_for_the_whole_interval(quantity, met, required):
    assert (quantity.met, quantity.required) == (met, required)


def test_the_share_interval_is_clopper_and_pearsons():
    tail = (1 - verdicts.LEVEL) / 2
    assert share_interval(0, 20) == Interval(0, 0, pytest.approx(1 - tail ** (1 / 20)))
    assert share_interval(20, 20) == Interval(1, pytest.approx(tail ** (1 / 20)), 1)
    value, low, high = share_interval(7, 20)
    assert low < value == 0.35 < high


def test_the_error_rate_is_a_union_bound():
    assert error_rate(4) == pytest.approx(4 * (1 - verdicts.LEVEL))
    assert error_rate(10_000) == 1


@given(st.lists(st.sampled_from([GOOD, BAD, VITAL, FATAL, CONTEXT])))
def test_meeting_one_more_requirement_never_worsens_the_outcome(quantities):
    order = [NOT_REPRODUCED, IN_PART, REPRODUCED]
    worse = verdict(*quantities, BAD).outcome
    better = verdict(*quantities, GOOD).outcome
    assert order.index(better) >= order.index(worse)


def test_json_has_all_that_decides():
    described = json.loads(json.dumps(verdicts.as_json(verdict(VITAL, BAD)), allow_nan=False))
    assert described["outcome"] == IN_PART
    assert described["claim"] == "C0"
    assert described["sources"] == ["x/m.json"]
    assert described["error_rate"] == 0.01
    assert described["departures"] == ["small"]
    assert [(q["name"], q["value"], q["required"], q["met"]) for q in described["quantities"]] == [
        ("vital", 2.0, "≥ 1", True),
        ("bad", 0.0, "≥ 1", False),
    ]
    assert "quantities" not in verdicts.as_json(Verdict("C1", "", ""))


def test_the_table_names_what_decided():
    header, rows = verdicts.cells([verdict(VITAL, BAD, CONTEXT), verdict(VITAL, GOOD), Verdict("C1", "text", "")])
    assert header == ["claim", "text", "verdict", "decided by"]
    assert rows[0] == ["C0", "a | b", IN_PART, "bad: 0, required ≥ 1"]
    assert rows[1][2:] == [REPRODUCED, "vital: 2, required ≥ 1"]
    assert rows[2] == ["C1", "text", NOT_TESTED, ""]


def test_markdown_has_a_summary_and_a_section_for_each_tested_claim():
    text = verdicts.as_markdown([verdict(VITAL, BAD, CONTEXT), Verdict("C1", "later", "")])
    assert "| C0 | a \\| b | **reproduced in part** |" in text
    assert "| C1 | later | **not tested in this profile** |" in text
    assert "## C0: reproduced in part" in text
    assert "## C1" not in text
    assert "| vital | 2 | ≥ 1 | yes, essential |" in text
    assert "| context | 7 | – |  |" in text
    assert "Error rate: at most 1 %." in text
    assert "[x/m.json](x/m.json)" in text


def test_a_quantity_shows_its_interval():
    assert Quantity("x", 0.92, 0.81, 1.014).measured == "0.92 [0.81, 1.01]"
    assert Quantity("x", 0.92).measured == "0.92"
    assert never("x", 1, 12_000).measured == "1 of 12,000"
