"""All attacks, in ATTACK_MINUTES (default 5) on two processes: ``PYTHONPATH=tests python -m attacks``.

Prints what was tried and what was found; the exit code is 1 if anything was.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attacks import samples
from attacks.page import table
from attacks.sandbox import fork, survey, try_once
from attacks.target import Chance, Counts, Target
from sngd.training.environment import environment
from sngd.training.run_folder import write_json

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
    counts = {job: Counts(job.attack, job.name, seed) for job in jobs}
    _in_turns(together, counts, goals, 60 * minutes * (1 - share), 2, where)
    _in_turns(alone, counts, goals, 60 * minutes * share, 1, where)
    return list(counts.values())


def _in_turns(
    jobs: Sequence[Job],
    counts: dict[Job, Counts],
    goals: Mapping[Job, int],
    seconds: float,
    lanes: int,
    where: Path,
) -> None:
    """In ``lanes`` processes at once, a slice of the time for the job that is furthest from its goal, again and again.

    So all come equally near to their goals, however long their tries take; each is tried once at least.
    """
    deadline = time.monotonic() + seconds
    piece = max(1.0, seconds * lanes / (4 * max(1, len(jobs))))
    running: dict[int, Job] = {}
    while True:
        in_time = time.monotonic() < deadline
        waiting = [
            job
            for job in jobs
            if job not in running.values() and counts[job].tried < goals[job] and (in_time or not counts[job].tried)
        ]
        if waiting and len(running) < lanes:
            job = min(waiting, key=lambda job: counts[job].tried / goals[job])
            path = where / f"{jobs.index(job)}.counts"
            running[fork(partial(_slice, job, counts[job], goals[job], piece, path))] = job
        elif running:
            child, status = os.wait()
            if status:
                raise SystemExit("an attack itself failed, see above")
            job = running.pop(child)
            counts[job] = pickle.loads((where / f"{jobs.index(job)}.counts").read_bytes())
        else:
            return


def _slice(job: Job, counts: Counts, goal: int, seconds: float, path: Path) -> None:
    survey(counts, job.target, seconds=seconds, count=goal)
    print(f"{job.attack}/{job.name}: {counts.tried:,} of {goal:,} tries", file=sys.stderr, flush=True)
    path.write_bytes(pickle.dumps(counts))


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
