import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from fake_runs import study_of, write_run, write_study
from hypothesis import given
from hypothesis import strategies as st

from sngd.studies.lead import Difference, _difference, format_difference, lead, statements
from sngd.studies.runs import Run, Study, read_study

UNTUNED = "at equal oracle calls, untuned"


def test_a_lead_beyond_seed_noise(tmp_path):
    study = study_of(tmp_path, a=[0.5, 0.6, 0.7], b=[0.4, 0.51, 0.59], c=[0.9, 0.9, 0.9])
    verdict = lead(study, "train_loss")
    differences = [0.1, 0.09, 0.11]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(differences), scipy.stats.sem(differences))
    assert (verdict.best, verdict.seeds, verdict.beyond_noise) == ("b", 3, True)
    assert [difference.other for difference in verdict.leads] == ["a", "c"]
    assert verdict.leads[0].mean == pytest.approx(0.1)
    assert verdict.leads[0].half_width == pytest.approx((high - low) / 2)
    assert verdict.leads[1].mean == pytest.approx(0.4)
    assert verdict.statement == (
        f"b's final training loss is lower than a's, the next best, by 0.100 ± 0.025 over 3 seeds {UNTUNED}"
    )


def test_a_lead_within_seed_noise(tmp_path):
    verdict = lead(study_of(tmp_path, a=[0.5, 0.6], b=[0.4, 0.62]), "train_loss")
    assert verdict.beyond_noise is False
    assert verdict.statement == (
        f"b's final training loss is not shown to be lower than a's: 0.040 ± 0.762 over 2 seeds {UNTUNED}"
    )


def test_accuracy_is_better_when_higher_and_in_percentage_points(tmp_path):
    for label, accuracies in {"a": [0.90, 0.91], "b": [0.95, 0.96]}.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(tmp_path / label / str(seed), label, seed, answer={"test_accuracy": accuracy})
    assert lead(read_study(tmp_path), "test_accuracy").statement == (
        f"b's final test accuracy is higher than a's by 5.00 ± 0.00 percentage points over 2 seeds {UNTUNED}"
    )


def test_one_seed_says_so(tmp_path):
    verdict = lead(study_of(tmp_path, a=[0.5], b=[0.25]), "train_loss")
    assert verdict.statement == (
        f"b's final training loss is lower than a's by 0.250 with one seed (seed noise unknown) {UNTUNED}"
    )
    assert (verdict.leads, verdict.beyond_noise) == ((Difference("a", 0.25, None),), None)


@pytest.mark.parametrize(
    ("losses", "statement"),
    [
        ({"a": [1.0, 2.0]}, "a is the only method: nothing to compare its training loss with"),
        ({"a": [None], "b": [None, None]}, "every finished run diverged"),
        (
            {"a": [0.5, 0.5], "b": [1.0, None]},
            "only a can be ranked in training loss; not ranked, because runs diverged: b",
        ),
        ({"a": [0.5, 0.7], "b": [0.5, 0.7]}, f"a and b have the same final training loss over 2 seeds {UNTUNED}"),
        (
            {"a": [0.5, 0.5], "b": [1.0, 1.0]},
            f"a's final training loss is lower than b's by 0.500 ± 0.000 over 2 seeds {UNTUNED}",
        ),
    ],
)
def test_edge_cases(tmp_path, losses, statement):
    assert lead(study_of(tmp_path, **losses), "train_loss").statement == statement


def test_equal_tuning_is_said_where_both_tried_the_same_learning_rates(tmp_path):
    study = read_study(write_study(tmp_path))
    assert lead(study, "train_loss").equal_tuning is True
    assert lead(study, "train_loss").statement.endswith("at equal oracle calls and equal tuning")
    trials = study.comparison["tuning"]["outcomes"]
    trials.remove(next(trial for trial in trials if trial["label"] == lead(study, "train_loss").best))
    assert lead(study, "train_loss").equal_tuning is False
    assert lead(study, "train_loss").statement.endswith("at equal oracle calls but unequal tuning")


