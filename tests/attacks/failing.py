"""Calls that change files, made to fail, or to be the process's last, at the k-th of them."""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable
from typing import Any

_NAMES = ("replace", "rename", "fsync", "unlink", "remove", "mkdir", "rmdir", "write", "ftruncate", "truncate")


class Calls:
    """Counts this process's calls that change files; ``at(k, do)`` has the k-th, from 0, done by ``do``.

    ``do`` gets the call, and for a write of bytes the half of it, else None.
    """

    def __init__(self) -> None:
        self.count = 0
        self._fatal, self._do = -1, _simply

    def at(self, fatal: int, do: Callable[[Callable[[], Any], Callable[[], Any] | None, Any], Any]) -> None:
        self._fatal, self._do = fatal, do

    def watch(self) -> None:
        """From now on, and for the rest of this process's life."""
        for name in _NAMES:
            setattr(os, name, self._watched(getattr(os, name)))
        opened = builtins.open
        builtins.open = io.open = self._opening(opened)  # type: ignore[assignment]

    def meet(self, call: Callable[[], Any], half: Callable[[], Any] | None = None, path: Any = None) -> Any:
        self.count += 1
        return self._do(call, half, path) if self.count - 1 == self._fatal else call()

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            path = args[0] if args and not isinstance(args[0], int) else None
            return self.meet(lambda: function(*args, **kwargs), path=path)

        return watched

    def _opening(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return opened(file, mode, *args, **kwargs)
            return _Writing(self.meet(lambda: opened(file, mode, *args, **kwargs), path=file), self)

        return opening


class _Writing:
    """An open file whose writes are counted."""

    def __init__(self, file: Any, calls: Calls) -> None:
        self._file, self._calls = file, calls

    def write(self, content: Any) -> Any:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        return self._calls.meet(lambda: self._file.write(content), half)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writing:
        self._file.__enter__()
        return self

    def __exit__(self, *reason: Any) -> Any:
        return self._file.__exit__(*reason)

    def __iter__(self) -> Any:
        return iter(self._file)


def _simply(call: Callable[[], Any], _half: Any, _path: Any) -> Any:
    return call()


def die_before(_call: Any, _half: Any, _path: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(call: Callable[[], Any], _half: Any, _path: Any) -> None:
    call()
    os.kill(os.getpid(), signal.SIGKILL)


def die_halfway(_call: Any, half: Callable[[], Any] | None, _path: Any) -> None:
    if half:
        half()
    os.kill(os.getpid(), signal.SIGKILL)


def failing_with(number: int) -> Callable[..., Any]:
    """The call fails with this errno, a write after half of it; the system names the file where it knows it."""

    def fail(_call: Any, half: Callable[[], Any] | None, path: Any) -> None:
        if half:
            half()
        raise OSError(number, os.strerror(number), *([str(path)] if path is not None else []))

    return fail
