"""A disk that is full or fails, a folder that is gone, moved or read-only, no file handle left.

The run ends with one clear error. Where the folder still exists, or is put back, it goes on, bit for bit.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from attacks import failing, samples
from attacks.kills import Whole
from attacks.sandbox import Ended, run
from attacks.target import CRASH, ERROR, Chance, Found, Target, refused

_NOBODY = 65534
_METHODS = ("sngd", "spider-sfo", "svrg", "natasha2", "sngm")


def targets(where: Path) -> dict[str, Target]:
    files = where / "disk"
    return {
        "full, at a call": _target(files / "calls", partial(_failing_call, number=errno.ENOSPC)),
        "failing, at a call": _target(files / "failing", partial(_failing_call, number=errno.EIO)),
        "full, a small file system": _target(files / "mounted", _full),
        "no file handle left": _target(files / "handles", _no_handles),
        "read-only": _target(files / "read-only", _read_only),
        "moved": _target(files / "moved", _moved),
        "deleted": _target(files / "deleted", _deleted),
    }


Attack = Callable[[Chance, Whole, Path], dict[str, int]]


def _target(where: Path, attack: Attack) -> Target:
    @cache
    def whole(method: str) -> Whole:
        return Whole(where / f"whole-{method}", samples.config_of(method, epochs=8))

    def attempt(chance: Chance) -> dict[str, int]:
        folder = where / f"try-{chance.getrandbits(60):x}"
        try:
            return attack(chance, whole(chance.choice(_METHODS)), folder)
        finally:
            samples.remove(folder)

    return Target(attempt, seconds=60, goal=40)


def _clear(ended: Ended, folder: Path) -> dict[str, int]:
    """The run has ended by itself: well, or with one line that names what failed."""
    if ended.killed:
        raise Found(CRASH, "the process died", "the process died")
    return refused(ended.error, folder) if ended.error else {"not met": 1}


def _failing_call(chance: Chance, whole: Whole, folder: Path, number: int) -> dict[str, int]:
    """One of the calls that change files fails; later ones do not, as when somebody has made room."""
    fatal = chance.randrange(whole.calls)
    chance.note = f"{os.strerror(number)} at change {fatal} of a file, {whole.config.method}"
    calls = failing.Calls()
    calls.at(fatal, failing.failing_with(number))

    def train() -> None:
        calls.watch()
        whole.train(folder)

    outcome = _clear(run(train), folder)
    whole.end_alike(folder)
    return outcome


def _full(chance: Chance, whole: Whole, folder: Path) -> dict[str, int]:
    """A file system of a few kilobytes; more room is made before the run goes on."""
    folder.mkdir(parents=True)
    kilobytes = chance.choice((4, 8, 12, 16, 24, 32, 40, 48, 60, 80))
    chance.note = f"{kilobytes} kB, {whole.config.method}"
    mount = ["mount", "-t", "tmpfs", "-o"]
    try:
        mounted = subprocess.run([*mount, f"size={kilobytes}k", "tmpfs", folder], capture_output=True, check=False)
        if mounted.returncode:
            return {"may not mount": 1}
        outcome = _clear(run(lambda: whole.train(folder / "run")), folder)
        subprocess.run([*mount, "remount,size=64m", "tmpfs", folder], check=True)
        whole.end_alike(folder / "run")
        return outcome
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def _no_handles(chance: Chance, whole: Whole, folder: Path) -> dict[str, int]:
    """All file handles but a few are taken."""
    left = chance.randrange(4)
    chance.note = f"{left} file handles left, {whole.config.method}"

    def train() -> None:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + left, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for _ in range(highest):
            with suppress(OSError):
                taken.append(os.dup(0))
        for _ in range(left):
            if taken:
                os.close(taken.pop())
        whole.train(folder)

    taken: list[int] = []
    outcome = _clear(run(train), Path("/"))  # whichever file it is that cannot be opened
    whole.end_alike(folder)
    return outcome


def _read_only(chance: Chance, whole: Whole, folder: Path) -> dict[str, int]:
    """The folder's permission to write is taken in mid-run; root, who needs none, trains as nobody."""
    moment = _moment(chance, whole)
    for parent in (*reversed(folder.parents[:3]), folder):
        parent.mkdir(exist_ok=True)
        parent.chmod(0o755)
    folder.chmod(0o777)

    def train() -> None:
        if os.geteuid() == 0:
            os.seteuid(_NOBODY)
        whole.train(folder)

    def forbid() -> None:
        time.sleep(moment)
        folder.chmod(0o555)

    outcome = _clear(run(train, during=forbid), folder)
    folder.chmod(0o777)
    whole.end_alike(folder)
    return outcome


def _moved(chance: Chance, whole: Whole, folder: Path) -> dict[str, int]:
    """The folder gets another name in mid-run, and its own again before the run goes on."""
    moment, aside = _moment(chance, whole), folder.with_name(f"{folder.name}-aside")

    def move() -> None:
        _wait_for(folder, moment)
        folder.rename(aside)

    try:
        outcome = _clear(run(lambda: whole.train(folder), during=move), folder)
        _not_made_anew(folder)
        aside.rename(folder)
        whole.end_alike(folder)
    finally:
        samples.remove(aside)
    return outcome


def _deleted(chance: Chance, whole: Whole, folder: Path) -> dict[str, int]:
    """The folder is deleted in mid-run; nothing is left to go on with, and the same command begins anew."""
    moment, aside = _moment(chance, whole), folder.with_name(f"{folder.name}-aside")

    def delete() -> None:
        _wait_for(folder, moment)
        folder.rename(aside)  # first, so that no file can be made in it while it is being deleted
        samples.remove(aside)

    outcome = _clear(run(lambda: whole.train(folder), during=delete), folder)
    _not_made_anew(folder)
    whole.end_alike(folder)
    return outcome


def _not_made_anew(folder: Path) -> None:
    if folder.exists():
        files = ", ".join(sorted(os.listdir(folder)))
        raise Found(ERROR, f"the run made its folder anew, with {files} in it", "made anew")


def _moment(chance: Chance, whole: Whole) -> float:
    moment = chance.uniform(0, whole.seconds)
    chance.note = f"after {1000 * moment:.0f} ms, {whole.config.method}"
    return moment


def _wait_for(folder: Path, seconds: float) -> None:
    """Until the run has begun, and then so long."""
    deadline = time.monotonic() + 20
    while not (folder / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(seconds)
