import statistics

import numpy as np
import pytest
import scipy.stats
from fake_runs import study_of, write_run
from hypothesis import given
from hypothesis import strategies as st

from sngd.studies.lead import _student_interval, lead, statements
from sngd.studies.runs import read_study


def test_lead_beyond_seed_noise(tmp_path):
    study = study_of(tmp_path, a=[0.5, 0.6, 0.7], b=[0.4, 0.51, 0.59], c=[0.9, 0.9, 0.9])
    verdict = lead(study, "train_loss")
    differences = [0.1, 0.09, 0.11]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(differences), scipy.stats.sem(differences))
    assert verdict.lead == pytest.approx(0.1)
    assert verdict.interval == pytest.approx((low, high))
    assert (verdict.best, verdict.runner_up, verdict.seeds, verdict.beyond_noise) == ("b", "a", 3, True)
    assert verdict.statement == (
        "b has the lowest training loss: 0.100 lower than a, 95 % interval [0.075, 0.125] over 3 paired seeds: "
        "larger than seed noise"
    )


def test_lead_within_seed_noise(tmp_path):
    verdict = lead(study_of(tmp_path, a=[0.5, 0.6], b=[0.4, 0.65]), "train_loss")
    assert verdict.beyond_noise is False
    assert verdict.statement == (
        "b has the lowest training loss: 0.025 lower than a, 95 % interval [-0.928, 0.978] over 2 paired seeds: "
        "not distinguishable from seed noise"
    ).replace("0.025", f"{verdict.lead:.3f}")


def test_accuracy_is_better_when_higher_and_in_percentage_points(tmp_path):
    for label, accuracies in {"a": [0.90, 0.91], "b": [0.95, 0.96]}.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(tmp_path / label / str(seed), label, seed, answer={"test_accuracy": accuracy})
    statement = lead(read_study(tmp_path), "test_accuracy").statement
    assert statement == (
        "b has the highest test accuracy: 5.00 percentage points higher than a, 95 % interval [5.00, 5.00] "
        "over 2 paired seeds: larger than seed noise"
    )


def test_one_seed_says_so(tmp_path):
    verdict = lead(study_of(tmp_path, a=[0.5], b=[0.25]), "train_loss")
    assert verdict.statement == ("b has the lowest training loss: 0.250 lower than a; one seed: seed noise unknown")
    assert (verdict.interval, verdict.beyond_noise) == (None, None)


@pytest.mark.parametrize(
    ("losses", "statement"),
    [
        ({"a": [1.0, 2.0]}, "a is the only method: nothing to compare its training loss with"),
        ({"a": [None], "b": [None, None]}, "every finished run diverged"),
        (
            {"a": [0.5, 0.5], "b": [1.0, None]},
            "only a can be ranked in training loss; not ranked, because runs diverged: b",
        ),
        (
            {"a": [0.5, 0.7], "b": [0.5, 0.7]},
            "a and b have the same training loss, 95 % interval [0.00, 0.00] over 2 paired seeds: "
            "not distinguishable from seed noise",
        ),
        (
            {"a": [0.5, 0.5], "b": [1.0, 1.0]},
            "a has the lowest training loss: 0.500 lower than b, 95 % interval [0.500, 0.500] over 2 paired seeds: "
            "larger than seed noise",
        ),
    ],
)
def test_edge_cases(tmp_path, losses, statement):
    assert lead(study_of(tmp_path, **losses), "train_loss").statement == statement


def test_an_arm_that_diverged_cannot_be_best(tmp_path):
    verdict = lead(study_of(tmp_path, a=[0.01, None], b=[0.5, 0.6], c=[0.7, 0.8]), "train_loss")
    assert (verdict.best, verdict.runner_up) == ("b", "c")
    assert verdict.statement.endswith("; not ranked, because runs diverged: a")


def test_arms_are_compared_on_the_seeds_they_share(tmp_path):
    study_of(tmp_path, a=[0.5, 0.6])
    write_run(tmp_path / "b1", "b", 1, answer={"train_loss": 0.4})
    write_run(tmp_path / "b2", "b", 2, answer={"train_loss": 9.0})  # bad, but a has no seed 2
    assert lead(read_study(tmp_path), "train_loss").statement == (
        "b has the lowest training loss: 0.200 lower than a; one seed: seed noise unknown"
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
def test_interval_is_student_s(differences):
    expected = scipy.stats.t.interval(0.95, len(differences) - 1, np.mean(differences), scipy.stats.sem(differences))
    assert _student_interval(differences) == pytest.approx(expected, rel=1e-6, abs=1e-6)
