import json

import numpy as np
import pytest
from fake_runs import write_comparison, write_run, write_study
from hypothesis import given
from hypothesis import strategies as st

from sngd.studies.runs import band, interpolate, read_run, read_study, seconds_spent, value


def test_reads_a_finished_run(tmp_path):
    run = read_run(write_run(tmp_path / "a", "s-sngd", seed=4))
    assert (run.label, run.seed, run.finished, run.diverged) == ("s-sngd", 4, True, False)
    assert len(run.rows) == len(run.curve) == 11
    assert run.answer is run.rows[-1]
    assert run.environment["torch"] == "2.13.0"


def test_a_drawn_answer_is_not_on_the_curve(tmp_path):
    run = read_run(write_run(tmp_path / "a", drawn=True))
    assert len(run.curve) == 11
    assert run.answer["iterate"] == "random"
    assert run.answer not in run.curve


def test_without_a_label_the_method_names_the_arm(tmp_path):
    assert read_run(write_run(tmp_path / "a", "sngd", config={"label": None})).label == "sngd"


def test_runs_older_than_a_parameter_are_of_one_arm_with_those_that_say_what_it_was(tmp_path):
    for seed, params in enumerate([{}, {"chunk_size": 512}]):
        write_run(tmp_path / str(seed), "gd", seed, config={"params": params})
    assert list(read_study(tmp_path).arms) == ["gd"]
    write_run(tmp_path / "2", "gd", 2, config={"params": {"chunk_size": 64}})
    assert list(read_study(tmp_path).arms) == ['gd params={"chunk_size": 512}', 'gd params={"chunk_size": 64}']


def test_unfinished_and_diverged_runs(tmp_path):
    cut = read_run(write_run(tmp_path / "cut", stop=3))
    assert (cut.finished, cut.diverged, len(cut.rows)) == (False, False, 4)
    lost = read_run(write_run(tmp_path / "lost", diverge=3))
    assert (lost.finished, lost.diverged) == (True, True)
    (tmp_path / "cut" / "metrics.jsonl").unlink()
    assert read_run(tmp_path / "cut").answer == {}


@given(cut=st.integers(0, 4000))
def test_a_file_cut_anywhere_is_read_up_to_its_last_complete_row(tmp_path_factory, cut):
    path = write_run(tmp_path_factory.mktemp("run") / "a")
    whole = (path / "metrics.jsonl").read_bytes()
    (path / "metrics.jsonl").write_bytes(whole[:cut])
    complete = [
        json.loads(line) for line in whole[: cut + 1].split(b"\n")[:-1]
    ]  # a row lacking only its line end counts
    assert read_run(path).rows == complete


def test_null_is_no_value(tmp_path):
    (row,) = read_run(write_run(tmp_path / "a", diverge=0)).rows
    assert [value(row, key) for key in ("train_loss", "grad_norm", "noise_scale")] == [None] * 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"step": \n', "not JSON (Input data was truncated)"),
        (b"[1]\n", "expected `object`, got `array`"),
        (b"\n", "not JSON (Input data was truncated)"),
        (b'{"train_loss": "low"}\n', "expected `float | null`, got `str` - at `$.train_loss`"),
        (b'{"train_loss": NaN}\n', "not JSON (invalid character (byte 15))"),
        (b'{"train_loss": 1e999}\n', "number out of range - at `$.train_loss`"),
        (b'{"train_los": 1}\n', "object contains unknown field `train_los`, did you mean 'train_loss'?"),
        (b'{"test_accuracy": 1.5}\n', "expected `float` <= 1.0 - at `$.test_accuracy`"),
        (b'{"step": 1}\n', "object missing required field `epoch`"),
        (b"\xff\xfe\n", "not JSON (invalid character (byte 0))"),
    ],
)
def test_broken_metrics_name_file_and_line(tmp_path, line, reason):
    path = write_run(tmp_path / "a")
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(b"".join([lines[0], line, *lines[1:]]))
    reason = f"line 2: {reason}"
    with pytest.raises(ValueError, match="metrics") as error:
        read_run(path)
    assert str(error.value) == f"{path / 'metrics.jsonl'}, {reason}"


def test_broken_config_names_file_and_line(tmp_path):
    path = write_run(tmp_path / "a")
    (path / "config.json").write_text('{"seed": 0,\n"lr": }')
    with pytest.raises(ValueError, match="JSON") as error:
        read_study(tmp_path)
    assert str(error.value) == f"{path / 'config.json'}: not JSON (invalid character (byte 18))"


def test_a_study_in_the_order_of_its_comparison(tmp_path):
    study = read_study(write_study(tmp_path / "s"))
    assert study.labels == ["sgd", "sngd", "s-sngd"]
    assert [run.seed for run in study.arms["sngd"]] == [0, 1, 2]
    assert study.problem == "digits-mlp"
    assert study.tuning["chosen"] == {"sgd": 0.1, "sngd": 0.1, "s-sngd": 0.1}


def test_without_a_comparison_labels_are_sorted(tmp_path):
    for label in ("sngd", "gd"):
        write_run(tmp_path / label, label)
    study = read_study(tmp_path)
    assert (study.labels, study.tuning, study.comparison) == (["gd", "sngd"], None, None)


def test_tuning_runs_are_no_runs_of_the_study(tmp_path):
    study = read_study(write_study(tmp_path / "s"))
    assert len(study.runs) == 9
    assert len(read_study(tmp_path).runs) == 9  # also when looked at from further up
    assert len(read_study(tmp_path / "s" / "tuning").runs) == 3  # but they can be looked at


