"""What an attack is: a target that is tried again and again, each time with other chance, and what came of it.

Every attack module has ``targets(where)``, by name. One try is a function of one random generator alone, so that its
name, ``ATTACK/TARGET/SEED/INDEX``, repeats it: ``python -m attacks --only ATTACK/TARGET/SEED/INDEX``.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from mmap import mmap
from pathlib import Path
from random import Random
from typing import Any

LONGEST_MESSAGE = 5000  # characters: more is no line that anybody reads

DIFFERENCE, ERROR, CODE, HANG, MEMORY, CRASH = "difference", "error", "code run", "hang", "memory", "crash"
KINDS = (DIFFERENCE, ERROR, CODE, HANG, MEMORY, CRASH)


class Found(Exception):
    """A promise is broken: ``kind`` says which, the message how; those with one ``summary`` are counted together."""

    def __init__(self, kind: str, message: str, summary: str = "") -> None:
        super().__init__(message)
        self.kind, self.summary = kind, summary


class Chance(Random):
    """A try's randomness; ``note`` says in a few words what was done, for the reader of a finding."""

    board: mmap | None = None  # memory shared with the process that watches, so that a note outlives its process

    @property
    def note(self) -> str:
        return self._note

    @note.setter
    def note(self, text: str) -> None:
        self._note = text
        if self.board is not None:
            self.board[:] = text.encode("ascii", "replace")[: len(self.board)].ljust(len(self.board), b"\0")

    @classmethod
    def of(cls, name: str) -> Chance:
        chance = cls(name)
        chance.note = ""
        return chance


@dataclass(frozen=True)
class Target:
    """One target of an attack.

    Args:
        attempt: one try; returns counts by outcome ({"refused": 1}), raises Found where a promise is broken.
        prepare: called once in the process that tries, before the first try and the measurement of memory.
        seconds: what one try may take.
        megabytes: by how much the process may grow.
        goal: tries that are wanted. Time is shared so that all targets come equally near to theirs.
    """

    attempt: Callable[[Chance], dict[str, int]]
    prepare: Callable[[], object] = lambda: None
    seconds: float = 10.0
    megabytes: float = 200.0
    goal: int = 20_000


@dataclass
class Finding:
    """Failures of one kind in one place, and how to see the first of them again."""

    kind: str
    what: str
    reproducer: str
    count: int = 1


@dataclass
class Counts:
    """What came of a target's tries. ``growth`` is by how many megabytes memory grew at most."""

    attack: str
    target: str
    seed: int
    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)  # by kind and place
    growth: float = 0.0
    seconds: float = 0.0

    def found(self, kind: str, what: str, place: str, reproducer: str) -> None:
        key = f"{kind} {place}"
        if key in self.findings:
            self.findings[key].count += 1
        else:
            self.findings[key] = Finding(kind, what, reproducer)

    def number(self, kind: str) -> int:
        return sum(finding.count for finding in self.findings.values() if finding.kind == kind)

    def as_json(self) -> dict[str, Any]:
        findings = [asdict(finding) for finding in self.findings.values()]
        rounded = {"growth": round(self.growth, 1), "seconds": round(self.seconds, 1)}
        return {**asdict(self), **rounded, "outcomes": dict(sorted(self.outcomes.items())), "findings": findings}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Counts:
        findings = {str(number): Finding(**finding) for number, finding in enumerate(content["findings"])}
        return cls(**{**content, "outcomes": Counter(content["outcomes"]), "findings": findings})


def refused(error: Exception, *names: str | Path) -> dict[str, int]:
    """The outcome of a try that ended with ``error``: fine if it is a documented one that names one of ``names``.

    Raises:
        Found: it is of another type, has several lines or far too long a one, or names nothing.
    """
    text = str(error)
    if not isinstance(error, ValueError | OSError):
        raise Found(ERROR, f"{type(error).__name__}: {_short(text)}") from error
    if len(text.splitlines()) != 1:
        raise Found(ERROR, f"not one line: {type(error).__name__}: {_short(text)}") from error
    if len(text) > LONGEST_MESSAGE:
        raise Found(ERROR, f"message of {len(text)} characters: {type(error).__name__}: {_short(text)}") from error
    if names and not any(str(name) in text for name in names):
        raise Found(ERROR, f"names no file: {type(error).__name__}: {_short(text)}") from error
    return {"refused": 1}


def place(error: BaseException) -> str:
    """Where in the library an error arose, its innermost frame there, or else what it says."""
    if isinstance(error, Found) and error.summary:
        return error.summary
    cause = error.__cause__ or error
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if "/sngd/" in frame.filename]
    if not frames:
        return _short(str(error))
    return f"{frames[-1].filename.rpartition('/sngd/')[2]}:{frames[-1].lineno} ({frames[-1].name})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:157]}…"
