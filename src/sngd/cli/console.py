"""Output of the command line (progress bars, JSON), and its reaction to Ctrl-C."""

import json
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
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


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    title: str | None = None,
    text: Collection[str] = (),
    drop: Sequence[str] = (),
) -> None:
    """Print a table that fits the terminal.

    The first column and those in ``text`` may fold at spaces. The others hold numbers, which are never cut. If the
    terminal is too narrow, columns in ``drop`` are left out, the first of them first, and a line names them.
    """
    columns = dict(zip(header, zip(*rows, strict=True) if rows else ((),) * len(header), strict=True))
    folding = {header[0], *text}
    left_out: list[str] = []
    for name in drop:
        if 1 + sum(_least_width(key, cells, key in folding) for key, cells in columns.items()) <= out.width:
            break
        left_out += [name] if columns.pop(name, None) is not None else []
    table = Table(title=title, title_justify="left")
    for key in columns:
        table.add_column(
            key, justify="left" if key in folding else "right", no_wrap=key not in folding, overflow="fold"
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    out.print(table)
    if left_out:
        out.print(f"left out, because the terminal is narrow: {', '.join(left_out)}; --json has all", highlight=False)


def _least_width(key: str, cells: Sequence[str | Text], folds: bool) -> int:
    """Of a column, with a space on both sides and a line."""
    texts = [key, *map(str, cells)]
    return 3 + max(cell_len(part) for text in texts for part in (text.split() or [""] if folds else [text]))


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
        return Text("-:--:--" if seconds is None else time_left(seconds), "progress.remaining")


def time_left(seconds: float) -> str:
    """As h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def loss(progress: training.Progress) -> str:
    return "" if progress.loss is None else f"loss {progress.loss:.4f}"