def test_a_method_may_be_called_tuning(tmp_path):
    write_run(tmp_path / "runs" / "tuning" / "seed-0", "tuning")
    assert read_study(tmp_path).labels == ["tuning"]


def test_a_run_folder_is_a_study_of_one(tmp_path):
    assert read_study(write_run(tmp_path / "a")).labels == ["sngd"]


def test_one_label_with_two_settings_becomes_two_arms(tmp_path):
    for lr in (0.5, 0.1):
        for seed in (0, 1):
            write_run(tmp_path / f"{lr}-{seed}", "sngd", seed, lr=lr)
    study = read_study(tmp_path)
    assert study.labels == ["sngd lr=0.1", "sngd lr=0.5"]
    assert [len(runs) for runs in study.arms.values()] == [2, 2]


def test_the_same_seed_twice_is_an_error(tmp_path):
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    with pytest.raises(ValueError, match="same method") as error:
        read_study(tmp_path)
    assert str(error.value) == f"{other}: same method and seed as {one} ('sngd', seed 0)"


def test_runs_of_two_problems_are_an_error(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config={"problem": "mnist-mlp"})
    with pytest.raises(ValueError, match="several") as error:
        read_study(tmp_path)
    several = "runs of several problems (digits-mlp, mnist-mlp)"
    assert str(error.value) == f"{tmp_path}: {several}, a study is about one: name a folder inside"


def test_no_runs_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_study(tmp_path)
    assert str(error.value) == f"{tmp_path}: no runs in it, no folder has a config.json"
    with pytest.raises(FileNotFoundError) as error:
        read_study(tmp_path / "absent")
    assert str(error.value) == f"{tmp_path / 'absent'}: no such folder"
    with pytest.raises(FileNotFoundError) as error:
        read_run(tmp_path)
    assert str(error.value) == f"{tmp_path}: not a run folder, it has no config.json"


def test_a_comparison_with_half_a_tuning_is_an_error(tmp_path):
    write_run(tmp_path / "a")
    write_comparison(tmp_path, methods=["sngd"], seeds=[0], tuning={"grid": [0.1]})
    with pytest.raises(ValueError, match="tuning") as error:
        read_study(tmp_path)
    assert str(error.value) == f"{tmp_path / 'compare.json'}: object missing required field `seed` - at `$.tuning`"


def test_interpolate():
    rows = [
        {"grads_over_n": 0, "train_loss": 4.0},
        {"grads_over_n": 1, "train_loss": None},
        {"grads_over_n": 2, "train_loss": 2.0},
        {"grads_over_n": 2, "train_loss": 1.0},  # the later of two rows at one cost counts
    ]
    result = interpolate(rows, "train_loss", np.array([-1.0, 0.0, 1.0, 2.0, 2.1]))
    np.testing.assert_array_equal(result, [np.nan, 4.0, 2.5, 1.0, np.nan])
    assert np.isnan(interpolate(rows, "test_loss", np.array([0.0, 1.0]))).all()


def test_band_joins_seeds_that_evaluate_at_different_costs(tmp_path):
    runs = [
        read_run(write_run(tmp_path / "a", seed=0, every=1.0)),
        read_run(write_run(tmp_path / "b", seed=1, every=2.5)),
    ]
    curve = band(runs, "train_loss")
    assert curve.cost.tolist() == [0, 1, 2, 2.5, 3, 4, 5, 6, 7, 7.5, 8, 9, 10]
    assert ((curve.low <= curve.mean) & (curve.mean <= curve.high)).all()
    ends = [run.answer["train_loss"] for run in runs]
    assert curve.mean[-1] == pytest.approx(sum(ends) / 2)
    assert (curve.low[-1], curve.high[-1]) == (min(ends), max(ends))


def test_band_ends_where_the_first_seed_diverges(tmp_path):
    runs = [read_run(write_run(tmp_path / "a", seed=0)), read_run(write_run(tmp_path / "b", seed=1, diverge=4))]
    assert band(runs, "train_loss").cost[-1] == 3


def test_band_waits_for_no_run_under_way(tmp_path):
    done, under_way = read_run(write_run(tmp_path / "a", seed=0)), read_run(write_run(tmp_path / "b", seed=1, stop=2))
    assert band([done, under_way], "train_loss").cost[-1] == 10
    assert band([under_way], "train_loss").cost[-1] == 2
    assert band([read_run(write_run(tmp_path / "c", test=False))], "test_accuracy") is None


def test_compare_json_says_which_runs_belong_to_the_study(tmp_path):
    write_study(tmp_path, {"sgd": 0.2, "sngd": 0.1}, seeds=2)
    runs = [path.parent.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("config.json"))]
    wanted = [run for run in runs if "runs/sngd" in run] + ["runs/not/begun"]
    write_comparison(tmp_path, methods=["sngd"], seeds=[0, 1], runs=wanted)
    assert {label: len(arm) for label, arm in read_study(tmp_path).arms.items()} == {"sngd": 2}


def test_seconds_of_all_runs_are_added_up(tmp_path):
    write_run(tmp_path / "a")  # 0.02 s an epoch, 10 epochs
    write_run(tmp_path / "tuning" / "b", epochs=5)
    write_run(tmp_path / "c.broken-1")  # set aside
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    assert seconds_spent(tmp_path) == pytest.approx(0.3)
