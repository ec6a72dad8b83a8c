"""The server from which worker processes are forked on Linux. It has imported what they need.

In a process that starts anew these imports take two seconds. The server computes nothing, so that it is safe to fork.
Nothing is imported here that takes long: the command line starts the server first of all.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext

PRELOADED = ["sngd.studies.execution.imported"]


def start_server() -> BaseContext | None:
    """Let the server begin to start, if it is not there; it lasts as long as this process. Returns how it is asked.

    None where there cannot be one: on other systems, whose libraries must not be used after a fork; where the name of
    the folder of temporary files is too long for a socket; and in a process forked from one that has a server.
    """
    if sys.platform != "linux":
        return None
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # It imports from where this process does, and not from the present folder, as "python -c" would.
    places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
    try:
        with deaf_children(), _variables(places):
            forkserver.ensure_running()
    except OSError:
        return None
    return context


def end_server() -> None:
    """Kill the server, if there is one: until its imports are done it would keep the terminal or a pipe open."""
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    pid = getattr(server, "_forkserver_pid", None)
    if pid is not None:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started inside never hear Ctrl-C, which reaches them, too."""
    resource_tracker.ensure_running()  # which lets signals through when it starts
    with late_interrupts():
        yield


@contextmanager
def late_interrupts() -> Iterator[None]:
    """A Ctrl-C that comes inside is heard afterwards, unless there are other threads to hear it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _variables(changed: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started inside have these environment variables."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
