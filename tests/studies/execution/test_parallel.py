"""Runs in parallel processes: in order, in spite of one another, and when a process dies."""

from dataclasses import replace

import pytest

from sngd.studies.execution.execution import Execution
from sngd.studies.execution.parallel import run_all
from sngd.studies.execution.task import Task
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
