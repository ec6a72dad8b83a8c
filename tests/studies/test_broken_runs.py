"""A run folder that is damaged is set aside, never deleted, and its run done anew; other settings stay an error."""

import json
from dataclasses import replace

import pytest
import torch

from sngd.studies.execution.execution import Execution
from sngd.studies.execution.parallel import run_all
from sngd.studies.execution.task import Task, do_task
from sngd.studies.runs import read_study
from sngd.training import Interrupted, RunConfig, train
from sngd.training.run_folder import BrokenRun, RunFolder

PROBLEM = """
import torch
from sngd.problems import Problem

def factory():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return Problem(lambda: torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, (x, (x[:, 0] > 0).long()))
"""


@pytest.fixture
def task(tmp_path):
    (tmp_path / "small.py").write_text(PROBLEM)
    config = RunConfig(f"{tmp_path}/small.py:factory", "sngd", lr=0.1, batch_size=8, epochs=4, threads=1)
    return Task(config, tmp_path / "runs" / "seed-0")


def do(task):
    warnings = []
    row = do_task(task, Execution(on_warning=warnings.append), 1, lambda _: None)
    return {key: value for key, value in row.items() if key != "seconds"}, warnings


def cut_short(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def halfway(task):
    calls = iter(range(100))
    with pytest.raises(Interrupted):
        train(task.config, task.folder, should_stop=lambda: next(calls) == 12)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_line(path, **values):
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps(json.loads(first) | values) + "\n", *others]))


def change_checkpoint(run, change):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, run / "checkpoint.pt")


DAMAGES = {
    "truncated checkpoint": (lambda run: cut_short(run / "checkpoint.pt", 500), "checkpoint.pt: cannot be read ("),
    "empty checkpoint": (lambda run: cut_short(run / "checkpoint.pt", 0), "checkpoint.pt: cannot be read ("),
    "truncated metrics": (lambda run: cut_short(run / "metrics.jsonl", 300), "complete rows, the checkpoint knows"),
    "lost metrics": (lambda run: (run / "metrics.jsonl").unlink(), "has 0 complete rows, the checkpoint knows"),
    "zeros in metrics": (
        lambda run: (run / "metrics.jsonl").write_bytes(b"\0" * 100 + (run / "metrics.jsonl").read_bytes()[100:]),
        "metrics.jsonl, line 1: not JSON (",
    ),
    "garbage config": (lambda run: (run / "config.json").write_bytes(b"\xff\0{garbage"), "config.json: not JSON ("),
    "empty config": (lambda run: (run / "config.json").write_bytes(b""), "config.json: not JSON ("),
    "wrong type in config": (
        lambda run: change(run / "config.json", lr="x"),
        "config.json: expected `float | null`, got `str` - at `$.lr`",
    ),
    "wrong type in metrics": (
        lambda run: change_line(run / "metrics.jsonl", train_loss="x"),
        "metrics.jsonl, line 1: expected `float | null`, got `str` - at `$.train_loss`",
    ),
    "empty mapping as checkpoint": (
        lambda run: torch.save({}, run / "checkpoint.pt"),
        "checkpoint.pt: object missing required field `finished`",
    ),
    "list as checkpoint": (
        lambda run: torch.save([1], run / "checkpoint.pt"),
        "checkpoint.pt: expected `object`, got `array`",
    ),
    "checkpoint without rows": (
        lambda run: change_checkpoint(run, lambda state: state.pop("rows")),
        "checkpoint.pt: object missing required field `rows`",
    ),
    "checkpoint with a wrong type": (
        lambda run: change_checkpoint(run, lambda state: state.update(rng="x")),
        "checkpoint.pt: expected `Tensor`, got `str` - at `$.rng`",
    ),
    "checkpoint of rows below 0": (
        lambda run: change_checkpoint(run, lambda state: state.update(rows=-1)),
        "checkpoint.pt: expected `int` >= 0 - at `$.rows`",
    ),
    "folder as checkpoint": (
        lambda run: (run / "checkpoint.pt").unlink() or (run / "checkpoint.pt").mkdir(),
        "checkpoint.pt: is a folder, must be a file",
    ),
    "lost config": (lambda run: (run / "config.json").unlink(), "has a checkpoint and no config.json"),
}


