"""Failures of each kind, planted: the tests see that none of them escapes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from attacks.target import CODE, DIFFERENCE, Chance, Found, Target, refused

_KEPT: list[bytes] = []


def targets(where: Path) -> dict[str, Target]:
    return {
        "nothing": Target(lambda chance: refused(ValueError(f"{where}: is broken"), where)),  # noqa: ARG005
        "difference": Target(_raising(Found(DIFFERENCE, "planted"))),
        "code run": Target(_raising(Found(CODE, "planted"))),
        "error": Target(_raising(KeyError("planted"))),
        "unnamed": Target(lambda chance: refused(ValueError("is broken"), where)),  # noqa: ARG005
        "two lines": Target(lambda chance: refused(ValueError(f"{where}:\nis broken"), where)),  # noqa: ARG005
        "type": Target(lambda chance: refused(TypeError(f"{where}: is broken"), where)),  # noqa: ARG005
        "hang": Target(_sleep, seconds=0.3),
        "memory": Target(_grow, megabytes=50),
        "vast": Target(lambda chance: {"made": len(bytearray(1 << 42))}),  # noqa: ARG005
        "crash": Target(_die),
    }


def _raising(error: Exception):  # type: ignore[no-untyped-def]
    def attempt(chance: Chance) -> dict[str, int]:
        chance.note = "as planted"
        raise error

    return attempt


def _sleep(chance: Chance) -> dict[str, int]:
    chance.note = "asleep"
    time.sleep(60)
    return {}


def _grow(chance: Chance) -> dict[str, int]:
    chance.note = "grown"
    _KEPT.append(b"x" * (100 << 20))
    return {}


def _die(chance: Chance) -> dict[str, int]:
    chance.note = "dead"
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}