def test_unequal_budgets_are_not_passed_over(tmp_path):
    write_run(tmp_path / "a", "a", epochs=10)
    write_run(tmp_path / "b", "b", epochs=9)
    verdict = lead(read_study(tmp_path), "train_loss")
    assert verdict.equal_calls is False
    assert verdict.statement.endswith("at unequal oracle calls, untuned")


@pytest.mark.slow
@pytest.mark.parametrize("arms", [2, 3, 8])
def test_among_equals_a_lead_is_found_no_more_often_than_by_chance(arms):
    """Gutmann and Maymin (1987): the best and the next best of many need no correction. False alarm: < 1e-3 an arm."""
    rng, repetitions, seeds = np.random.default_rng(arms), 2000, 3
    found = 0
    for losses in rng.normal(size=(repetitions, arms, seeds)):
        study = Study(Path(), "p", {str(arm): _runs(row) for arm, row in enumerate(losses)}, {})
        found += lead(study, "train_loss").beyond_noise
    assert found <= scipy.stats.binom.ppf(0.999, repetitions, 0.05)
    assert arms > 2 or found >= scipy.stats.binom.ppf(0.001, repetitions, 0.05)  # two arms: exactly the level


def _runs(losses):
    return [
        Run(Path(), {"seed": seed}, {}, [{"final": True, "train_loss": loss, "oracle_calls": 1}])
        for seed, loss in enumerate(losses)
    ]


def test_an_arm_that_diverged_cannot_be_best(tmp_path):
    verdict = lead(study_of(tmp_path, a=[0.01, None], b=[0.5, 0.6], c=[0.7, 0.8]), "train_loss")
    assert (verdict.best, verdict.leads[0].other) == ("b", "c")
    assert verdict.statement.endswith("; not ranked, because runs diverged: a")


def test_arms_are_compared_on_the_seeds_they_share(tmp_path):
    study_of(tmp_path, a=[0.5, 0.6])
    write_run(tmp_path / "b1", "b", 1, answer={"train_loss": 0.4})
    write_run(tmp_path / "b2", "b", 2, answer={"train_loss": 9.0})  # bad, but a has no seed 2
    assert lead(read_study(tmp_path), "train_loss").statement == (
        f"b's final training loss is lower than a's by 0.200 with one seed (seed noise unknown) {UNTUNED}"
    )


def test_no_common_seed_no_ranking(tmp_path):
    write_run(tmp_path / "a", "a", 0)
    write_run(tmp_path / "b", "b", 1)
    verdict = lead(read_study(tmp_path), "train_loss")
    assert verdict.best is None
    assert verdict.statement == "no seed was finished by every method: training loss cannot be compared in pairs"


def test_nothing_finished_nothing_measured(tmp_path):
    write_run(tmp_path / "a", "a", stop=2)
    assert statements(read_study(tmp_path)) == ["no run has finished yet"]
    write_run(tmp_path / "b", "b", test=False)
    assert lead(read_study(tmp_path / "b"), "test_accuracy") is None


def test_unknown_key(tmp_path):
    study = study_of(tmp_path, a=[1.0])
    with pytest.raises(ValueError, match=r"^key must be one of train_loss, test_loss, test_accuracy, is 'loss'$"):
        lead(study, "loss")


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=8).filter(lambda d: statistics.stdev(d) > 1e-3))
def test_the_interval_is_student_s(differences):
    low, high = scipy.stats.t.interval(0.95, len(differences) - 1, np.mean(differences), scipy.stats.sem(differences))
    found = _difference("a", differences)
    assert (found.mean, found.half_width) == pytest.approx(((low + high) / 2, (high - low) / 2), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "half_width", "percent", "text"),
    [
        (0.010782, 0.004699, False, "0.0108 ± 0.0047"),
        (0.5, None, False, "0.500"),
        (0.0042, 0.0023, True, "0.42 ± 0.23"),
        (1.2e-7, 3.4e-8, False, "1.20e-07 ± 3.40e-08"),
        (0.0, 0.0, False, "0.00 ± 0.00"),
    ],
)
def test_differences_as_shown(mean, half_width, percent, text):
    assert format_difference(Difference("a", mean, half_width), percent) == text


def test_differences_too_large_for_a_float_are_said_to_be():
    assert format_difference(Difference("b", 1e308, math.inf)) == "1.00e+308 ± inf"
