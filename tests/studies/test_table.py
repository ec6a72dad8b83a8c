import json
import statistics

import pytest
from fake_runs import study_of, write_run, write_study

from sngd.studies.runs import read_study
from sngd.studies.table import Spread, as_json, as_markdown, behind, cells, format_spread, summarize


def test_summary_is_mean_and_sample_deviation_of_the_answers(tmp_path):
    (summary,) = summarize(study_of(tmp_path, sngd=[1.0, 2.0, 6.0]))
    assert summary.train_loss == Spread(3.0, statistics.stdev([1.0, 2.0, 6.0]), 3)
    assert (summary.runs, summary.finished, summary.diverged, summary.lr, summary.budget) == (3, 3, 0, 0.1, 10)


def test_the_drawn_iterate_is_the_answer(tmp_path):
    run = read_study(write_run(tmp_path / "a", drawn=True))
    (summary,) = summarize(run)
    assert summary.train_loss.mean == run.runs[0].rows[-1]["train_loss"] != run.runs[0].curve[-1]["train_loss"]


def test_unfinished_and_diverged_runs_are_counted_not_averaged(tmp_path):
    write_run(tmp_path / "cut", "sngd", 5, stop=4)
    (summary,) = summarize(study_of(tmp_path, sngd=[1.0, None, 3.0]))
    assert (summary.runs, summary.finished, summary.diverged) == (4, 3, 1)
    assert summary.train_loss == Spread(2.0, statistics.stdev([1.0, 3.0]), 2)
    _, rows = cells(read_study(tmp_path))
    assert rows[0][3].text == "3 of 4 (1 diverged)"


def test_what_no_run_measured_has_no_column(tmp_path):
    write_run(tmp_path / "b", "b", test=False)
    header, _ = cells(read_study(tmp_path / "b"))
    assert header == ["method", "lr", "#grad/n", "seeds", "training loss"]


@pytest.mark.parametrize(
    ("spread", "percent", "text"),
    [
        (Spread(0.0512345, 0.000412, 3), False, "0.05123 ± 0.00041"),
        (Spread(2.302585, None, 1), False, "2.303"),
        (Spread(123456.0, 78.0, 3), False, "(1.235 ± 0.001)e+05"),
        (Spread(1.23456e-7, 4e-9, 3), False, "(1.235 ± 0.040)e-07"),
        (Spread(1.23456e-7, None, 1), False, "1.235e-07"),
        (Spread(0.0, 0.0, 2), False, "0.000 ± 0.000"),
        (Spread(-3.14159, 0.5, 2), False, "-3.142 ± 0.500"),
        (Spread(0.97654, 0.00123, 3), True, "97.65 ± 0.12"),
        (None, True, "–"),
    ],
)
def test_numbers_as_shown(spread, percent, text):
    assert format_spread(spread, percent) == text


def test_markdown(tmp_path):
    lines = as_markdown(study_of(tmp_path, a=[0.5, 0.6], b=[0.4, 0.45])).splitlines()
    assert lines[0] == "| method | lr | #grad/n | seeds | training loss | test loss | test accuracy (%) |"
    assert lines[1] == "|---|---:|---:|---:|---:|---:|---:|"
    assert lines[2].startswith("| a | 0.1 | 10 | 2 | 0.5500 ± 0.0707 |")
    assert lines[3].startswith("| b | 0.1 | 10 | 2 | **0.4250 ± 0.0354** |")
    assert lines[7].startswith(
        "* b's final training loss is not shown to be lower than a's: 0.125 ± 0.318 over 2 seeds"
    )
    assert not any("behind" in line for line in lines)  # with two arms the statements say it all


def test_markdown_has_the_distance_of_three_arms_from_the_best(tmp_path):
    study = study_of(tmp_path, a=[0.5, 0.6], b=[0.4, 0.45], c=[0.9, None])
    header, rows = behind(study)
    assert header == ["behind the best by", "training loss", "test loss", "test accuracy (percentage points)"]
    assert [row[:2] for row in rows] == [["a", "0.125 ± 0.318"], ["b", "best"], ["c", "–"]]
    assert "| a | 0.125 ± 0.318 |" in as_markdown(study)


def test_no_distances_without_a_ranking(tmp_path):
    assert behind(study_of(tmp_path, a=[None], b=[None], c=[None])) is None


def test_json_is_plain_and_complete(tmp_path):
    study = read_study(write_study(tmp_path))
    content = as_json(study)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert [method["label"] for method in content["methods"]] == ["sgd", "sngd", "s-sngd"]
    assert set(content["methods"][0]["train_loss"]) == {"mean", "std", "n"}
    assert set(content["verdicts"][0]["leads"][0]) == {"other", "mean", "half_width"}
    assert [verdict["key"] for verdict in content["verdicts"]] == ["train_loss", "test_loss", "test_accuracy"]
