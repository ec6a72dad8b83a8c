"""``torchrun … -m sngd train``: real processes, one voice, killed and interrupted as the operating system does it."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sngd.cli.torchrun import first_rank_speaks
from sngd.problems import load_problem
from sngd.training import RunConfig, train
from sngd.training.run_folder import RunFolder

TESTS = Path(__file__).parents[1]
PROBLEM = """
import os
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from training.small_problems import plain_problem


def plain():
    (Path(__file__).parent / ("rank-" + os.environ.get("RANK", "none"))).write_text(str(os.getpid()))
    return plain_problem()
"""
SETTINGS = {
    "method": "sgd",
    "lr": 0.02,
    "batch_size": 7,
    "seed": 5,
    "threads": 1,
    "eval_every": 20,
}  # which forgets rounding


@pytest.fixture
def problem(tmp_path):
    file = tmp_path / "problem.py"
    file.write_text(PROBLEM.format(tests=str(TESTS)))
    return f"{file}:plain"


@contextmanager
def torchrun(*words):
    """Two ranks; whatever happens they end with it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = dict(os.environ)
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks up the host's name, which may have no address
    process = subprocess.Popen(
        [*command, "-m", "sngd", "train", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def words(problem, folder, **settings):
    options = {**SETTINGS, **settings, "out": folder}
    return [problem, *(word for key, value in options.items() for word in ("--" + key.replace("_", "-"), value))]


def alone(problem, folder, **settings):
    """The same run in this process, begun or resumed."""
    return train(RunConfig(problem, **SETTINGS, **settings), folder, problem=lambda: load_problem(problem), resume=True)


def assert_same_run(one, other):
    for row, twin in zip(RunFolder(one).rows(), RunFolder(other).rows(), strict=True):
        for key in row.keys() - {"seconds"}:
            same = pytest.approx(twin[key], rel=1e-7, abs=1e-9) if isinstance(twin[key], float) else twin[key]
            assert row[key] == same, key
    weights = [torch.load(folder / "checkpoint.pt", weights_only=True)["model"] for folder in (one, other)]
    torch.testing.assert_close(*weights, rtol=1e-7, atol=1e-9)


@contextmanager
def once_begun(process, folder):
    """Wait for the first checkpoint; what is done inside must end the run, with an error and soon."""
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    yield
    process.wait(timeout=60)
    assert process.returncode != 0
    assert not RunFolder(folder).load_checkpoint()["finished"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_run_of_two_ranks_is_that_of_one_process_though_a_rank_is_killed(tmp_path, problem):
    folder = tmp_path / "two"
    with torchrun(*words(problem, folder, epochs=100)) as process:
        with once_begun(process, folder):
            os.kill(int((tmp_path / "rank-1").read_text()), signal.SIGKILL)
        assert "Signal 9 (SIGKILL) received" in process.communicate()[1]

    with torchrun(*words(problem, folder, epochs=100), "--resume", "--json") as process:
        told, warned = process.communicate(timeout=200)
    assert process.returncode == 0, warned
    assert json.loads(told)["final"]  # once, and nothing beside it
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}  # a kill may leave that
    assert names == {".lock", "config.json", "environment.json", "metrics.jsonl", "checkpoint.pt"}
    alone(problem, tmp_path / "one", epochs=100)
    assert_same_run(folder, tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_ctrl_c_saves_and_one_process_goes_on(tmp_path, problem):
    folder = tmp_path / "cut"
    with torchrun(*words(problem, folder, epochs=400)) as process:
        with once_begun(process, folder):
            process.send_signal(signal.SIGINT)  # to torchrun, which passes it on
        told, warned = process.communicate()
    steps = RunFolder(folder).load_checkpoint()["steps"]
    assert told == ""
    assert warned.count("sngd: ") == 1
    assert f"sngd: {folder}: stopped after {steps} steps; --resume goes on\n" in warned
    alone(problem, folder, epochs=400)
    alone(problem, tmp_path / "whole", epochs=400)
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_a_mistake_is_told_once(tmp_path, problem):
    alone(problem, tmp_path / "run", epochs=1)
    with torchrun(*words(problem, tmp_path / "run", epochs=1)) as process:
        told, warned = process.communicate(timeout=120)
    assert process.returncode != 0
    assert told == ""
    assert warned.count("sngd: ") == 1
    assert f"sngd: {tmp_path / 'run'}: holds a run already; --resume goes on with it, --overwrite throws" in warned
    assert "exitcode  : 2 " in warned


# --- who speaks


def speak(code):
    print("told")
    print("warned", file=sys.stderr)
    raise SystemExit(code)


@pytest.mark.parametrize(
    ("rank", "code", "told", "warned"),
    [("0", 2, "told\n", "warned\n"), ("1", 0, "", ""), ("1", 130, "", ""), ("1", 2, "", "rank 1: warned\n")],
)
def test_other_ranks_are_silent_unless_they_alone_fail(monkeypatch, capsys, rank, code, told, warned):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sngd.cli.torchrun.PATIENCE_SECONDS", 0.0)
    with pytest.raises(SystemExit), first_rank_speaks():
        speak(code)
    assert capsys.readouterr() == (told, warned)
