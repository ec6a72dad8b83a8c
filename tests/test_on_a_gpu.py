"""The script for an hour of a GPU, as far as a machine without one can tell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from sngd.cli import app

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "on_a_gpu.sh"
PARTS = ["tests", "paper-fig4", "gains", "bench", "paper-fig3"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs bash")


def script(*words, **environment):
    command = ["bash", str(SCRIPT), *map(str, words)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )


def pretending(tmp_path, body):
    """A program that takes the place of Python: it finds a GPU, and does what ``body`` says for each part."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exit 0\n[ "$2" = torch.utils.collect_env ] && exit 0\n{body}\n')
    program.chmod(0o755)
    return str(program)


def test_it_is_valid_and_its_commands_are_ones_that_there_are(tmp_path):
    lines = script("--dry-run", tmp_path / "out", PYTHON="python").stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == PARTS
    commands = [shlex.split(line.split(": ", 1)[1]) for line in lines]
    assert commands[0][:5] == ["python", "-m", "pytest", "-m", "cuda"]
    assert commands[2][:2] == ["python", "benchmarks/gpu.py"]
    for _, _, package, name, *words in [commands[1], *commands[3:]]:
        assert package == "sngd"
        get_command(app).commands[name].make_context(name, words)  # an error if an option or value is unknown
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    result = script(tmp_path / "out", PYTHON=sys.executable)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("no GPU: ")
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_done_is_not_repeated_and_one_that_failed_is(tmp_path):
    python = pretending(tmp_path, f'echo "$2" >> {tmp_path}/calls; [ "$2" != pytest ] || exit 3')
    first = script(tmp_path / "out", PYTHON=python)
    assert first.returncode == 0
    assert "tests: failed with exit code 3" in first.stdout
    assert "paper-fig4: done" in first.stdout
    second = script(tmp_path / "out", PYTHON=python).stdout
    assert second.count(": done before") == len(PARTS) - 1
    assert (tmp_path / "calls").read_text().split() == ["pytest", "sngd", "--json", "sngd", "sngd", "pytest"]
    assert (tmp_path / "out" / "keep" / "tests.log").exists()


def test_a_part_that_does_not_fit_is_not_begun(tmp_path):
    result = script(tmp_path / "out", PYTHON=pretending(tmp_path, "exit 9"), SECONDS_LEFT="100")
    assert result.stdout.count("not begun, less than 480 of the 100 seconds are left") == len(PARTS)


def test_a_part_that_was_interrupted_goes_on(tmp_path):
    """The pretended figure needs three turns."""
    turns = tmp_path / "turns"
    body = f'[ "$6-$4" != paper-fig4 ] || {{ echo . >> "{turns}"; [ $(wc -l < "{turns}") -ge 3 ] || exit 130; }}'
    result = script(tmp_path / "out", PYTHON=pretending(tmp_path, body))
    assert result.stdout.count("paper-fig4: interrupted") == 2
    assert result.stdout.count("paper-fig4: done") == 1
