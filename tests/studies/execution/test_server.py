"""The server of workers: what it imports, where there cannot be one, and that Ctrl-C is not lost."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sngd.studies.execution.server import deaf_children, end_server, late_interrupts, start_server

COMPARE = ["-m", "sngd", "compare", "sharp-flat", "--methods", "sgd", "--seeds", "2", "--epochs", "2", "--out", "out"]


def compare(folder, **variables):
    """A study in a process of its own; its standard error."""
    command = [sys.executable, "-P", *COMPARE]  # -P: as the installed command, it does not look into the folder
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "sngd", "torch"])
def test_the_present_folder_is_not_looked_into(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('this is the user's')")
    assert "this is the user's" not in compare(tmp_path)


@pytest.mark.slow
def test_a_folder_of_temporary_files_may_have_a_long_name(tmp_path):
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    compare(tmp_path, TMPDIR=str(folder))


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from sngd.studies.compare import compare, parse_arms
from sngd.training import RunConfig

if __name__ == "__main__":
    arms = parse_arms("sgd", RunConfig(problem=str(Path("told.py").resolve()) + ":factory", method="", epochs=2))
    compare(arms, [0, 1], Path("out"))
"""
TOLD = """
import sngd
from sngd.problems import load_problem

def factory():
    with open("told.txt", "a") as told:
        print(sngd.__file__, file=told)
    return load_problem("sharp-flat")
"""


@pytest.mark.slow
def test_workers_import_from_where_their_parent_does(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "sngd").symlink_to(Path(__file__).parents[3] / "src" / "sngd")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "told.py").write_text(TOLD)
    command = [sys.executable, "script.py", str(source)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert set((tmp_path / "told.txt").read_text().split()) == {str(source / "sngd" / "__init__.py")}


def ask(answers):
    answers.put(start_server() is None)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no server")
def test_a_process_forked_from_one_with_a_server_has_none():
    assert start_server() is not None
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=ask, args=(answers,))
    child.start()
    assert answers.get(timeout=60)
    child.join()


@pytest.mark.parametrize("inside", [deaf_children, late_interrupts])
def test_ctrl_c_is_heard_afterwards(inside):
    done = []

    def work():
        with inside():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            done.append("inside")
        done.append("afterwards")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inside"]


def test_without_a_server_there_is_nothing_to_end(monkeypatch):
    monkeypatch.delitem(sys.modules, "multiprocessing.forkserver", raising=False)
    end_server()
