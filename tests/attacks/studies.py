"""Studies killed with all their processes and begun again: they end with the results of the one left alone.

Two targets call the library in a process forked from this one, whose workers are forked too, because starting Python
anew takes longer than the study. The other two are the command line as a user types it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks import samples
from attacks.sandbox import run
from attacks.target import CRASH, DIFFERENCE, ERROR, Chance, Found, Target
from sngd.paper.reproduce import reproduce
from sngd.studies import compare
from sngd.studies.execution import workers
from sngd.studies.execution.execution import Execution

PROBLEM = Path(__file__).with_name("problem.py")
ARMS, SEEDS, GRID = "sgd,sngd", (0, 1), (0.05, 0.2)
_OF_TIME = {"seconds", "process_seconds"}  # the wall clock's, and none of a study's results


def targets(where: Path) -> dict[str, Target]:
    files = where / "studies"
    words = f"compare {PROBLEM}:tiny --methods {ARMS} --seeds 2 --epochs 6 --batch-size 7 --jobs 2 --grid 0.05,0.2"
    return {
        "compare": _forked(files / "compare", _compare, goal=20),
        "reproduce": _forked(files / "reproduce", _reproduce, goal=10),
        "sngd compare": _typed(files / "typed-compare", words, goal=5),
        "sngd reproduce claims": _typed(files / "typed-reproduce", "reproduce claims --only C10", goal=3),
    }


# ---- from the library ----------------------------------------------------------------------------------------


def _compare(folder: Path) -> None:
    workers.start_server = lambda: multiprocessing.get_context("fork")  # type: ignore[assignment]  # forked, see above
    base = samples.config_of("sgd", problem=f"{PROBLEM}:tiny", epochs=6)
    arms = compare.parse_arms(ARMS, base)
    compare.compare(arms, SEEDS, folder, Execution(jobs=2, on_warning=lambda _text: None), grid=GRID)


def _reproduce(folder: Path) -> None:
    reproduce("scaling", "quick", folder, reuse=True)


def _forked(where: Path, study: Callable[[Path], None], goal: int) -> Target:
    known: dict[str, Any] = {}

    def prepare() -> None:
        samples.remove(where)
        began = time.monotonic()
        ended = run(lambda: study(where / "whole"))
        if ended.error or ended.killed:
            raise ended.error or RuntimeError("the study died")
        known.update(seconds=time.monotonic() - began, results=results(where / "whole"))

    def attempt(chance: Chance) -> dict[str, int]:
        folder, kills, moments = where / f"try-{chance.getrandbits(60):x}", 0, []
        for _ in range(chance.choice((1, 2, 4))):
            moments.append(chance.uniform(0, 1.1 * known["seconds"]))
            kills += run(lambda: study(folder), kill_after=moments[-1]).killed
        chance.note = f"killed after {', '.join(f'{moment:.2f} s' for moment in moments)}"
        ended = run(lambda: study(folder))
        if ended.killed:
            raise Found(CRASH, "does not go on: the process died")
        if ended.error:
            raise Found(ERROR, f"does not go on: {type(ended.error).__name__}: {ended.error}"[:300])
        return _alike(folder, known["results"], kills)

    return Target(attempt, prepare, seconds=120, goal=goal)


def _alike(folder: Path, expected: dict[str, Any], kills: int) -> dict[str, int]:
    found = results(folder)
    if differing := sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path)):
        raise Found(DIFFERENCE, f"other results in {', '.join(differing)}"[:300], "other results")
    samples.remove(folder)
    return {"kills": kills, "ended alike": 1}


def results(folder: Path) -> dict[str, Any]:
    """What a study found, by file: all but times, environments, and pictures, which are drawn from the rest."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json*")):
        if path.name == "environment.json" or not path.is_file():
            continue
        lines = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        found[str(path.relative_to(folder))] = [_timeless(json.loads(line)) for line in lines]
    for path in sorted(folder.rglob("table.md")):
        found[str(path.relative_to(folder))] = path.read_text("utf-8")
    return found


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: _timeless(part) for key, part in content.items() if key not in _OF_TIME | {"environment", "command"}
        }
    return [_timeless(part) for part in content] if isinstance(content, list) else content


# ---- from the command line -----------------------------------------------------------------------------------


def _typed(where: Path, words: str, goal: int) -> Target:
    known: dict[str, Any] = {}

    def command(folder: Path) -> list[str]:
        return [sys.executable, "-m", "sngd", *words.split(), "--out", str(folder)]

    def prepare() -> None:
        samples.remove(where)
        began = time.monotonic()
        subprocess.run(command(where / "whole"), check=True, capture_output=True)
        known.update(seconds=time.monotonic() - began, results=results(where / "whole"))

    def attempt(chance: Chance) -> dict[str, int]:
        folder, kills, moments = where / f"try-{chance.getrandbits(60):x}", 0, []
        for _ in range(chance.choice((1, 2))):
            moments.append(chance.uniform(0.2, 1.0) * known["seconds"])
            kills += _killed(command(folder), moments[-1])
        chance.note = f"killed after {', '.join(f'{moment:.1f} s' for moment in moments)}"
        last = subprocess.run(command(folder), capture_output=True, text=True, check=False)
        if last.returncode:
            raise Found(ERROR, f"exit code {last.returncode}: {' '.join(last.stderr.split())[-250:]}", "does not go on")
        return _alike(folder, known["results"], kills)

    return Target(attempt, prepare, seconds=300, goal=goal)


def _killed(command: list[str], seconds: float) -> bool:
    """Start it as a group of processes, and kill the group; whether it was alive to be killed."""
    devnull = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=devnull, stderr=devnull, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL
