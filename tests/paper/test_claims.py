"""The table of claims, the judges of C7 and C8, and ``reproduce_claims``, which measures only what is missing."""

import copy
import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from sngd.paper import claims, reproduce
from sngd.paper.claims import CLAIMS, judge, reproduce_claims
from sngd.paper.closed_form.conformance import judge as judge_bounds
from sngd.paper.closed_form.escape import judge as judge_escape
from sngd.paper.reproduce import FIGURES, Figure, RunFigure
from sngd.paper.verdicts import (
    CONTRADICTED,
    NOT_TESTED,
    OPEN,
    SHOWN,
    Evidence,
    ReadingOutcome,
    Tally,
    Verdict,
    at_least,
)
from sngd.studies.execution.execution import Execution

RESULTS = Path(__file__).parents[2] / "results" / "small"
FIG1 = RESULTS / "fig1" / "measurements.json"
PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"


def test_the_table_is_complete_and_every_figure_exists():
    assert list(CLAIMS) == [f"C{number}" for number in range(1, 16)]
    for claim in CLAIMS.values():
        assert claim.figures
        assert set(claim.figures) <= set(FIGURES)
    assert {claims.ALTERNATIVES, claims.COUNTING} <= set(FIGURES)


def test_every_judge_takes_what_its_figures_measure():
    for claim in CLAIMS.values():
        hints = get_type_hints(claim.judge)
        assert hints.pop("return") is Evidence
        assert list(hints.values()) == [FIGURES[figure].schema for figure in claim.figures], claim.name


# ---- C7 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checked():
    family = {"instances": 20, "steps": 1000, "lemma_violations": 0, "outside": 0, "caught": 19, "caught_by_theorem": 9}
    comparisons = {"mean": [0.2] * 5, "bound": [0.4] * 5, "violated": []}
    names = ("quadratic", "saddle", "exponential", "network")
    families = {name: {**family, "runs": {"sngd": comparisons}} for name in names}
    return copy.deepcopy({"profile": "quick", "seeds": 8, "error_rate": 1e-3, "families": families})


@pytest.fixture
def scaled():
    arrived = {"slope": -3.9, "low": -4.1, "high": -3.7, "theory": -4.0, "planned_slope": -4.0}
    lost = {"slope": None, "low": None, "high": None, "theory": -3.0, "planned_slope": -3.0}
    return {"level": 0.95, "problems": {"quadratic": {"sngd": arrived, "spider-sfo": lost}}}


def outcome(evidence):
    return Verdict("C0", "", "", evidence).outcome


def test_bounds_that_hold_are_shown(checked, scaled):
    evidence = judge_bounds(checked, scaled)
    assert outcome(evidence) == SHOWN
    assert evidence.quantities[0].measured == "0 of 4,000"
    (exponent,) = (q for q in evidence.quantities if q.name.startswith("exponent"))
    assert (exponent.value, exponent.answer) == (-3.9, None)
    assert "sngd, quadratic (theory: -4, the plans': -4; 95 % interval)" in exponent.name


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("lemma_violations", 1, CONTRADICTED), ("outside", 1, OPEN), ("caught", 0, OPEN)],
)
def test_a_failing_lemma_or_a_toothless_check_flips_c7(checked, scaled, key, value, expected):
    checked["families"]["saddle"][key] = value
    if key == "caught":  # in all tight families
        checked["families"]["quadratic"][key] = checked["families"]["exponential"][key] = value
    assert outcome(judge_bounds(checked, scaled)) == expected


def test_an_exceeded_bound_refutes_c7(checked, scaled):
    checked["families"]["network"]["runs"]["sngd"]["violated"].append(2)
    assert outcome(judge_bounds(checked, scaled)) == CONTRADICTED


# ---- C8 ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    return json.loads(FIG1.read_text("utf-8"))["measurements"]


@pytest.fixture
def escape(measured):
    return copy.deepcopy(measured)


def failures(evidence):
    return [quantity.name for quantity in evidence.quantities if quantity.answer not in (None, SHOWN)]


def leave_first(found, methods):
    """At this place of the map ``methods`` leave every start at step 1, the others at step 2."""
    found["steps"] = {row: [1 if row in methods else 2] * len(steps) for row, steps in found["steps"].items()}


