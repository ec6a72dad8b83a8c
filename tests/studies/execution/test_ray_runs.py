"""Runs on a Ray cluster of two nodes on one machine, of which one is killed."""

import builtins
import json
import re
from collections import defaultdict
from dataclasses import replace

import pytest

from sngd.studies.execution.execution import Execution, RayCluster
from sngd.studies.execution.parallel import run_all
from sngd.studies.execution.task import Task
from sngd.training import Interrupted, RunConfig

SLOW_PROBLEM = """
import json, os, ray, time, torch
from sngd.problems import Problem

def slow(inputs, generator):
    if len(inputs) == 8:  # a batch, no trial of the problem
        time.sleep(0.05)
        here = ray.get_runtime_context()
        line = [os.getpid(), here.get_node_id(), generator.initial_seed(), here.get_assigned_resources()]
        with open({log!r}, "a") as file:  # who trains what
            file.write(json.dumps(line) + "\\n")
    return inputs

def factory():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return Problem(lambda: torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, (x, y), augment=slow)
"""


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        cluster.add_node(**node)
        yield cluster
        cluster.shutdown()


def slow_tasks(folder, count, epochs):
    """Five steps an epoch, and an evaluation after each; a checkpoint after the first that is a second after the last.

    A step takes at least a twentieth of a second, so there are at most 25 steps from one checkpoint to the next.
    """
    (folder / "slow.py").write_text(SLOW_PROBLEM.format(log=str(folder / "log")))
    config = RunConfig(f"{folder}/slow.py:factory", "sngd", lr=0.1, batch_size=8, epochs=epochs, threads=1)
    return [Task(replace(config, seed=seed), folder / f"seed-{seed}") for seed in range(count)]


def read_log(folder):
    """(process, node, run, resources) for each step that was taken."""
    log = folder / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.slow
def test_a_node_dies_and_every_run_finishes_none_twice(tmp_path, cluster):
    warnings, killed = [], []
    tasks = slow_tasks(tmp_path, count=4, epochs=10)
    (doomed,) = cluster.worker_nodes

    def kill_in_the_middle(_index, _progress):
        steps = defaultdict(int)
        for _, node, run, _ in read_log(tmp_path):
            steps[run] += node == doomed.node_id
        if not killed and any(26 <= n <= 45 for n in steps.values()):
            killed.append(True)
            cluster.remove_node(doomed, allow_graceful=False)

    execution = Execution(
        ray=RayCluster(cluster.address), begin=lambda *_: kill_in_the_middle, on_warning=warnings.append
    )
    rows = run_all(tasks, execution)

    assert killed
    assert [(row["final"], row["step"]) for row in rows] == [(True, 50)] * 4
    assert warnings
    assert all(re.search(r"seed-\d: its worker died \(.*\); the run goes on in another one$", w) for w in warnings)

    processes, at_the_dead_node = defaultdict(list), set()
    for process, node, run, _ in read_log(tmp_path):
        processes[run].append(process)
        if node == doomed.node_id:
            at_the_dead_node.add(run)
    assert len(processes) == 4
    moved = {run for run, taken in processes.items() if len(set(taken)) > 1}
    assert moved == at_the_dead_node  # the one that was killed, and at times one that it was given while it died
    # A run that was given to the node while it died, and took no step there, is named too.
    named = {re.search(r"seed-\d", warning).group() for warning in warnings}
    assert len(moved) <= len(named) <= len(tasks)
    for run, taken in processes.items():
        assert taken == sorted(taken, key=taken.index)  # never in two processes at once
        assert 50 <= len(taken) <= 50 + 25 * (run in moved)  # only what came after a checkpoint was done again

    before = read_log(tmp_path)
    assert run_all(tasks, execution) == rows
    assert read_log(tmp_path) == before


@pytest.mark.slow
def test_asked_to_stop_the_running_save_and_go_on_later_with_their_shares(tmp_path, cluster):
    tasks = slow_tasks(tmp_path, count=2, epochs=3)
    ray = RayCluster(cluster.address, cpus=0.5, gpus=0.25)
    seen = []
    with pytest.raises(Interrupted, match="stopped with 0 of 2 runs finished; the same command goes on"):
        run_all(
            tasks,
            Execution(
                ray=ray,
                begin=lambda *_: lambda _, progress: seen.append(progress.oracle_calls),
                should_stop=lambda: max(seen, default=0) > 0,
            ),
        )
    assert any((task.folder / "checkpoint.pt").exists() for task in tasks)
    assert [row["step"] for row in run_all(tasks, Execution(ray=ray))] == [15] * 2
    steps = read_log(tmp_path)
    assert len(steps) == 2 * 15  # none was lost
    assert all(resources == {"CPU": 0.5, "GPU": 0.25} for *_, resources in steps)

    broken = [task._replace(config=replace(task.config, lr=0.2)) for task in tasks]
    with pytest.raises(ValueError, match=r"seed-\d: cannot resume with other settings: lr is 0.1, not 0.2$"):
        run_all(broken, Execution(ray=RayCluster(cluster.address)))


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:1", ".*Connection refused"), ("here", "the address must be 'auto' or HOST:PORT")],
)
def test_a_cluster_that_is_not_there_is_said_at_once(address, reason):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=f"^ray: cannot join a cluster at '{address}': {reason}$"):
        run_all([], Execution(ray=RayCluster(address)))


def test_without_the_package_one_line_says_so(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"^ray: a cluster needs the package ray: pip install 'sngd\[ray\]'$"):
        run_all([], Execution(ray=RayCluster()))
