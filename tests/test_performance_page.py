"""The page of performance, the README and the picture show the committed measurements, and these are whole."""

import json
import re
import sys
from pathlib import Path

import pytest

from sngd.bench import step as steps
from sngd.bench import train as trains
from sngd.training import RunConfig
from sngd.training.config import CURVE_SAMPLES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import draw_performance as performance  # noqa: E402

FOUND = json.loads(performance.RESULTS.read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", performance.PAGES, ids=lambda page: page.stem)
def test_the_numbers_on_a_page_are_the_committed_ones(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- bench: ") == text.count("<!-- end -->") > 0
    assert performance.filled(text, FOUND) == text, f"{page.name} is stale: make docs"


def test_evaluation_takes_the_share_of_a_run_that_is_said():
    sentence = r"In a run of (\d+) passes, the\s+default, both together are at most (\d+) %"
    epochs, percent = re.search(sentence, PAGE).groups()
    assert (float(epochs), f"on {CURVE_SAMPLES:,} training" in PAGE) == (RunConfig.epochs, True)
    cases, second = (
        json.loads(file.read_text())["cases"] for file in (performance.ENGINE, performance.SECOND[performance.ENGINE])
    )
    assert max(case["share_of_evaluation"] for case in cases) <= int(percent) / 100
    above = [
        (case["problem"], case["batch_size"]) for case in second if case["share_of_evaluation"] > int(percent) / 100
    ]
    assert above == [("mnist-mlp", 128)]
    assert "On the second processor MNIST with batch size\n128 misses it by little." in PAGE
    cases += second
    assert min(case["share_on_all"] / (1 - case["share_on_all"]) for case in cases) >= 0.2
    of_images = [case for case in cases if case["problem"].startswith("cifar10")]
    assert min(case["share_on_all_with_gradient_norm"] for case in of_images) >= 0.45


def test_the_picture_is_that_of_the_committed_measurements():
    assert performance.PICTURE.read_text(encoding="utf-8") == performance.drawn(FOUND), "it is stale: make docs"


def test_another_number_would_be_seen():
    other = json.loads(json.dumps(FOUND))
    other["step"]["comparisons"][0]["ratio"][0] += 1
    assert performance.filled(PAGE, other) != PAGE


def test_a_ratio_is_written_in_blocks_alone():
    """So that no number is left from an earlier measurement."""
    prose = re.sub(r"<!-- bench: .*?<!-- end -->", "", PAGE, flags=re.DOTALL)
    assert not re.findall(r"\d\.\d\d", prose)


def test_every_goal_of_the_benchmarks_is_measured_and_shown():
    measured = {(row["case"], row["work"], row["against"]) for part in FOUND.values() for row in part["comparisons"]}
    wanted = {
        (case, group.name, against) for case in steps.MODELS for group in steps.groups(case) for against in group.goals
    }
    wanted |= {(case.name, trains.ENGINE, trains.LOOP) for case in trains.CASES}
    assert wanted <= measured
    assert performance.goals(FOUND).count(" met |") + performance.goals(FOUND).count(" missed |") >= len(wanted)


def test_both_benchmarks_ran_in_the_same_place_and_in_full():
    step, train = FOUND["step"], FOUND["train"]
    assert step["environment"] == train["environment"]
    assert step["cases"].keys() == set(steps.CASES)
    assert not any("quick" in part["command"] for part in (step, train))


def test_both_measurements_on_a_gpu_are_of_one_version_and_machine():
    steps_there = json.loads(performance.STEPS_ON_A_GPU.read_text(encoding="utf-8"))["step"]
    gains = json.loads(performance.GAINS_ON_A_GPU.read_text(encoding="utf-8"))
    environment = {k: v for k, v in steps_there["environment"].items() if k not in ("threads", "device")}
    assert environment == gains["environment"]
    assert environment["cuda"]
    assert steps_there["environment"]["device"] == "cuda"
    assert steps_there["cases"].keys() == set(steps.CASES)
    assert "quick" not in steps_there["command"]


def test_what_is_said_of_whole_steps_on_a_gpu_was_measured():
    found = json.loads(performance.WHOLE_STEPS_ON_A_GPU.read_text(encoding="utf-8"))
    took = {case["case"].removeprefix("cifar10-resnet20, b="): case["milliseconds"] for case in found["cases"]}
    text = " ".join(performance.PAGES[0].read_text(encoding="utf-8").split())
    assert 0.65 < took["128, one graph, bfloat16"] / took["128, two graphs, bfloat16"] < 0.7  # a third less
    assert 0.98 < took["4096, one graph, bfloat16"] / took["4096, two graphs, bfloat16"] < 1.02
    less = [1 - took[f"{b}, one graph, bfloat16, compiled"] / took[f"{b}, one graph, bfloat16"] for b in (128, 4096)]
    assert f"takes another {100 * less[0]:.0f} to {100 * less[1]:.0f} % off" in text
    plain, compiled = (
        some["runs"] * some["milliseconds_for_each"] / took[f"128, one graph, {some['how']}"]
        for some in found["side_by_side"]
    )
    assert f"take only {plain:.1f} times as long as one, and compiled ones {compiled:.1f} times" in text
    several = [case for case in found["kernels_of_a_step"] if "b=128" in case["case"]]
    assert all(950 <= case["kernels"] <= 1200 for case in several)
    assert sorted(round(1e3 * case["milliseconds"] / case["kernels"]) for case in several) == [2, 7]  # microseconds
    operations = 6 * 41e6 * 4096  # of ResNet20: two for each product, of which the backward pass has twice as many
    assert f"about {operations / took['4096, one graph'] / 1e9:.1f}·10¹²" in text
    kernels = {(k["weights"], k["what"]): k["microseconds"] for k in found["kernels"]}
    norm, fused = (kernels["gpt2", f"the {name}, as a graph"] for name in ("norm", "fused kernel of SGD"))
    assert 1.17 < (norm + fused) / kernels["gpt2", "copying 16 bytes an entry"] < 1.23  # a fifth longer
    assert 40 < kernels["resnet56", "SNGD's step"] / kernels["resnet56", "SNGD's step, as a graph"] < 50
    pass_in_float32 = took["128, one graph"] * 50_000 / 128 / 1e3
    assert 0.9 < found["seconds_of_evaluating_60000_samples_and_the_gradient"] / pass_in_float32 < 1.1


def test_every_goal_on_a_gpu_is_measured_and_shown():
    wanted = sum(
        len(group.goals) for case in steps.MODELS for group in steps.groups(case, "cuda") if "Kahan" not in group.name
    )
    shown = performance.gpu_goals(FOUND)
    assert shown.count(" met |") + shown.count(" missed |") == wanted + len(performance.RUNS_ON_A_GPU)


def test_the_files_are_small():
    assert all(file.stat().st_size < 30_000 for file in (performance.RESULTS, performance.STEPS_ON_A_GPU))
