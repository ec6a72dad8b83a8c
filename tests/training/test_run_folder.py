"""The run's folder under ill treatment."""

import builtins
import errno
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch

from sngd.training import RunConfig
from sngd.training.run_folder import BrokenRun, RunFolder, replace_file

ROW = {"step": 1, "train_loss": 0.5}
STATE = {
    "finished": False, "model": {"weight": torch.ones(2)}, "loop": {}, "samples": {}, "augmentation": torch.ones(2),
    "iterate": None, "tracking_calls": 0, "rng": torch.ones(2), "cuda_rng": None,
    "steps": 3, "seen": 24, "rows": 1, "evaluations": 1, "seconds": 0.5,
}  # fmt: skip


def begun(path):
    folder = RunFolder(path / "run")
    folder.path.mkdir()
    folder.begin(RunConfig("p", "sgd").to_json())
    return folder


def rows(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    folder = begun(tmp_path)
    folder.append({"step": 1, "train_loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    assert rows(folder) == [{"step": 1, "train_loss": None, "grad_norm": None, "lr": 0.1}]


def test_a_run_has_ended_when_its_checkpoint_says_so_or_its_rows_alone(tmp_path):
    """A final row without its checkpoint is one that a kill may have cut off."""
    folder = begun(tmp_path)
    final = dict.fromkeys(("step", "epoch", "oracle_calls", "grads_over_n", "lr", "seconds"), 0)
    losses = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy", "grad_norm"))
    assert not folder.has_ended()
    folder.append(final | losses | {"iterate": "last", "final": True, "diverged": False})
    assert folder.has_ended()
    folder.save_checkpoint(STATE)
    assert not folder.has_ended()
    folder.save_checkpoint({**STATE, "finished": True})
    assert folder.has_ended()
    (folder.path / "metrics.jsonl").write_text("")
    with pytest.raises(BrokenRun, match="has 0 complete rows, the checkpoint knows 1"):
        folder.has_ended()


def test_a_view_is_saved_without_the_tensor_that_it_is_a_part_of(tmp_path):
    folder = begun(tmp_path)
    matrix = torch.arange(300_000.0).view(3, -1)
    folder.save_checkpoint({**STATE, "model": {"weight": matrix[1]}})
    assert torch.equal(folder.load_checkpoint()["model"]["weight"], matrix[1])
    assert (folder.path / "checkpoint.pt").stat().st_size < 1.1 * matrix[1].nbytes


@pytest.mark.parametrize("tail", [b"", b'{"step": 2, "tr', b'{"step": 2}\n', b'{"step": 2}\n{"st'])
def test_rows_after_the_checkpoint_are_dropped_whole_or_half_written(tmp_path, tail):
    folder = begun(tmp_path)
    folder.append(ROW)
    with open(folder.path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    folder.truncate(1)
    assert rows(folder) == [ROW]


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "tra'])
def test_rows_that_the_checkpoint_knows_must_be_there(tmp_path, content):
    folder = begun(tmp_path)
    (folder.path / "metrics.jsonl").write_bytes(content)
    complete = len(content.splitlines())
    lost = f"has {complete} complete rows, the checkpoint knows 1; start again with --overwrite"
    message = f"{folder.path}/metrics.jsonl: {lost}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        folder.truncate(1)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    replace_file(path, b"old")

    def no_space(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left on device") as error:
        replace_file(path, b"new")
    assert error.value.filename == str(path)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{folder.path}/metrics.jsonl'")):
        folder.append(ROW)
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["config.json", "run"]


def test_a_broken_checkpoint_is_named(tmp_path):
    folder = begun(tmp_path)
    assert folder.load_checkpoint() is None
    folder.save_checkpoint(STATE)
    assert folder.load_checkpoint()["steps"] == 3
    file = folder.path / "checkpoint.pt"
    for content in (file.read_bytes()[:-40], b"", b"nonsense"):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"^{re.escape(str(file))}: cannot be read .*; start again with --overwrite$"
        ):
            folder.load_checkpoint()


def test_what_is_no_checkpoint_inside_is_named(tmp_path):
    folder = begun(tmp_path)
    for state in ({**STATE, "iterate": torch.ones(3)}, torch.ones(3), {**STATE, "loop": torch.ones(())}):
        folder.save_checkpoint(state)
        with pytest.raises(BrokenRun, match=f"^{re.escape(str(folder.path / 'checkpoint.pt'))}: .*--overwrite$"):
            folder.load_checkpoint()


class Hostile:
    def __reduce__(self):
        return (builtins.exec, ("raise SystemExit('code from the checkpoint ran')",))


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    folder = begun(tmp_path)
    torch.save({"steps": Hostile()}, folder.path / "checkpoint.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        folder.load_checkpoint()
    (folder.path / "checkpoint.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="cannot be read"):
        folder.load_checkpoint()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON (Input data was truncated)"), (b"[1]", "expected `object`, got `array`")],
)
def test_a_broken_config_is_named(tmp_path, content, message):
    folder = begun(tmp_path)
    (folder.path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{folder.path}/config.json: {message}")):
        folder.read_config()


@pytest.mark.slow
def test_one_process_at_a_time(tmp_path):
    folder = begun(tmp_path)
    code = f"""
import sys
from sngd.training.run_folder import RunFolder
for _ in sys.stdin:  # each line asks to try
    try:
        with RunFolder({str(folder.path)!r}).locked():
            print("locked", flush=True)
    except ValueError as error:
        print(error, flush=True)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        with folder.locked():
            other.stdin.write("try\n")
            assert other.stdout.readline() == f"{folder.path}: another process is training in this folder\n"
        assert other.communicate("try\n")[0] == "locked\n"
    assert other.returncode == 0