def test_the_committed_map_answers_as_the_page_says(escape):
    """Saddles are left earlier by NGD and SNGD, the sharp minimum is not; perturbed methods gain at neither."""
    evidence = judge_escape(escape)
    assert outcome(evidence) == CONTRADICTED
    assert [re.sub(r" \(.*?\)", "", name) for name in failures(evidence)] == [
        "saddle: share that Saddle-NGD leaves before Noisy-GD",
        "manifold: share that SNGD leaves before SGD",
        "manifold: share that Saddle-NGD leaves before Noisy-GD",
        "sharp: share that NGD leaves before GD",
        "sharp: share that SNGD leaves before SGD",
        "sharp: share that Saddle-NGD leaves before Noisy-GD",
    ]


def test_every_comparison_and_count_on_the_page_is_the_committed_one(escape):
    page = " ".join(PAGE.read_text("utf-8").split())
    for quantity in judge_escape(escape).quantities:
        if quantity.required:
            assert f"| {quantity.name} | {quantity.measured} | {quantity.answer} |" in page
    left = {name: found["left"] for name, found in escape["map"]["places"].items()}
    at = {rate: index for index, rate in enumerate(escape["map"]["rates"])}
    ngd, sngd, gd, sgd = (left["sharp"][method] for method in ("NGD", "SNGD", "GD", "SGD"))
    assert max(ngd[: at[0.562] + 1]) == max(sngd[: at[0.316] + 1]) == max(gd[: at[3.16] + 1]) == 0
    assert set(gd[at[5.62] : at[56.2] + 1]) == {40}
    assert f"from {ngd[at[1.0]]} at 1 and {ngd[at[1.78]]} at 1.78" in page
    assert f"{sngd[at[0.562]]} at 0.562 and {sngd[at[1.0]]} at 1. " in page
    assert f"SGD from {sgd[at[3.16]]} at 3.16 and {sgd[at[5.62]]} at 5.62" in page
    assert set(left["saddle"]["NGD"][at[0.01] : at[0.562] + 1]) == {40}
    assert [rate for rate, count in zip(at, left["saddle"]["GD"], strict=True) if count == 40] == [1.78]
    tensor = left["tensor"]
    assert f"0.01, it leaves {max(tensor['SGD'])} of 40, and SNGD {tensor['SNGD'][at[0.316]]} at 0.316" in page
    assert tensor["SGD"][at[0.01]] == max(tensor["SGD"])
    assert {count for count, _ in escape["map"]["places"]["tensor"]["tuning"]["SGD"]} == {0}


def test_a_map_in_which_normalized_methods_leave_first_reproduces_c8(escape):
    for found in escape["map"]["places"].values():
        leave_first(found, ("NGD", "SNGD", "Saddle-NGD"))
    assert outcome(judge_escape(escape)) == SHOWN
    leave_first(escape["map"]["places"]["tensor"], ("GD", "SGD", "Noisy-GD"))
    assert outcome(judge_escape(escape)) == OPEN
    leave_first(escape["map"]["places"]["sharp"], ("NGD", "SGD", "Saddle-NGD"))
    assert outcome(judge_escape(escape)) == CONTRADICTED


def test_single_rates_are_reported_and_decide_nothing(escape):
    """C8 was once judged by these: all methods with lr 0.1, and one start in the sharp minimum with lr 1."""
    before = judge_escape(escape)
    for place in ("from_saddle", "from_manifold"):
        escape[place]["steps"]["GD, lr 0.1"] = [[5 + place] * 10 for place in range(8)]
        escape[place]["steps"]["NGD, lr 0.1"][3][4] = None
    escape["trajectories"]["sharp_and_flat"] = {}
    escape["tensor"]["losses"]["Saddle-NGD"][0][1] = 0.1
    after = judge_escape(escape)
    assert after != before
    assert [q for q in after.quantities if q.required] == [q for q in before.quantities if q.required]


def test_a_stuck_run_counts_as_the_slowest(escape):
    name = "runs from random points near a saddle in which NGD, lr 0.1, leaves before GD, lr 0.1"
    (before,) = (q for q in judge_escape(escape).quantities if q.name == name)
    escape["from_saddle"]["steps"]["NGD, lr 0.1"][3][4] = None
    (after,) = (q for q in judge_escape(escape).quantities if q.name == name)
    assert (before.measured, after.measured) == ("80 of 80", "79 of 80")


