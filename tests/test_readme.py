"""What the README shows runs, and its numbers are those of the committed results."""

import json
import math
import operator
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats

from sngd.cli import main
from sngd.diagnose.interval import mean_interval
from sngd.paper.claims import judge
from sngd.paper.closed_form.escape_map import PAIRS
from sngd.paper.reproduce import stored
from sngd.paper.trained.counting import COUNTINGS, recount
from sngd.paper.trained.variation import _count_evaluations
from sngd.paper.verdicts import NOT_TESTED, Tally, as_json
from sngd.studies.runs import read_study
from sngd.studies.table import as_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_snippets_run_as_they_stand(tmp_path):
    first, another_optimizer = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len([line for line in first.splitlines() if line.strip()]) <= 15
    snippet = first + another_optimizer + "print(groups(model))"
    result = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.count("gradient norm") == 10


@pytest.mark.slow
def test_the_run_that_is_certified_is_the_one_that_was_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = re.search(r"^    sngd plan .*\n.*\n    sngd certify .*$", README, flags=re.M)[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        words, _, output = line.partition(" > ")
        monkeypatch.setattr(sys, "argv", shlex.split(words, comments=True))
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        printed = capsys.readouterr().out
        if output:
            Path(output.split()[0]).write_text(printed)
    assert "Theorem 1 holds for this run" in " ".join(printed.split())
    assert json.loads(Path("plan.json").read_text())["guarantee"] == pytest.approx(0.2)


@pytest.mark.parametrize("page", ["README.md", "docs/reproduction.md", "docs/choosing.md", "docs/faq.md"])
def test_every_spread_shown_is_in_a_committed_table(page):
    files = [*(ROOT / "results").rglob("table.md"), ROOT / "results" / "small" / "norms" / "norms.md"]
    fig4 = read_study(ROOT / "results" / "small" / "fig4" / "large-batch")  # packed without a table
    tables = "\n".join([*(path.read_text() for path in files), as_markdown(fig4)])
    spreads = re.findall(r"\d[\d.]* ± \d[\d.]*\d", (ROOT / page).read_text())
    assert len(spreads) >= 6
    missing = [spread for spread in spreads if spread not in tables]
    assert not missing


def test_the_table_of_peers_is_the_studys():
    """Each row of the README, found in the committed table by its training loss."""
    study = (ROOT / "results" / "mnist-mlp-peers" / "table.md").read_text().replace("**", "")
    shown = re.findall(r"^\| ([\w -]+) \| ([\d.]+), (poly|constant) \| (.+) \|$", README.replace("**", ""), flags=re.M)
    assert len(shown) == 7
    labels = {"AdamW": "adamw", "SGD with momentum": "sgd-momentum", "S-SNGD": "s-sngd", "SNGD": "sngd", "SGD": "sgd"}
    for name, lr, plan, numbers in shown:
        label = labels[name] + (" plan=poly" if plan == "poly" and name != "S-SNGD" else "")
        assert f"| {label} | {lr} | 4.998 | 3 | {numbers} |" in study


def test_the_smaller_torch_is_of_the_pinned_version():
    (version,) = re.findall(r"pip install torch==([\d.]+) ", README)
    assert f"torch=={version}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("page", ["README.md", "docs/reproduction.md"])
def test_every_verdict_shown_is_the_computed_one(page):
    verdicts = json.loads((ROOT / "results" / "small" / "verdicts.json").read_text())["verdicts"]
    tested = [v for v in verdicts if v["outcome"] != NOT_TESTED]
    computed = {(v["claim"], v["text"], v["outcome"], str(Tally(**v["tally"]))) for v in tested}
    shown = re.findall(r"^\| (C\d+) \| (.*?) \| \*\*(.*?)\*\* \| (.*?) \|$", (ROOT / page).read_text(), flags=re.M)
    assert set(shown) == computed
    assert tested == verdicts


def test_the_count_of_verdicts_is_that_of_the_verdicts():
    verdicts = json.loads((ROOT / "results" / "small" / "verdicts.json").read_text())["verdicts"]
    words = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    shown, contradicted, still_open = (
        words[sum(v["outcome"] == outcome for v in verdicts)] for outcome in ("shown", "contradicted", "open")
    )
    counts = f"{shown.capitalize()} are shown, {contradicted} contradicted and {still_open} open"
    assert counts in " ".join((ROOT / "docs" / "faq.md").read_text().split())


def test_the_verdicts_are_those_of_the_committed_measurements():
    folder = ROOT / "results" / "small"
    written = json.loads((folder / "verdicts.json").read_text())["verdicts"]
    assert json.loads(json.dumps([as_json(verdict) for verdict in judge(folder)])) == written


REPRODUCTION = (ROOT / "docs" / "reproduction.md").read_text()
VERDICTS = (ROOT / "results" / "small" / "verdicts.md").read_text()


def test_every_interval_and_count_explained_is_a_verdicts():
    text = REPRODUCTION.split("## What was written down before it was measured")[0]
    intervals = re.findall(r"-?\d[\d.]* \[-?[\d.]+,\s-?[\d.]+\]", text)
    counts = re.findall(r"\w+ \(\d+ of \d+ shown.*?\)", text)
    assert len(intervals) >= 7
    assert len(counts) >= 6
    missing = [found for found in (*intervals, *counts) if found not in VERDICTS]
    assert not missing


def row(claim, beginning):
    """The quantity of a claim whose name begins so, from verdicts.json."""
    verdicts = json.loads((ROOT / "results" / "small" / "verdicts.json").read_text())["verdicts"]
    (entry,) = (v for v in verdicts if v["claim"] == claim)
    (found,) = (q for q in entry["quantities"] if q["name"].startswith(beginning))
    return found


def test_what_would_have_been_shown_is_as_explained():
    explained = {
        "would have been shown from 1.93 on": row("C3", "mnist-batch-128: deviation of the training loss"),
        "passes; 0.0204 and": row("C6", "large-batch: final training loss, S-SGD −"),
        "and 1.07 would have sufficed": row("C6", "large-batch: final test error in percentage points, S-SGD −"),
    }
    for phrase, quantity in explained.items():
        assert f"{quantity['seen_from']:.3g}" in phrase
        assert phrase in " ".join(REPRODUCTION.split())
    lower = row("C2", "batch-128: final training loss")
    assert f"training loss is lower by {-lower['value']:.3f}" in " ".join(REPRODUCTION.split())


def test_why_c3_has_runs_of_its_own_is_as_explained():
    figures = [stored(name, ROOT / "results" / "small" / name) for name in ("fig2", "fig3")]
    counts = [
        {_count_evaluations(list(e["arms"].values())) for e in figure["experiments"].values()} for figure in figures
    ]
    assert counts == [{16}, {2}]
    assert "Figure 2's runs have 16 and Figure 3's have 2" in " ".join(REPRODUCTION.split())


def test_the_readings_are_as_explained():
    verdicts = json.loads((ROOT / "results" / "small" / "verdicts.json").read_text())["verdicts"]
    outcomes = {v["claim"]: {r["name"]: r["outcome"] for r in v["readings"]} for v in verdicts}
    assert outcomes["C1"] == {"as in the figures": "shown", "inputs scaled otherwise": "open"}
    assert set(outcomes["C2"].values()) == {"contradicted"}
    assert outcomes["C4"].pop("inputs scaled otherwise") == "shown"
    assert set(outcomes["C4"].values()) == {"open"}
    assert set(outcomes["C6"].values()) == {"shown"}
    c1, c2, c4 = ({r["name"]: r for r in v["readings"]} for v in verdicts if v["claim"] in ("C1", "C2", "C4"))
    other = c1["inputs scaled otherwise"]["changed"]
    assert [name.split(":")[0] for name in other] == 3 * ["batch-32"]
    assert [tally_of(r) for r in c2.values()] == [(0, 2), (2, 2)]
    assert [name.split(":")[0] for name in c2["inputs scaled otherwise"]["changed"]] == 2 * ["batch-32"]
    assert [tally_of(r) for r in c4.values()] == [(13, 0), (16, 0), (13, 0), (12, 0)]
    assert all("SNGD, α=0.5 −" in name and "SPIDER" not in name for r in c4.values() for name in r["changed"])


def tally_of(reading):
    return reading["tally"]["shown"], reading["tally"]["contradicted"]


def test_the_runs_of_the_readings_are_as_explained():
    text = " ".join(REPRODUCTION.split())
    readings = stored("alternatives", ROOT / "results" / "small" / "alternatives")["alternatives"]

    def losses(reading, figure, experiment, label):
        return readings[reading]["figures"][figure]["experiments"][experiment]["arms"][label]["final"]["train_loss"]

    scaled = [losses("inputs scaled otherwise", "fig2", "batch-32", f"{m}, α=0.1") for m in ("SNGD", "SPIDER-SFO")]
    spans = " and SPIDER-SFO's from ".join(f"{min(some):.3f} to {max(some):.3f}" for some in scaled)
    assert f"SNGD's five runs end at training losses from {spans}" in text
    plain = losses("no augmentation", "fig3", "resnet8", "SNGD, α=0.5")
    assert f"ends between {min(plain):.2f} and {max(plain):.2f} there" in text
    tunings = [r["figures"]["fig4"]["experiments"]["large-batch"]["tuning"] for r in readings.values()]
    assert [t["chosen"] for t in tunings] == 4 * [{"S-SGD": 1, "S-SNGD": 1}]
    assert "α = 1 is best for both methods under each reading" in text


def test_the_countings_are_as_explained():
    verdicts = json.loads((ROOT / "results" / "small" / "verdicts.json").read_text())["verdicts"]
    (c1,) = (v["countings"] for v in verdicts if v["claim"] == "C1")
    by_step, to_the_end = c1[-2:]
    spider_ahead = [name for name in by_step["changed"] if "SPIDER-SFO, α=0.1 −" in name]
    assert (len(spider_ahead), by_step["tally"]) == (4, {"of": 8, "shown": 4, "contradicted": 3})
    assert (
        "batch-32: final test error in percentage points, SPIDER-SFO, α=0.1 − SNGD, α=0.1" not in to_the_end["changed"]
    )
    assert (len(to_the_end["changed"]), to_the_end["tally"]) == (3, {"of": 8, "shown": 5, "contradicted": 2})


def test_the_runs_of_figure_3_are_as_explained():
    text = " ".join(REPRODUCTION.split())
    fig3 = stored("fig3", ROOT / "results" / "small" / "fig3")
    arms = fig3["experiments"]["resnet8"]["arms"] | fig3["experiments"]["resnet8-beyond"]["arms"]
    losses = {label: arm["final"]["train_loss"] for label, arm in arms.items()}
    sngd, staged = losses["SNGD, α=0.5"], losses["S-SNGD(v1), α=0.5"]
    assert f"training losses from {min(sngd):.2f} to {max(sngd):.2f}, all of S-SNGD(v1)'s at {max(staged):.2f}" in text
    assert {label: len(arm["seeds"]) for label, arm in arms.items()} == {
        label: 5 if arm["beyond"] else 20 for label, arm in arms.items()
    }

    def lower(label):
        few = losses[label]
        return mean_interval([b - a for a, b in zip(few, staged[: len(few)], strict=True)])

    momentum, warm_up = lower("S-SGD with momentum, α=0.1"), lower("S-SNGD(v1, warm-up), α=0.5")
    assert f"lower by {momentum.low:.3f} to {momentum.high:.3f} (95 % interval)" in text
    assert f"higher with it by {-warm_up.high:.3f} to {-warm_up.low:.3f}" in text
    sngm = lower("SNGM, α=0.05")
    assert sngm.low < 0 < sngm.high


def test_resnet20_with_one_seed_is_as_explained():
    text = " ".join(REPRODUCTION.split())
    arms = stored("fig3", ROOT / "results" / "medium" / "fig3")["experiments"]["resnet20"]["arms"]
    assert [arm["seeds"] for arm in arms.values()] == 6 * [[100]]
    losses = {label: arm["final"]["train_loss"][0] for label, arm in arms.items()}
    order = sorted(losses, key=losses.get)
    assert order == ["S-SNGD(v1), α=0.5", "S-SNGD(v2), α=0.5"] + [
        f"{method}, α={lr}" for method in ("SNGD", "SPIDER-SFO") for lr in (0.5, 0.1)
    ]
    a, b, c, d, e, f = (f"{losses[label]:.3f}" for label in order)
    assert (
        f"S-SNGD(v1) {a}, S-SNGD(v2) {b}, SNGD with α = 0.5 at {c} and with α = 0.1 at {d}, "
        f"SPIDER-SFO with α = 0.5 at {e} and with α = 0.1 at {f}."
    ) in text
    *others, last = (f"{100 * arms[label]['final']['test_accuracy'][0]:.2f}" for label in order)
    assert f"The test accuracies are {', '.join(others)} and {last} %. One seed decides nothing" in text
    large = stored("fig4", ROOT / "results" / "medium" / "fig4")["experiments"]["large-batch"]
    ours, others = large["arms"]["S-SNGD"], large["arms"]["S-SGD"]
    assert [(arm["lr"], arm["seeds"]) for arm in (ours, others)] == [(1, [100]), (0.3, [100])]
    (a, b), (x, y) = ([arm["final"][key][0] for arm in (ours, others)] for key in ("train_loss", "test_accuracy"))
    assert (
        f"S-SNGD with α = 1 ends at a training loss of {a:.3f} and a test accuracy of {100 * x:.2f} %, "
        f"S-SGD with α = 0.3 at {b:.3f} and {100 * y:.2f} %. One seed decides nothing"
    ) in text


def test_what_c8_would_be_at_another_level_is_as_explained():
    places = stored("fig1", ROOT / "results" / "small" / "fig1")["map"]["places"]
    asked = {(place, pair): answer_at(0.95, found, *pair) for place, found in places.items() for pair in PAIRS}
    firm = {key: answer_at(0.999, places[key[0]], *key[1]) for key in asked}
    changed = {key: answer for key, answer in asked.items() if answer != firm[key]}
    assert changed == {
        ("manifold", ("SNGD", "SGD")): "shown",
        ("sharp", ("Saddle-NGD", "Noisy-GD")): "shown",
    }
    assert {firm[key] for key in changed} == {"open"}
    assert "At 95 % two of the open comparisons would be shown" in " ".join(REPRODUCTION.split())


def answer_at(level, found, ours, theirs):
    """Of the starts that one leaves at an earlier step than the other, whether more than half are ours; with scipy."""
    steps = [[math.inf if t is None else t for t in found["steps"][row]] for row in (ours, theirs)]
    first, last = (sum(map(earlier, *steps)) for earlier in (operator.lt, operator.gt))
    interval = scipy.stats.binomtest(first, first + last).proportion_ci(level, "exact")
    return "shown" if interval.low > 0.5 else "contradicted" if interval.high < 0.5 else "open"


def test_the_test_losses_of_c1_and_c11_are_as_explained():
    verdicts = json.loads((ROOT / "results" / "small" / "verdicts.json").read_text())["verdicts"]
    (c11,) = (v["quantities"] for v in verdicts if v["claim"] == "C11")
    beginning = "batch-32: final test loss, SPIDER-SFO, B="
    rows = [q for q in c11 if q["name"].startswith(beginning) and ", α=0.1 − " in q["name"]]
    lower, higher = ([q for q in rows if q["high"] < 0], [q for q in rows if q["low"] > 0])
    assert [len(some) for some in (rows, lower, higher)] == [9, 5, 2]
    sizes = [re.search(r"B=(\d+), M=(\d+)", q["name"]).groups() for q in lower]
    assert sizes == [("256", "2"), ("256", "4"), ("256", "8"), ("1024", "8"), ("1024", "16")]
    assert "lower than SNGD's with 5 of 9 sizes" in " ".join(REPRODUCTION.split())
    for claim, name in (("C1", "batch-32: final test loss, SPIDER-SFO"), ("C11", f"{beginning}1024, M=16")):
        same = row(claim, f"{name}, α=0.1 −")
        told = f"SNGD's is {same['value']:.4g} [{same['low']:.3g}, {same['high']:.3g}]"
        assert told in " ".join(REPRODUCTION.split())


def test_the_axis_ends_where_it_is_said_to():
    fig2 = stored("fig2", ROOT / "results" / "small" / "fig2")
    experiments = recount(fig2, COUNTINGS[-1])["experiments"]
    ends = [f"{experiments[key]['epochs']:.2f}" for key in ("batch-32", "batch-128")]
    assert f"{ends[0]} passes with batch size 32 and {ends[1]} with 128" in " ".join(REPRODUCTION.split())
