"""Tries made in a process of their own, watched for hanging, for growing, and for dying."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from mmap import mmap
from typing import Any, NoReturn

from attacks.target import CRASH, ERROR, HANG, MEMORY, Chance, Counts, Found, Target, place

_MEGABYTE = 1 << 20
_GROWN = 77  # exit status of a process that has grown too much: another one goes on
_PREPARE_SECONDS = 120.0


def survey(counts: Counts, target: Target, *, seconds: float, count: int) -> None:
    """Try ``target`` on, up to ``count`` times in all, for up to ``seconds`` beside its preparation, at least once."""
    end = counts.seconds + seconds
    Chance.board = mmap(-1, 160)
    while counts.tried < count and (not counts.tried or counts.seconds < end):
        _go_on(counts, target, end - counts.seconds, count)


def _go_on(counts: Counts, target: Target, seconds: float, count: int) -> None:
    """Try in a new process until all is done, or until the process has to be given up."""
    reading, writing = os.pipe()
    child = fork(lambda: _try_all(counts, target, seconds, count, writing))
    os.close(writing)
    heard, begun, rest, hung = time.monotonic(), None, b"", False
    while True:
        if select.select([reading], [], [], 0.05)[0]:
            block = os.read(reading, 1 << 16)
            if not block:
                break
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                _count(counts, json.loads(line))
            heard = time.monotonic()
            begun = begun or heard  # its first news is that it is prepared
        elif time.monotonic() - heard > (target.seconds if begun else _PREPARE_SECONDS):
            hung = True
            os.kill(child, signal.SIGKILL)
            break
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    counts.seconds += time.monotonic() - (begun or heard)
    if hung:
        _found(counts, HANG, f"no end within {target.seconds:g} s")
    elif os.WIFSIGNALED(status):
        _found(counts, CRASH, f"the process died of signal {os.WTERMSIG(status)}")
    elif os.WEXITSTATUS(status) not in (0, _GROWN):
        raise RuntimeError(f"{counts.attack}/{counts.target}: the attack itself failed")


def _count(counts: Counts, news: dict[str, Any]) -> None:
    """Take note of a child's news."""
    if "kind" in news:
        counts.found(news["kind"], news["what"], news["place"], _name(counts) + news["note"])
    if "outcomes" in news:
        counts.outcomes.update(news["outcomes"])
    counts.growth = max(counts.growth, news.get("growth", 0.0))
    counts.tried += news.get("tried", 0)


def _found(counts: Counts, kind: str, what: str) -> None:
    note = bytes(Chance.board or b"").rstrip(b"\0").decode()
    counts.found(kind, what, note or what, _name(counts) + _noted(note))
    counts.tried += 1


def _name(counts: Counts, index: int | None = None) -> str:
    return f"{counts.attack}/{counts.target}/{counts.seed}/{counts.tried if index is None else index}"


def _try_all(counts: Counts, target: Target, seconds: float, count: int, writing: int) -> None:
    target.prepare()
    deadline = time.monotonic() + seconds
    _limit_memory(target.megabytes)
    base = _peak()
    _tell(writing, {"begun": True})
    for index in range(counts.tried, count):
        if index > counts.tried and time.monotonic() > deadline:
            return
        chance = Chance.of(_name(counts, index))
        news = try_once(target, chance)
        growth = _peak() - base
        if growth > target.megabytes:
            what, note = f"memory grew by more than {target.megabytes:g} MB", chance.note
            news = {"kind": MEMORY, "what": what, "place": note or what, "note": _noted(note)}
            _tell(writing, {**news, "growth": growth, "tried": 1})
            os._exit(_GROWN)
        _tell(writing, {**news, "growth": growth, "tried": 1})


def try_once(target: Target, chance: Chance) -> dict[str, Any]:
    """One try, and what came of it."""
    try:
        return {"outcomes": target.attempt(chance)}
    except Found as found:
        kind, what, error = found.kind, str(found), found
    except Exception as raised:
        kind, what, error = ERROR, f"{type(raised).__name__}: {raised}", raised
    return {"kind": kind, "what": what[:300], "place": place(error), "note": _noted(chance.note)}


def _noted(note: str) -> str:
    return f" ({note})" if note else ""


def _tell(writing: int, news: dict[str, Any]) -> None:
    os.write(writing, json.dumps(news).encode() + b"\n")


def _peak() -> float:
    """The most memory that this process held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _limit_memory(megabytes: float) -> None:
    """An allocation far beyond what is allowed fails here, instead of taking the machine with it."""
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
    limit = pages * resource.getpagesize() + int(8 * megabytes) * _MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


# ---- processes -----------------------------------------------------------------------------------------------


def fork(work: Callable[[], None], *, own_group: bool = False) -> int:
    """A child process that does ``work``, ends with status 0 or 1, and dies with this one."""
    parent = os.getpid()
    child = os.fork()
    if not child:
        _child(work, parent, own_group)
    return child


def _child(work: Callable[[], None], parent: int, own_group: bool) -> NoReturn:
    status = 1
    try:
        if own_group:
            os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            work()
            status = 0
    except BaseException:
        with suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(status)


class Ended:
    """How a child ended: killed, or with an error (type and message), or well."""

    def __init__(self, killed: bool, error: Exception | None) -> None:
        self.killed, self.error = killed, error


def run(
    work: Callable[[], None], *, kill_after: float | None = None, during: Callable[[], None] | None = None
) -> Ended:
    """Do ``work`` in a process group of its own, killed after some seconds or not; ``during`` is called meanwhile.

    The child's error, if it is an OSError or a ValueError, is built anew here with the same text.
    """
    reading, writing = os.pipe()

    def child() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            work()
        except Exception as error:
            base = next(t for t in (OSError, ValueError, Exception) if isinstance(error, t))
            os.write(writing, json.dumps([base.__name__, type(error).__name__, str(error)[:60_000]]).encode())
            os._exit(0)

    process = fork(child, own_group=True)
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(process, process)
    os.close(writing)
    try:
        if kill_after is not None:
            select.select([reading], [], [], kill_after)  # readable when the child ends
            os.killpg(process, signal.SIGKILL)
        elif during is not None:
            during()
        text = b""
        while block := os.read(reading, 1 << 16):
            text += block
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status) and not text:
        return Ended(True, None)
    return Ended(False, _rebuilt(*json.loads(text)) if text else None)


def _rebuilt(base: str, name: str, message: str) -> Exception:
    kind = type(name, ({"OSError": OSError, "ValueError": ValueError, "Exception": Exception}[base],), {})
    return kind(message)
