"""Runs in parallel processes: in order, in spite of one another, and when a process dies."""

import importlib
from dataclasses import replace
from unittest.mock import Mock

import pytest

from sngd.studies.execution import parallel
from sngd.studies.execution.execution import Execution
from sngd.studies.execution.parallel import _context as own_context  # the tests put another one in its place
from sngd.studies.execution.parallel import run_all
from sngd.studies.execution.task import Task
from sngd.training import Interrupted, RunConfig


def tasks(folder, problem="digits-mlp", count=3):
    config = RunConfig(problem, "sngd", epochs=1, eval_every=1)
    return [Task(replace(config, seed=seed), folder / str(seed)) for seed in range(count)]


@pytest.mark.parametrize(
    ("platform", "device", "method"),
    [("linux", "cpu", "forkserver"), ("linux", "cuda", "spawn"), ("darwin", "cpu", "spawn")],
)
def test_workers_are_forked_where_that_is_safe(monkeypatch, tmp_path, platform, device, method):
    context = Mock()
    monkeypatch.setattr(parallel, "multiprocessing", context)
    monkeypatch.setattr("sys.platform", platform)
    some = [Task(replace(config, device=device), folder) for config, folder in tasks(tmp_path)]
    assert own_context(some) is context.get_context.return_value
    context.get_context.assert_called_once_with(method)


def test_what_workers_import_is_there():
    assert all(importlib.import_module(name) for name in parallel._IMPORTED)


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
def test_workers_have_the_environment_of_the_moment(monkeypatch, tmp_path):
    """Also if they are forked from a process that is older than a variable."""
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "from sngd.problems import load_problem\n\n\n"
        "def factory():\n"
        "    assert os.environ.get('SNGD_OF_A_TEST') == 'set'\n"
        "    return load_problem('digits-mlp')\n"
    )
    problem = f"{tmp_path}/mine.py:factory"
    with pytest.raises(ValueError, match="AssertionError in factory"):
        run_all(tasks(tmp_path / "before", problem, count=1), Execution(jobs=1))
    monkeypatch.setenv("SNGD_OF_A_TEST", "set")
    assert run_all(tasks(tmp_path / "after", problem, count=1), Execution(jobs=1))[0]["final"]


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
