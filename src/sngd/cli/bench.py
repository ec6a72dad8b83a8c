"""The command that measures what a step and a pass over the data cost on this machine."""

import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import Progress

from sngd.cli.console import err, out, progress_bars, time_left
from sngd.cli.options import Data
from sngd.cli.torchrun import refuse_several_processes

if TYPE_CHECKING:
    from sngd.bench import Comparison, Result


def bench(
    what: Annotated[Literal["step", "train"], typer.Argument(help="An optimizer's step, or a pass over the data.")],
    file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write this JSON file; another benchmark's part in it stays."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds: to see that it runs.")] = False,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each kind of step, or each problem. (default: 4 or 20)")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where steps are taken.")] = "cpu",
    data: Data = None,
) -> None:
    """Measure ratios of times on this machine: this package's against torch's bare calls and what else users write.

    Both sides of a ratio are checked to compute the same, then timed in turn. A ratio is the median over all rounds,
    with its quartiles; below 1 this package is quicker. "≠" marks what computes something else.
    """
    from sngd.bench import bench_step, bench_train, read_results, write_result
    from sngd.bench.step import CASES, SECONDS
    from sngd.bench.train import PROBLEM_SECONDS, Case
    from sngd.training.ranks import ALONE

    refuse_several_processes("bench")
    if seconds is not None and not 0 < seconds < inf:
        raise ValueError(f"--seconds must be > 0 and finite, got {seconds:g}")
    ALONE.device(device)  # an error if it is absent
    if what == "train" and device != "cpu":
        raise ValueError(f"--device is for step, train is measured on the CPU: leave out {device}")
    if file is not None:  # an error before anything is measured
        if file.exists():
            read_results(file)
        elif not file.parent.is_dir():
            raise ValueError(f"{file}: the folder must exist")

    with progress_bars() as bars:
        tell = Measurements(bars)
        if what == "step":
            cases, usual = (("tiny",), 0.05) if quick else (CASES, SECONDS)
            result = bench_step(cases=cases, device=device, seconds=seconds or usual, on_progress=tell)
        elif quick:
            small = [Case("digits-mlp", 32)]
            result = bench_train(cases=small, methods={}, studies=False, seconds=seconds or 0.5, on_progress=tell)
        else:
            result = bench_train(data=data, seconds=seconds or PROBLEM_SECONDS, on_progress=tell)
    for line in lines(result):
        out.print(line, highlight=False, soft_wrap=True)
    if file is not None:
        write_result(result, file)
        out.print(f"written: {file}", soft_wrap=True, highlight=False)


class Measurements:
    """Which measurement of how many is made, and the time left: as a bar, or line by line where there is no terminal.

    The time left is that of all measurements at the mean pace of those that are done.

    Args:
        bars: where the bar is shown.
        clock: seconds, for tests.
    """

    def __init__(self, bars: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.bars, self.clock, self.began = bars, clock, clock()
        self.bar = bars.add_task("", total=None, loss="", seconds_left=None)

    def __call__(self, name: str, done: int, count: int) -> None:
        left = (self.clock() - self.began) / done * (count - done) if done else None
        text = f"measuring {done + 1} of {count}: {name}"
        self.bars.update(self.bar, description=text, completed=done, total=count, seconds_left=left)
        if self.bars.disable:
            err.print(text if left is None else f"{text}, {time_left(left)} left", highlight=False, soft_wrap=True)


def lines(result: "Result") -> Iterator[str]:
    """The result as a table of at most 70 columns."""
    case = None
    for row in result.comparisons:
        if row.case != case:
            case = row.case
            sizes = result.cases.get(case, {})
            about = ", ".join(f"{value:,} {key}" for key, value in sizes.items() if type(value) is int)
            yield f"{case}: {about}" if about else case
        yield _line(row)
    for name, reason in result.left_out.items():
        yield f"left out: {name}: {reason}"


def _line(row: "Comparison") -> str:
    work = row.work.removeprefix("SNGD ")
    against = row.against if row.same else f"≠ {row.against}"
    quartiles = "–".join(f"{value:.2f}" if value < 10 else f"{value:.1f}" for value in row.ratio[1:])
    goal = "" if row.goal is None else f"≤{row.goal:g} {row.verdict}"
    return f"{work:10} {against:29} {row.ratio.median:5.2f} {quartiles:9} {goal}".rstrip()