@pytest.mark.parametrize("begin", [do, halfway], ids=["finished", "half done"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_set_aside_and_done_anew(tmp_path, task, damage, begin):
    whole, _ = do(task._replace(folder=tmp_path / "whole"))
    begin(task)
    break_it, reason = DAMAGES[damage]
    break_it(task.folder)
    broken = contents(task.folder)

    row, warnings = do(task)

    assert row == whole
    aside = task.folder.with_name("seed-0.broken-1")
    assert contents(aside) == broken
    (warning,) = warnings
    assert warning.startswith(str(task.folder))
    assert reason in warning
    assert warning.endswith("; set aside as seed-0.broken-1, the run is done anew")
    assert "--overwrite" not in warning
    assert do(task) == (whole, [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.update(model=torch.nn.Linear(5, 2).state_dict()), "size mismatch for weight"),
        (lambda state: state.update(model=torch.nn.ReLU().state_dict()), "Missing key(s) in state_dict"),
        (lambda state: state["model"].update(weight=3), "expected torch.Tensor"),
    ],
)
def test_a_checkpoint_of_another_model_is_set_aside(tmp_path, task, change, reason):
    whole, _ = do(task._replace(folder=tmp_path / "whole"))
    halfway(task)
    change_checkpoint(task.folder, change)
    with pytest.raises(
        BrokenRun, match=r"checkpoint\.pt: model is not this run's \(.*; start again with --overwrite$"
    ) as error:
        train(task.config, task.folder, resume=True)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    row, (warning,) = do(task)
    assert row == whole
    assert warning.endswith("; set aside as seed-0.broken-1, the run is done anew")


def test_a_finished_run_without_its_weights_is_left_alone(task):
    row, _ = do(task)
    (task.folder / "checkpoint.pt").unlink()
    kept = contents(task.folder)
    assert do(task) == (row, [])
    assert contents(task.folder) == kept


def test_the_next_free_number_is_taken_and_none_is_counted_as_a_run(tmp_path, task):
    for number in (1, 2):
        do(task)
        (task.folder / "config.json").write_text("{")
        assert f"broken-{number}" in do(task)[1][0]
    (task.folder.parent / "seed-0.broken-1" / "config.json").write_text(json.dumps({"problem": "another"}))
    assert [run.path for run in read_study(tmp_path).runs] == [task.folder]
    assert len(read_study(tmp_path / "runs" / "seed-0").runs) == 1


def test_a_set_aside_run_can_be_looked_at_by_name(task):
    do(task)
    aside = task.folder.rename(task.folder.with_name("seed-0.broken-1"))
    assert len(read_study(aside).runs) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda config: {**config, "lr": 0.5}, "cannot resume with other settings: lr is 0.5, not 0.1"),
        (lambda config: {**config, "colour": "red"}, "config.json: object contains unknown field `colour`"),
    ],
)
def test_other_settings_are_an_error_and_nothing_moves(task, damage, message):
    do(task)
    path = task.folder / "config.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        do(task)
    assert [folder.name for folder in task.folder.parent.iterdir()] == ["seed-0"]


def test_what_a_kill_leaves_behind_is_no_damage(task):
    halfway(task)
    with open(task.folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 9, "tra')
    assert do(task)[1] == []
    task.folder.joinpath("checkpoint.pt").unlink()  # killed in its first evaluation
    assert do(task)[1] == []


def test_a_failing_disk_is_no_damage(task, monkeypatch):
    do(task)

    def fail(*_args, **_kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sngd.training.run_folder.content_of", fail)
    with pytest.raises(OSError, match="Input/output error"):
        do(task)
    assert task.folder.exists()


def test_a_run_that_another_process_trains_is_not_moved(task):
    do(task)
    (task.folder / "config.json").write_text("{")
    with RunFolder(task.folder).locked(), pytest.raises(ValueError, match="another process is training in this folder"):
        do(task)
    assert task.folder.exists()


@pytest.mark.slow
def test_the_warning_comes_out_of_the_worker_processes(tmp_path, task):
    tasks = [Task(replace(task.config, seed=seed), tmp_path / "runs" / f"seed-{seed}") for seed in (1, 0)]
    do(task)
    (task.folder / "config.json").write_text("{")
    with pytest.warns(UserWarning, match=r"seed-0\.broken-1, the run is done anew") as caught:
        rows = run_all(tasks, Execution(jobs=1))
    assert len(caught) == 1
    assert all(row["final"] for row in rows)
    run_all(tasks, Execution(jobs=1))  # and then there is nothing to warn of
