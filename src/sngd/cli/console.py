"""Output of the command line (progress bars, JSON), and its reaction to Ctrl-C."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from sngd import training

DIVERGED = 3  # exit code; 1 is a crash, 2 a user's mistake, 130 Ctrl-C

# Text is printed unchanged: rich must not turn ":100:" into an emoji or "[/b]" into markup. A rich Text has a style.
out = Console(emoji=False, markup=False)
err = Console(stderr=True, emoji=False, markup=False)


def print_json(content: Any) -> None:
    """Print ``content`` as JSON; numbers that are not finite, which JSON does not have, become null."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    print(json.dumps(finite, indent=2, ensure_ascii=False))


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (or SIGTERM) asks the run to save and stop, the second one stops at once."""
    asked = threading.Event()

    def ask(_signal: int, _frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        err.print("stopping: saving checkpoints (once more: at once)")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def progress_bars() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        _TimeLeft(),
        TextColumn("{task.fields[loss]}"),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


class _TimeLeft(TimeRemainingColumn):
    """rich's own estimate, unless the task has a field ``seconds_left``."""

    def render(self, task: Task) -> Text:
        if "seconds_left" not in task.fields:
            return super().render(task)
        seconds = task.fields["seconds_left"]
        return Text("-:--:--" if seconds is None else str(timedelta(seconds=round(seconds))), "progress.remaining")


def loss(progress: training.Progress) -> str:
    return "" if progress.loss is None else f"loss {progress.loss:.4f}"
