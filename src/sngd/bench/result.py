"""What a benchmark found, and the JSON file of it."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sngd.bench.timing import Spread, ratio, spread
from sngd.files import read_file
from sngd.training.environment import environment
from sngd.training.run_folder import write_json


@dataclass(frozen=True)
class Comparison:
    """How long one piece of work takes, as a ratio to another one's time.

    Attributes:
        case: what it is done for, as "resnet56".
        work: what is measured, as "SNGD momentum".
        against: what it is measured against.
        ratio: time of the work / time of the other; smaller is better. The quartiles are over rounds.
        seconds: median time of the work, and of the other.
        same: whether both were checked to compute the same; False: they do not, and only their times are compared.
        goal: largest ratio that is wanted; None if nothing was set.
    """

    case: str
    work: str
    against: str
    ratio: Spread
    seconds: tuple[float, float]
    same: bool
    goal: float | None = None

    @property
    def verdict(self) -> str:
        """ "met", "missed", or "" without a goal."""
        return "" if self.goal is None else "met" if self.ratio.median <= self.goal else "missed"


def compared(
    case: str, work: str, against: str, times: dict[str, list[float]], *, same: bool = True, goal: float | None = None
) -> Comparison:
    """The comparison of two of the pieces of code that ``interleaved`` timed."""
    ours, theirs = times[work], times[against]
    return Comparison(
        case, work, against, ratio(ours, theirs), (spread(ours).median, spread(theirs).median), same, goal
    )


@dataclass(frozen=True)
class Result:
    """All comparisons of one benchmark, "step" or "train", and where they were made."""

    what: str
    device: str
    cases: dict[str, dict[str, Any]]  # by name: sizes, rounds
    comparisons: Sequence[Comparison]
    left_out: dict[str, str]  # what could not be measured, and why

    def as_json(self) -> dict[str, Any]:
        """For a file: the comparisons with their verdicts, the command, versions and machine.

        ``ratio`` is a list of median and quartiles. Only comparisons with a goal have "goal" and "verdict".
        """
        rows = [_stored(row) for row in self.comparisons]
        return {
            "command": shlex.join(["sngd", *sys.argv[1:]]),
            "environment": {**environment(), "threads": torch.get_num_threads(), "device": self.device},
            "cases": self.cases,
            "left_out": self.left_out,
            "comparisons": _rounded(rows),
        }


def _stored(row: Comparison) -> dict[str, Any]:
    """Its fields and verdict; without a goal there is neither."""
    fields = asdict(row)
    goal = fields.pop("goal")
    return fields if goal is None else {**fields, "goal": goal, "verdict": row.verdict}


def _rounded(value: Any) -> Any:
    """Numbers with four digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def write_result(result: Result, path: Path) -> None:
    """Write a result into a JSON file, under its name; what the file holds of other benchmarks stays.

    Raises:
        ValueError: the file is there and no benchmark wrote it.
    """
    known = read_results(path) if path.exists() else {}
    write_json(path, {**known, result.what: result.as_json()}, compact=True)


def read_results(path: Path) -> dict[str, Any]:
    """The benchmarks in a file, by name ("step", "train").

    Raises:
        ValueError: no benchmark wrote the file.
        OSError: it cannot be read.
    """
    content = read_file(path)
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON that sngd bench wrote: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(v, dict) and "comparisons" in v for v in found.values()):
        raise ValueError(f"{path}: must be a file that sngd bench wrote, or a new one")
    return found