def test_both_rates_of_noisy_gd_are_told(escape):
    """80 of 80 against its lr 0.1 and 57 of 80 against its lr 1: the first number alone would mislead."""
    told = {
        q.name: q.measured for q in judge_escape(escape).quantities if q.name.startswith("runs from exactly a saddle")
    }
    assert {name.split("before ")[1].split(", over")[0]: measured for name, measured in told.items()} == {
        "Noisy-GD, lr 0.1": "80 of 80",
        "Noisy-GD, lr 1": "57 of 80",
    }


# ---- measured, kept, judged ----------------------------------------------------------------------------------


OTHERWISE = {
    "as in the figures": {"figures": {"fig2": {"profile": "quick", "value": 3.0}, "fig3": {"value": 2.0}}},
    "by step": {"figures": {"fig3": {"value": 0.5}}},
    "scaled": {"figures": {"fig2": {"profile": "quick", "value": 2.0}}},
}


@pytest.fixture
def studies(monkeypatch):
    """Every figure is measured in no time, as a number that must be at least 1; returns what has been called."""
    calls = []

    def figure(name):
        def measure(profile):
            calls.append(("measure", name, profile))
            return {"profile": profile, "value": 2.0, "alternatives": OTHERWISE}

        def draw(_measurements, folder):
            calls.append(("draw", name, folder.name))
            return [folder / "picture.png"]

        return Figure("C0: nothing", dict, measure, draw)

    def judged(*measurements):
        quantities = tuple(at_least("value", m["value"], 1, essential=True) for m in measurements)
        return Evidence(measurements[0].get("profile", "quick"), quantities, "none", 0.0)

    def one_by_one(figures, profile, out, *how, on_progress):
        for index, name in enumerate(figures):
            on_progress([name], index)
            reproduce.reproduce(name, profile, out / name, *how, reuse=True)

    monkeypatch.setattr(claims, "reproduce_at_once", one_by_one)  # other processes would measure the true figures
    monkeypatch.setattr(reproduce, "FIGURES", {name: figure(name) for name in FIGURES})
    table = {name: claim._replace(judge=judged, counted=False) for name, claim in CLAIMS.items()}
    monkeypatch.setattr(claims, "CLAIMS", table)
    return calls


def measured_figures(calls):
    return [name for kind, name, _ in calls if kind == "measure"]


def test_claims_are_measured_drawn_judged_and_written(studies, tmp_path):
    told = []
    verdicts = reproduce_claims(
        [], "quick", tmp_path, command="sngd reproduce claims", on_progress=lambda *step: told.append(step)
    )
    runs, others = ["fig2", "variation", "fig3", "fig4"], ["conformance", "scaling", "fig1", "relaxed", "variance"]
    figures = [*others, *runs, "spider-sizes", "large-batches", "reduced-variance", "alternatives"]
    assert measured_figures(studies) == figures
    assert told == [(figure, index, len(figures)) for index, figure in enumerate(figures)]
    assert [v.outcome for v in verdicts] == [SHOWN] * 15
    assert verdicts[6].sources == ("conformance/measurements.json", "scaling/measurements.json")
    kept = json.loads((tmp_path / "relaxed" / "measurements.json").read_text("utf-8"))
    assert kept["command"] == "sngd reproduce claims"
    assert kept["profile"] == "quick"
    assert "torch" in kept["environment"]
    written = json.loads((tmp_path / "verdicts.json").read_text("utf-8"))
    assert written["profile"] == "quick"
    assert [v["outcome"] for v in written["verdicts"]] == [v.outcome for v in verdicts]
    assert "## C9: shown (1 of 1 shown)" in (tmp_path / "verdicts.md").read_text("utf-8")
    assert written["studies"]["relaxed"] == {key: entry for key, entry in kept.items() if key != "measurements"}


@pytest.mark.usefixtures("studies")
def test_every_study_s_command_and_time_is_listed(tmp_path):
    reproduce_claims(["C9", "C10"], "quick", tmp_path, command="sngd reproduce claims")
    for figure, change in {"relaxed": {"process_seconds": 90.0}, "variance": {"process_seconds": None}}.items():
        path = tmp_path / figure / "measurements.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    reproduce_claims([], "quick", tmp_path, stored_only=True)
    text = (tmp_path / "verdicts.md").read_text("utf-8")
    assert "added up: 1.5 minutes." in text
    assert "| [relaxed](relaxed/measurements.json) | `sngd reproduce claims` | 1.5 |" in text
    assert "| [variance](variance/measurements.json) | `sngd reproduce claims` | – |" in text


