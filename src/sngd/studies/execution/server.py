"""The server from which worker processes are forked on Linux. It has imported what they need.

In a process that starts anew these imports take two seconds. The server computes nothing, so that it is safe to fork.
Nothing is imported here that takes long: the command line starts the server first of all.
"""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext

PRELOADED = ["sngd.studies.execution.imported"]
THERE_IS_ONE = sys.platform == "linux"  # elsewhere the system's libraries must not be used after a fork


def start_server() -> BaseContext:
    """Let the server begin to start, if it is not there; it lasts as long as this process. Returns how it is asked."""
    from multiprocessing import forkserver  # which other systems may lack

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ignored_interrupts():
        forkserver.ensure_running()
    return context


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Processes that are started inside ignore Ctrl-C, which reaches them, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
