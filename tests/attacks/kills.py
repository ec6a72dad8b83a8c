"""A run of every method, killed and gone on with: it ends as the one left alone, bit for bit."""

from __future__ import annotations

import json
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from attacks import failing, samples
from attacks.sandbox import run
from attacks.target import DIFFERENCE, Chance, Found, Target, refused
from sngd.training import METHODS, RunConfig, engine, train
from sngd.training.run_folder import RunFolder

_DEATHS = {"before": failing.die_before, "after": failing.die_after, "in the middle of": failing.die_halfway}


def targets(where: Path) -> dict[str, Target]:
    return {method: _method(where / "kills" / method, method) for method in METHODS}


def _method(where: Path, method: str) -> Target:
    @cache
    def whole(output: str) -> Whole:
        return Whole(where / f"whole-{output}", samples.config_of(method, output=output, epochs=8))

    def attempt(chance: Chance) -> dict[str, int]:
        one, folder = whole(chance.choice(("last", "random"))), where / f"try-{chance.getrandbits(60):x}"
        kills = kill_again_and_again(chance, one, folder)
        one.end_alike(folder)
        samples.remove(folder)
        return {"kills": kills, "ended alike": 1}

    return Target(attempt, seconds=60, goal=18)


class Whole:
    """The run that is left alone: its answer, how long it takes, and how many calls of it change files."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.config = config
        samples.remove(folder)
        began = time.monotonic()
        calls = failing.Calls()
        ended = run(lambda: self.train_and_count(folder, calls))
        self.seconds = time.monotonic() - began
        if ended.error:
            raise ended.error
        self.calls = json.loads((folder / "calls").read_text())
        self.answer = outcome(folder)

    def train_and_count(self, folder: Path, calls: failing.Calls) -> None:
        calls.watch()
        self.train(folder)
        made = calls.count
        (folder / "calls").write_text(json.dumps(made))

    def train(self, folder: Path) -> None:
        torch.set_num_threads(1)
        engine.CHECKPOINT_SECONDS = 0.002  # between evaluations too
        train(self.config, folder, problem=samples.tiny, resume=True)

    def end_alike(self, folder: Path) -> None:
        """Go on with what ``folder`` holds; Found if that fails, or ends otherwise."""
        ended = run(lambda: self.train(folder))
        if ended.error:
            raise Found("error", f"does not go on: {type(ended.error).__name__}: {ended.error}"[:300])
        if ended.killed:
            raise Found("crash", "does not go on: the process died")
        if difference := differing(outcome(folder), self.answer):
            raise Found(DIFFERENCE, f"another {difference} than the run left alone")


def kill_again_and_again(chance: Chance, whole: Whole, folder: Path) -> int:
    """One to three times, at a random moment or at a random change of a file; how often it was alive to be killed."""
    kills, notes = 0, []
    for _ in range(chance.choice((1, 1, 2, 3))):
        if chance.random() < 0.5:
            moment = chance.uniform(0, 1.1 * whole.seconds)
            notes.append(f"after {1000 * moment:.0f} ms")
            ended = run(lambda: whole.train(folder), kill_after=moment)
        else:
            how, fatal = chance.choice(list(_DEATHS)), chance.randrange(whole.calls)
            notes.append(f"{how} change {fatal} of a file")
            ended = run(partial(_train_until, whole, folder, how, fatal))
        kills += ended.killed
        chance.note = "killed " + ", ".join(notes)
        if ended.error:
            refused(ended.error, folder)
            raise Found("error", f"does not go on: {type(ended.error).__name__}: {ended.error}"[:300])
    return kills


def _train_until(whole: Whole, folder: Path, how: str, fatal: int) -> None:
    calls = failing.Calls()
    calls.at(fatal, _DEATHS[how])
    calls.watch()
    whole.train(folder)


def outcome(folder: Path) -> dict[str, Any]:
    """The last weights, and the rows but for the wall clock."""
    checkpoint = RunFolder(folder).load_checkpoint()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    untimed = [{key: entry for key, entry in row.items() if key != "seconds"} for row in rows]
    return {"model": checkpoint and checkpoint["model"], "rows": untimed}


def differing(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """What differs between two outcomes, in a word."""
    if one["rows"] != other["rows"]:
        number = next((k for k, (a, b) in enumerate(zip(one["rows"], other["rows"], strict=False)) if a != b), None)
        return "number of rows" if number is None else f"row {number}"
    ours, theirs = one["model"], other["model"]
    if ours is None or ours.keys() != theirs.keys():
        return "set of weights"
    return next((f"weight {name}" for name in ours if not torch.equal(ours[name], theirs[name])), None)