def test_what_is_measured_already_is_kept(studies, tmp_path):
    reproduce_claims(["C9"], "quick", tmp_path)
    verdicts = reproduce_claims(["C10", "C9"], "quick", tmp_path)
    assert measured_figures(studies) == ["relaxed", "variance"]
    assert studies.count(("draw", "relaxed", "relaxed")) == 2
    assert [v.claim for v in verdicts] == ["C9", "C10"]


def test_what_is_overwritten_is_measured_anew(studies, tmp_path):
    reproduce_claims(["C9"], "quick", tmp_path)
    reproduce_claims(["C9"], "quick", tmp_path, execution=Execution(overwrite=True))
    assert measured_figures(studies) == ["relaxed", "relaxed"]


def test_another_profile_is_measured_anew(studies, tmp_path):
    reproduce_claims(["C9"], "quick", tmp_path)
    (verdict,) = reproduce_claims(["C9"], "small", tmp_path)
    assert [call for call in studies if call[0] == "measure"] == [
        ("measure", "relaxed", "quick"),
        ("measure", "relaxed", "small"),
    ]
    assert verdict.evidence.profile == "small"


@pytest.mark.usefixtures("studies")
def test_verdicts_follow_from_the_stored_measurements_alone(tmp_path):
    reproduce_claims(["C9", "C7"], "quick", tmp_path)
    path = tmp_path / "relaxed" / "measurements.json"
    path.write_text(path.read_text("utf-8").replace('"value":2.0', '"value":0.5'), "utf-8")
    assert [v.outcome for v in judge(tmp_path, ["C7", "C9", "C10"])] == [SHOWN, CONTRADICTED, NOT_TESTED]
    (tmp_path / "scaling" / "measurements.json").unlink()
    assert judge(tmp_path, ["C7"])[0].outcome == NOT_TESTED


@pytest.mark.usefixtures("studies")
def test_claims_without_their_figures_are_not_tested(tmp_path):
    reproduce_claims(["C4"], "quick", tmp_path)
    outcomes = {verdict.claim: verdict.outcome for verdict in judge(tmp_path)}
    assert outcomes == dict.fromkeys(CLAIMS, NOT_TESTED) | {"C4": SHOWN, "C5": SHOWN}


def test_options_reach_the_figures_made_of_runs(studies, monkeypatch, tmp_path):
    def run(profile, out, command, execution):
        assert out.is_dir()
        studies.append(("run", profile, command, execution))

    def measure(profile, _out):
        return {"profile": profile, "value": 2.0}

    figure = RunFigure("C0: nothing", dict, run, measure, lambda _measurements, _folder: [])
    monkeypatch.setitem(reproduce.FIGURES, "fig4", figure)
    (verdict,) = reproduce_claims(["C6"], "paper", tmp_path, "sngd", Execution(jobs=2))
    assert ("run", "paper", "sngd", Execution(jobs=2)) in studies
    assert verdict.evidence.profile == "paper"
    reproduce_claims(["C6"], "paper", tmp_path, "sngd", Execution(jobs=2))
    assert [call[0] for call in studies].count("run") == 1


# ---- other readings ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("studies")
def test_ambiguous_claims_are_judged_under_each_reading_that_touches_them(tmp_path):
    verdicts = {verdict.claim: verdict for verdict in reproduce_claims([], "quick", tmp_path)}
    shown, refuted = Tally(1, 1, 0), Tally(1, 0, 1)
    base = ReadingOutcome("as in the figures", SHOWN, shown)
    assert verdicts["C1"].readings == (base, ReadingOutcome("scaled", SHOWN, shown))
    assert verdicts["C1"].depends_on == ()
    assert verdicts["C1"].sources == ("fig2/measurements.json", "alternatives/measurements.json")
    assert verdicts["C4"].readings == (base, ReadingOutcome("by step", CONTRADICTED, refuted, ("value",)))
    assert verdicts["C4"].depends_on == ("by step",)
    assert verdicts["C4"].outcome == SHOWN  # the verdict is the figure's own
    assert verdicts["C3"].readings == ()  # its study has no other readings
    assert verdicts["C6"].readings == ()  # Figure 4 is not among the alternatives here
    assert verdicts["C9"].readings == ()
    written = json.loads((tmp_path / "verdicts.json").read_text("utf-8"))
    assert written["verdicts"][3]["readings"][1] == {
        "name": "by step",
        "outcome": CONTRADICTED,
        "tally": {"of": 1, "shown": 0, "contradicted": 1},
        "changed": ["value"],
    }
    text = (tmp_path / "verdicts.md").read_text("utf-8")
    assert "| claim | as in the figures | scaled | by step | the verdict |" in text
    one, none = "shown (1 of 1 shown)", "contradicted (0 of 1 shown, 1 contradicted)"
    assert f"| C1 | {one} | {one} | – | does not depend on them |" in text
    assert f"| C4 | {one} | – | {none} | depends on: by step |" in text


def test_claims_that_depend_on_it_are_judged_under_each_way_of_counting():
    """By no way SNGD with α = 0.1 beats SPIDER-SFO, and SPIDER-SFO with α = 0.001 beats SNGD: the finding."""
    verdicts = {verdict.claim: verdict for verdict in judge(RESULTS, ["C1", "C2", "C3"])}
    assert verdicts["C3"].countings == ()
    ways = ["every evaluation", "differences once", "b a step", "b a step, to the axis's end"]
    outcomes = {claim: [way.outcome for way in verdicts[claim].countings] for claim in ("C1", "C2")}
    assert [way.name for way in verdicts["C1"].countings] == [way.name for way in verdicts["C2"].countings] == ways
    assert outcomes == {
        "C1": [SHOWN, OPEN, CONTRADICTED, CONTRADICTED],
        "C2": [CONTRADICTED, CONTRADICTED, SHOWN, SHOWN],
    }
    for verdict in (verdicts["C1"], verdicts["C2"]):
        assert (verdict.countings[0].outcome, verdict.countings[0].tally) == (verdict.outcome, verdict.tally)


@pytest.mark.usefixtures("studies")
def test_without_alternatives_there_are_no_other_readings(tmp_path):
    reproduce_claims(["C1"], "quick", tmp_path)
    (tmp_path / "alternatives" / "measurements.json").unlink()
    (verdict,) = judge(tmp_path, ["C1"])
    assert (verdict.outcome, verdict.readings) == (SHOWN, ())
    assert verdict.sources == ("fig2/measurements.json",)


# ---- mistakes ------------------------------------------------------------------------------------------------


def test_mistakes_are_named_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="unknown claim 'C16'; must be one of C1, C2, "):
        reproduce_claims(["C16"], "quick", tmp_path)
    with pytest.raises(ValueError, match="unknown profile 'huge'; claims have quick, small, paper"):
        reproduce_claims(["C9"], "huge", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("studies")
@pytest.mark.parametrize(("content", "reason"), [("{", "not JSON"), ("{}", "object missing required field `profile`")])
def test_a_broken_file_is_named(tmp_path, content, reason):
    path = tmp_path / "relaxed" / "measurements.json"
    path.parent.mkdir()
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=f"measurements.json: {reason}"):
        reproduce_claims(["C9"], "quick", tmp_path)


def test_stored_measurements_are_judged_without_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "reproduce", lambda *_args, **_options: pytest.fail("it measured"))
    with pytest.raises(FileNotFoundError, match="holds no measurements of these claims"):
        reproduce_claims([], "small", tmp_path, stored_only=True)
    (tmp_path / "fig1").mkdir()
    (tmp_path / "fig1" / "measurements.json").write_bytes(FIG1.read_bytes())
    verdicts = {verdict.claim: verdict.outcome for verdict in reproduce_claims([], "small", tmp_path, stored_only=True)}
    assert verdicts["C8"] == CONTRADICTED
    assert verdicts["C9"] == NOT_TESTED
    assert "C8: contradicted (" in (tmp_path / "verdicts.md").read_text()


@pytest.mark.usefixtures("studies")
def test_measurements_that_do_not_fit_together_are_named(monkeypatch, tmp_path):
    reproduce_claims(["C9"], "quick", tmp_path)
    for error in (KeyError("environment"), OverflowError(34, "too large"), ValueError("zip() argument 2 is shorter")):

        def fails(_measurements, error=error):
            raise error

        monkeypatch.setitem(claims.CLAIMS, "C9", claims.CLAIMS["C9"]._replace(judge=fails))
        path = re.escape(str(tmp_path / "relaxed" / "measurements.json"))
        with pytest.raises(ValueError, match=f"^{path}: C9 cannot be judged by these measurements"):
            judge(tmp_path, ["C9"])
