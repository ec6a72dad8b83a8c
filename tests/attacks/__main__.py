"""All attacks, in ATTACK_MINUTES (default 5) on two processes: ``PYTHONPATH=tests python -m attacks``.

Prints what was tried and what was found; the exit code is 1 if anything was.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attacks import samples
from attacks.page import table
from attacks.sandbox import fork, survey, try_once
from attacks.target import Chance, Counts, Target
from sngd.training.run_folder import environment, write_json

TOGETHER = ("kills", "mutations", "magnitudes", "disk", "hostile")  # each in one process
ALONE = ("studies",)  # which use two themselves
_SHARE_ALONE = 0.25


class Job(NamedTuple):
    """A target to be surveyed."""

    attack: str
    name: str
    target: Target


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m attacks", description=__doc__)
    minutes = float(os.environ.get("ATTACK_MINUTES") or 5)
    parser.add_argument("attacks", nargs="*", help=f"Of {', '.join((*TOGETHER, *ALONE))}, these. (default: all)")
    parser.add_argument("--minutes", type=float, default=minutes, help="Time for all. (default: ATTACK_MINUTES, or 5)")
    parser.add_argument("--tries", type=int, help="At most so many of each target. (default: by the time)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="Of all tries. (default: the clock)")
    parser.add_argument("--write", type=Path, help="A file for the counts.")
    parser.add_argument("--only", metavar="ATTACK/TARGET/SEED/INDEX", help="Repeat one try, and say what came of it.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples.warm_up()
    with samples.scratch() as where:
        if options.only:
            return _repeat(options.only, Path(where))
        chosen = options.attacks or [*TOGETHER, *ALONE]
        counts = _attack(chosen, options.minutes, options.tries, options.seed, Path(where))
    for attack in chosen:
        print(f"\n{attack}\n\n{table([one for one in counts if one.attack == attack])}")
    for one in counts:
        for finding in one.findings.values():
            name, _, note = finding.reproducer.partition(" (")
            print(f"\n{finding.kind}, {finding.count}×: {finding.what}\n    {note.removesuffix(')')}")
            print(f"    PYTHONPATH=tests python -m attacks --only {shlex.quote(name)}")
    if options.write:
        write_json(options.write, _report(counts, options.minutes, options.seed))
    return 1 if any(one.findings for one in counts) else 0


def _repeat(name: str, where: Path) -> int:
    name = name.partition(" (")[0]
    attack, rest = name.split("/", 1)
    target = _targets(attack, where)[rest.rsplit("/", 2)[0]]
    target.prepare()
    news = try_once(target, Chance.of(name))
    print(json.dumps(news, indent=2, ensure_ascii=False))
    return int("kind" in news)


def _targets(attack: str, where: Path) -> dict[str, Target]:
    found: dict[str, Target] = importlib.import_module(f"attacks.{attack}").targets(where)
    return found


def _attack(chosen: Sequence[str], minutes: float, tries: int | None, seed: int, where: Path) -> list[Counts]:
    jobs = [Job(attack, name, target) for attack in chosen for name, target in _targets(attack, where).items()]
    more = max(1.0, minutes / 5)
    goals = {job: tries or round(job.target.goal * more) for job in jobs}
    together = [job for job in jobs if job.attack not in ALONE]
    alone = [job for job in jobs if job.attack in ALONE]
    share = (_SHARE_ALONE if together else 1.0) if alone else 0.0
    counts = _in_lanes(_lanes(together, 2), goals, 60 * minutes * (1 - share), seed, where)
    counts += _in_lanes([alone], goals, 60 * minutes * share, seed, where)
    order = {(job.attack, job.name): number for number, job in enumerate(jobs)}
    return sorted(counts, key=lambda one: order[one.attack, one.target])


def _lanes(jobs: Sequence[Job], number: int) -> list[list[Job]]:
    """The jobs dealt out so that each lane has about the same weight."""
    lanes: list[list[Job]] = [[] for _ in range(number)]
    for job in sorted(jobs, key=lambda job: -job.target.weight):
        min(lanes, key=lambda lane: sum(one.target.weight for one in lane)).append(job)
    return lanes


def _in_lanes(
    lanes: Sequence[Sequence[Job]], goals: Mapping[Job, int], seconds: float, seed: int, where: Path
) -> list[Counts]:
    """Each lane in a process of its own, its jobs one after the other."""
    paths = [where / f"lane-{number}-{id(lane)}.json" for number, lane in enumerate(lanes)]
    lanes_and_paths = list(zip(lanes, paths, strict=True))
    children = [
        fork(lambda lane=lane, path=path: _lane(lane, goals, seconds, seed, path)) for lane, path in lanes_and_paths
    ]
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise SystemExit("an attack itself failed, see above")
    return [Counts.from_json(one) for path in paths for one in json.loads(path.read_text("utf-8"))]


def _lane(jobs: Sequence[Job], goals: Mapping[Job, int], seconds: float, seed: int, path: Path) -> None:
    """What a job leaves of its share of the time goes to those after it."""
    deadline, done = time.monotonic() + seconds, []
    for number, job in enumerate(jobs):
        weights = [one.target.weight for one in jobs[number:]]
        share = max(0.0, deadline - time.monotonic()) * weights[0] / sum(weights)
        done.append(survey(job.attack, job.name, job.target, seed, seconds=share, count=goals[job]))
        print(f"{job.attack}/{job.name}: {done[-1].tried} tries", file=sys.stderr, flush=True)
    path.write_text(json.dumps([one.as_json() for one in done]), "utf-8")


def _report(counts: Sequence[Counts], minutes: float, seed: int) -> dict[str, Any]:
    return {
        "command": f"make attack ATTACK_MINUTES={minutes:g} ATTACK='--seed {seed} --write results/attack.json'",
        "date": datetime.now(UTC).date().isoformat(),
        "minutes": minutes,
        "seed": seed,
        "environment": environment(),
        "targets": [one.as_json() for one in counts],
    }


if __name__ == "__main__":
    sys.exit(main())
