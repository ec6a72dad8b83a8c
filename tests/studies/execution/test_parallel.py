"""Runs in parallel processes: in order, in spite of one another, and when a process dies."""

from dataclasses import replace

import pytest

from sngd.studies.execution import workers
from sngd.studies.execution.execution import Execution
from sngd.studies.execution.parallel import run_all
from sngd.studies.execution.task import Task
from sngd.studies.execution.workers import can_fork
from sngd.training import Interrupted, RunConfig


def tasks(folder, problem="digits-mlp", count=3):
    config = RunConfig(problem, "sngd", epochs=1, eval_every=1)
    return [Task(replace(config, seed=seed), folder / str(seed)) for seed in range(count)]


@pytest.mark.slow
def test_rows_come_in_the_order_of_the_tasks_and_each_run_is_followed(tmp_path):
    begun, seen = [], {}

    def begin(title, configs):
        begun.append((title, [config.seed for config in configs]))
        return seen.setdefault

    rows = run_all(tasks(tmp_path), Execution(jobs=2, begin=begin), "three")
    alone = [run_all([task], Execution(jobs=1))[0] for task in tasks(tmp_path)]  # finished: read, not repeated
    assert rows == alone
    assert len({row["train_loss"] for row in rows}) == 3
    assert begun == [("three", [0, 1, 2])]
    assert seen.keys() == {0, 1, 2}


@pytest.mark.slow
def test_a_killed_worker_is_reported_in_one_line(tmp_path):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n\n\ndef factory():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with pytest.raises(Interrupted, match="a worker process was killed; the same command goes on"):
        run_all(tasks(tmp_path, f"{tmp_path}/deadly.py:factory", count=2), Execution(jobs=2))


@pytest.mark.slow
def test_asked_to_stop_nothing_is_left_half_done(tmp_path):
    for replicas in (None, 1):
        with pytest.raises(Interrupted, match="of 3 runs finished; the same command goes on"):
            run_all(tasks(tmp_path), Execution(jobs=1, replicas=replicas, should_stop=lambda: True))
    rows = run_all(tasks(tmp_path), Execution(jobs=1))
    assert all(row["final"] for row in rows)
    with pytest.raises(Interrupted, match="stopped with 3 of 3 runs finished"):
        run_all(tasks(tmp_path), Execution(jobs=1, should_stop=lambda: True))
    with pytest.raises(Interrupted, match="stopped with 3 of 4 runs finished"):
        run_all(tasks(tmp_path, count=4), Execution(jobs=1, should_stop=lambda: True))


@pytest.mark.slow
def test_an_error_names_the_run(tmp_path):
    config = RunConfig("digits-mlp", "nsgd-momentum", plan="agnostic", epochs=1, eval_every=1)
    params = [{"momentum": beta} for beta in (0.9, 0.0, 0.5)]  # the plan sets the second one's, which has no buffer
    some = [Task(replace(config, params=own), tmp_path / str(place)) for place, own in enumerate(params)]
    for replicas in (None, 1):
        with pytest.raises(ValueError, match="momentum above 0") as caught:
            run_all(some, Execution(jobs=1, replicas=replicas))
        assert caught.value.__notes__ == [f"in the run {tmp_path / '1'}"]


def test_each_run_has_a_folder_of_its_own(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path / '1'}: two runs are to be trained in this folder"):
        run_all([*tasks(tmp_path), *tasks(tmp_path)[1:]], Execution(jobs=1))


@pytest.mark.slow
def test_workers_have_the_environment_variables_of_now(tmp_path, monkeypatch):
    """They are forked from a server, which has those of its start."""
    (tmp_path / "told.py").write_text(
        "import os\nfrom sngd.problems import load_problem\n\n\n"
        "def factory():\n    return load_problem(os.environ['TOLD'])\n"
    )
    problem = f"{tmp_path}/told.py:factory"
    monkeypatch.setenv("TOLD", "before")
    with pytest.raises(ValueError, match="before"):
        run_all(tasks(tmp_path, problem, count=2), Execution(jobs=1))
    monkeypatch.setenv("TOLD", "digits-mlp")
    run_all(tasks(tmp_path, problem, count=2), Execution(jobs=1))


def test_only_runs_on_the_cpu_have_forked_workers():
    """What a server asks a GPU's driver would make the GPU useless in the processes forked from it."""
    assert can_fork("cpu")
    assert not can_fork("cuda:0")


@pytest.mark.slow
def test_where_workers_cannot_be_forked_they_start_anew(tmp_path, monkeypatch):
    rows = run_all(tasks(tmp_path / "forked", count=2), Execution(jobs=1))
    monkeypatch.setattr(workers, "start_server", lambda: None)
    again = run_all(tasks(tmp_path / "spawned", count=2), Execution(jobs=1))
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in rows]
