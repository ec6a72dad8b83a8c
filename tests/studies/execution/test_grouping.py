"""Runs that are alike are put together so that all processes have work, whatever has ended already."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sngd.studies.execution.execution import Execution
from sngd.studies.execution.grouping import alike, in_groups, plan_in_words
from sngd.studies.execution.parallel import run_all
from sngd.studies.execution.task import Task
from sngd.training import Interrupted, RunConfig, train
from sngd.training.replicas.alike import Limit
from sngd.training.run_folder import RunFolder


def tasks(**counts):
    return [
        Task(RunConfig("digits-mlp", method.replace("_", "-"), seed=seed, label=method), Path(method, str(seed)))
        for method, count in counts.items()
        for seed in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "most", "jobs", "sizes"),
    [
        (8, 16, 2, [4, 4]),
        (8, 16, 1, [8]),
        (5, 16, 2, [3, 2]),
        (1, 16, 2, [1]),
        (40, 16, 2, [10, 10, 10, 10]),
        (40, 16, 1, [14, 13, 13]),
        (3, 16, 8, [1, 1, 1]),
        (5, 1, 2, [1, 1, 1, 1, 1]),
        (7, 2, 2, [2, 2, 2, 1]),
    ],
)
def test_groups_are_of_equal_sizes_and_as_many_as_processes_or_a_multiple(count, most, jobs, sizes):
    some = tasks(sngd=count)
    found = in_groups(some, dict.fromkeys(alike(some), Limit(most)), jobs)
    assert [len(group) for group in found] == sizes
    assert sorted(index for group in found for index in group) == list(range(count))


def test_only_runs_of_a_kind_are_together_and_large_groups_come_first():
    some = tasks(sgd=2, sngd=6)
    assert in_groups(some, dict.fromkeys(alike(some), Limit(16)), 2) == [[2, 4, 6], [3, 5, 7], [0], [1]]


@pytest.mark.parametrize(("count", "sizes"), [(9, [5, 4]), (7, [4, 3]), (6, [1] * 6), (3, [1] * 3)])
def test_where_only_large_groups_gain_there_are_no_small_ones(count, sizes):
    some = tasks(sngd=count)
    found = in_groups(some, dict.fromkeys(alike(some), Limit(16, least=4)), 2)
    assert [len(group) for group in found] == sizes


def test_on_an_accelerator_groups_are_as_large_as_they_may_be():
    some = [task._replace(config=replace(task.config, device="cuda")) for task in tasks(sngd=300)]
    found = in_groups(some, dict.fromkeys(alike(some), Limit(256)), 16)
    assert [len(group) for group in found] == [150, 150]


def test_the_plan_is_said_with_reasons():
    some = tasks(sgd=2, sngd=6, natasha2=2)
    kinds = list(alike(some))
    limits = {kinds[1]: Limit(16), kinds[0]: Limit(1, "so"), kinds[2]: Limit(1, "so")}
    found = in_groups(some, limits, 2)
    assert plan_in_words(some, found, limits, 2, {1}) == [
        "10 runs: 2 processes, each training 3 or 1 at a time with 1 thread",
        "sgd, natasha2: runs are trained one by one, because so",
    ]


def test_the_plan_is_of_the_runs_that_have_not_ended():
    some = tasks(sgd=2, sngd=6)
    kinds = list(alike(some))
    limits = {kinds[0]: Limit(1, "so"), kinds[1]: Limit(16)}
    found = in_groups(some, limits, 2)
    assert plan_in_words(some, found, limits, 2, {1, 2}, ended={0, 1, 3}) == [
        "5 of 8 runs: 2 processes, each training 3 or 2 at a time with 2 or 1 threads",
    ]


def test_the_plan_says_that_runs_trained_as_one_are_not_compiled():
    some = [task._replace(config=replace(task.config, compile=True)) for task in tasks(sgd=2)]
    (kind,) = alike(some)
    said = plan_in_words(some, [[0, 1]], {kind: Limit(16)}, 1, {1})
    assert said[1:] == ["steps of runs that are trained as one are not compiled; --replicas 1 trains each by itself"]
    assert len(plan_in_words(some, [[0], [1]], {kind: Limit(1)}, 1, {1})) == 1


@pytest.mark.slow
def test_a_study_says_what_it_does_and_ends_as_without_replicas(tmp_path):
    config = RunConfig("digits-mlp", "sngd", epochs=1, eval_every=1)
    configs = [replace(config, method=method, seed=seed) for method in ("sngd", "natasha2") for seed in range(3)]
    said = []
    rows = [
        run_all(
            [Task(c, tmp_path / str(replicas) / c.method / str(c.seed)) for c in configs],
            Execution(jobs=1, replicas=replicas, on_plan=said.append),
        )
        for replicas in (None, 2, 1)
    ]
    cores = os.cpu_count() or 1
    threads = "1 thread" if cores == 1 else f"{cores} threads"
    assert said == [
        f"6 runs: 1 process, each training 3 or 1 at a time with {threads}",
        "natasha2: runs are trained one by one, because natasha2 has a loop of its own",
        f"6 runs: 1 process, each training 2 or 1 at a time with {threads}",
        "natasha2: runs are trained one by one, because natasha2 has a loop of its own",
        f"6 runs: 1 process, each training 1 at a time with {threads}",
    ]
    for one, *others in zip(*rows, strict=True):
        for other in others:
            assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    again = run_all(
        [Task(c, tmp_path / "None" / c.method / str(c.seed)) for c in configs], Execution(jobs=1, on_plan=said.append)
    )
    assert again == rows[0]
    assert len(said) == 5


@pytest.mark.slow
def test_a_damaged_run_is_set_aside_and_done_anew_beside_the_others(tmp_path):
    config = RunConfig("digits-mlp", "sngd", epochs=1, eval_every=1)
    some = [Task(replace(config, seed=seed), tmp_path / str(seed)) for seed in range(3)]
    rows, told = run_all(some, Execution(jobs=1)), []
    (tmp_path / "1" / "checkpoint.pt").write_bytes(b"damaged")
    again = run_all(some, Execution(jobs=1, on_warning=told.append))
    assert (again[0], again[2]) == (rows[0], rows[2])
    assert {**again[1], "seconds": 0} == {**rows[1], "seconds": 0}
    assert "set aside as 1.broken-1" in told[0]


@pytest.mark.slow
def test_lost_rows_of_runs_that_had_ended_are_done_anew_as_one_again(tmp_path):
    config = RunConfig("digits-mlp", "sngd", epochs=1, eval_every=1)
    some = [Task(replace(config, seed=seed), tmp_path / str(seed)) for seed in range(3)]
    rows, told, said = run_all(some, Execution(jobs=1)), [], []
    before = [RunFolder(task.folder).load_checkpoint()["model"] for task in some]
    for task in some:
        metrics = task.folder / "metrics.jsonl"
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    again = run_all(some, Execution(jobs=1, on_warning=told.append, on_plan=said.append))
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]
    for task, model in zip(some, before, strict=True):
        after = RunFolder(task.folder).load_checkpoint()["model"]
        assert all(torch.equal(after[name], model[name]) for name in model)
    assert len(told) == 3
    assert "each training 3 at a time" in said[0]


@pytest.mark.slow
def test_the_threads_that_are_said_are_those_of_the_runs(tmp_path):
    config, said = RunConfig("digits-mlp", "sngd", epochs=1, eval_every=1, threads=3), []
    new = [Task(replace(config, seed=seed), tmp_path / "new" / str(seed)) for seed in range(2)]
    run_all(new, Execution(jobs=2, on_plan=said.append))
    with pytest.raises(Interrupted):
        train(config, tmp_path / "begun" / "0", should_stop=lambda: True)
    run_all([Task(replace(config, threads=None), tmp_path / "begun" / "0")], Execution(jobs=2, on_plan=said.append))
    assert said == [
        "2 runs: 2 processes, each training 1 at a time with 3 threads",
        "1 run: 1 process, each training 1 at a time with 3 threads",
    ]
