"""A folder has one writer at a time, and is the same folder at each write."""

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
import torch

from sngd.problems import Problem
from sngd.training import RunConfig, train
from sngd.training.folder_lock import locked, make_folder, turn_to_publish
from sngd.training.run_folder import RunFolder, replace_file

CONFIG = RunConfig("small", "sngd", lr=0.1, batch_size=8, epochs=4, threads=1)
LOST = "deleted, moved or replaced while its files were being written"


def small():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    return Problem(lambda: torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, (x, (x[:, 0] > 0).long()))


def delete(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("moved"))


def replace_by_an_empty_one(folder):
    shutil.rmtree(folder)
    folder.mkdir()  # often of the same inode number, if nobody holds the old one


def replace_by_a_copy(folder):
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


def replace_by_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("mine")


@pytest.mark.parametrize("lose", [delete, move, replace_by_an_empty_one, replace_by_a_copy, replace_by_a_file])
def test_a_run_whose_folder_is_lost_ends_with_an_error_and_makes_no_new_one(tmp_path, lose):
    folder = tmp_path / "runs" / "run"
    steps = iter(range(100))
    left = {}

    def lose_it_then():
        if next(steps) == 12:
            lose(folder)
            left.update({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")})
        return False

    with pytest.raises(FileNotFoundError, match=LOST) as error:
        train(CONFIG, folder, problem=small, should_stop=lose_it_then)
    assert error.value.filename == str(folder)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == left


@pytest.mark.parametrize("last", ["metrics.jsonl", ".lock"])
def test_a_folder_that_is_half_deleted_is_lost_too(tmp_path, last):
    steps = iter(range(100))

    def delete_it_then():
        if next(steps) == 12:
            (tmp_path / "run" / last).unlink()
        return False

    with pytest.raises(FileNotFoundError, match=LOST) as error:
        train(CONFIG, tmp_path / "run", problem=small, should_stop=delete_it_then)
    assert error.value.filename.startswith(str(tmp_path / "run"))
    assert not (tmp_path / "run" / last).exists()


def test_a_folder_that_is_lost_during_a_write_is_named(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.begin({})
        monkeypatch.setattr(os, "fsync", lambda _: shutil.rmtree(folder.path))
        with pytest.raises(FileNotFoundError, match=LOST) as error:
            folder.save_checkpoint({})
    assert error.value.filename == str(folder.path)
    assert not folder.path.exists()


def test_a_file_is_not_written_into_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "gone" / "config.json", b"{}")
    assert not list(tmp_path.iterdir())


# --- the lock


def test_a_lock_file_is_never_written_into_and_no_link_is_followed(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with locked(tmp_path, ()):
        pass
    assert (tmp_path / ".lock").read_text() == "mine"

    folder, target = tmp_path / "run", tmp_path / "target"
    folder.mkdir()
    for content in (None, "mine"):
        if content:
            target.write_text(content)
        (folder / ".lock").unlink(missing_ok=True)
        (folder / ".lock").symlink_to(target)
        with pytest.raises(OSError, match="must be a regular file, is a symbolic link") as error, locked(folder, ()):
            pytest.fail("locked")
        assert error.value.filename == str(folder / ".lock")
        assert target.exists() == bool(content)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "folder"])
def test_a_lock_file_that_is_none_neither_hangs_nor_crashes(tmp_path, make):
    make(tmp_path / ".lock")
    with pytest.raises(OSError, match=r"must be a regular file|Is a directory") as error, locked(tmp_path, ()):
        pytest.fail("locked")
    assert error.value.filename == str(tmp_path / ".lock")


def hold_and_fail(folder):
    with locked(folder, ()):
        with pytest.raises(ValueError, match="another process is working in this folder"), locked(folder, ()):
            pytest.fail("locked twice")
        raise KeyboardInterrupt


def test_the_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        hold_and_fail(tmp_path)
    with locked(tmp_path, ()):
        pass


def test_who_publishes_waits_for_its_turn_and_for_no_run(tmp_path):
    order = []

    def publish():
        with turn_to_publish(tmp_path, ()):
            order.append("second")

    with locked(tmp_path, ()), turn_to_publish(tmp_path, ()):
        other = threading.Thread(target=publish)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


# --- temporary files


def test_what_a_kill_left_behind_is_cleaned_at_the_next_start(tmp_path):
    folder = RunFolder(tmp_path)
    leftovers = [tmp_path / f".{name}.4711.tmp" for name in ("config.json", "metrics.jsonl", "checkpoint.pt")]
    others = [tmp_path / name for name in (".config.json.swp", ".notes.4711.tmp", "config.json.4711.tmp")]
    for path in (*leftovers, *others):
        path.write_text("half")
    with folder.locked():
        assert not any(path.exists() for path in leftovers)
    assert all(path.read_text() == "half" for path in others)


def test_temporary_files_in_folders_below_are_cleaned_too(tmp_path):
    (tmp_path / "figures").mkdir()
    leftover = tmp_path / "figures" / ".curves.png.1.tmp"
    leftover.write_text("half")
    with turn_to_publish(tmp_path, ("figures/curves.png", "absent/curves.png")):
        assert not leftover.exists()


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / f".config.json.{os.getpid()}.tmp").symlink_to(target)
    replace_file(tmp_path / "config.json", b"{}")
    assert target.read_text() == "mine"
    assert (tmp_path / "config.json").read_bytes() == b"{}"
    assert not (tmp_path / "config.json").is_symlink()
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) & 0o400


# --- what is in the way


def test_what_is_in_a_folders_way_is_said(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, what in [
        ("file", "a file"),
        ("link", "a symbolic link to nowhere"),
        ("link/run", "a symbolic link to n"),
    ]:
        with pytest.raises(NotADirectoryError, match=f"must be a folder, is {what}") as error:
            make_folder(tmp_path / name)
        assert error.value.filename == str(tmp_path / Path(name).parts[0])
    (tmp_path / "nowhere").mkdir()
    make_folder(tmp_path / "link" / "run")
    assert (tmp_path / "nowhere" / "run").is_dir()
