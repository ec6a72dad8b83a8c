"""The commands that compare several methods in many runs, and write their report."""

import shlex
import sys
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from sngd.cli.console import DIVERGED, out, print_json, print_table
from sngd.cli.many import execution_here_or_on_ray, watched
from sngd.cli.options import Json, completing, file_name
from sngd.cli.settings import made_from_options, run_config
from sngd.cli.torchrun import refuse_several_processes
from sngd.studies.execution.execution import Execution
from sngd.training import METHODS, RunConfig


@made_from_options(
    config=run_config(without=("method", "seed", "params"), method=""), execution=execution_here_or_on_ray
)
def compare(
    *,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods joined by commas, each with settings of its own if need be: sgd,sngd@lr=0.5",
            autocompletion=completing(METHODS),
        ),
    ] = "sgd,sngd,s-sngd",
    seeds: Annotated[str, typer.Option(help="How many seeds (3 is 0,1,2), or a list of them: 4,5,6")] = "3",
    config: RunConfig,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where runs, figures and report go. (default: runs/compare-PROBLEM)")
    ] = None,
    execution: Execution,
    tune: Annotated[
        bool, typer.Option("--tune", help="First give every method the same grid of learning rates; keep its best.")
    ] = False,
    grid: Annotated[str | None, typer.Option(help="That grid, as 0.01,0.1,1 (implies --tune).")] = None,
    tune_epochs: Annotated[
        float | None, typer.Option(help="Budget of each run of the search. (default: the same as --epochs)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods over several seeds at the same budget of gradient evaluations.

    Ends with a table (mean ± standard deviation), whether the best one's lead is larger than seed noise and at what
    terms, figures and a report. Finished runs are not repeated, so the same command goes on after any interruption.

    A run whose training loss is no longer finite has diverged: it stops, and the comparison goes on. Exit code 3: all
    runs diverged.
    """
    from sngd.studies.compare import GRID, parse_arms
    from sngd.studies.compare import compare as run_comparison

    refuse_several_processes("compare")
    tuning = _numbers(grid, "grid") if grid else list(GRID) if tune else None
    if tuning and (config.lr is not None or "@lr=" in methods):
        raise ValueError("--tune chooses the learning rates: leave out --lr and @lr=")
    if tune_epochs is not None and not tuning:
        raise ValueError("--tune-epochs is the budget of the search that --tune or --grid asks for: give one of them")
    if tune_epochs is not None and not 0 < tune_epochs < inf:
        raise ValueError(f"--tune-epochs must be a finite number greater than 0, got {tune_epochs}")
    folder = folder or Path("runs", f"compare-{file_name(config.problem)}")
    arms, command = parse_arms(methods, config), shlex.join(["sngd", *sys.argv[1:]])
    with watched(execution) as (watched_execution, _):
        study = run_comparison(
            arms, _seeds(seeds), folder, watched_execution, grid=tuning, tuning_epochs=tune_epochs, command=command
        )
    _print_study(study, folder, as_json)
    if all(run.diverged for run in study.runs):
        raise typer.Exit(DIVERGED)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs, as 'sngd compare' makes it.")],
    as_json: Json = False,
) -> None:
    """Write the report of a folder of runs: one HTML page that works offline; also figures and table.md."""
    from sngd.studies.publish import publish

    _print_study(publish(folder), folder, as_json)


def _seeds(text: str) -> list[int]:
    if "," not in text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"seeds must be a whole number of at least 1 or a list such as 4,5,6, got {text!r}")
        return list(range(int(text)))
    seeds = [part.strip() for part in text.rstrip(",").split(",")]
    if not all(part.isdecimal() for part in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different whole numbers, got {text!r}")
    return [int(part) for part in seeds]


def _numbers(text: str, name: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers joined by commas, got {text!r}") from None


def _print_study(study: Any, folder: Path, as_json: bool) -> None:
    from sngd.studies.table import DIFFERENCE_NOTE, cells, edge_notes, findings
    from sngd.studies.table import as_json as table_json

    page = folder / "report.html"
    if as_json:
        print_json({"folder": str(folder), "report": str(page), **table_json(study)})
        return
    header, rows = cells(study)
    shown = [[Text(f"{cell.text} *", "bold green") if cell.best else cell.text for cell in row] for row in rows]
    print_table(header, shown, title=study.problem, drop=("test loss", "#grad/n", "seeds", "lr", "training loss"))
    out.print("mean ± standard deviation over seeds; * best mean")
    for label, runs in study.arms.items():
        if diverged := sum(run.diverged for run in runs):
            out.print(f"{label}: {diverged} of {len(runs)} runs diverged", soft_wrap=True, highlight=False)
    if study.tuning:
        grid = ", ".join(f"{lr:g}" for lr in study.tuning["grid"])
        budget = f" for {study.tuning['epochs']:g} epochs" if "epochs" in study.tuning else ""
        tried = f"every method tried lr {grid}{budget} on a seed of its own and kept the lowest training loss"
        out.print(f"equal tuning: {tried}")
        for note in edge_notes(study.tuning):
            out.print(note, style="yellow", soft_wrap=True, highlight=False)
    sentences = findings(study)
    for sentence in sentences:
        out.print(f"{sentence}.", soft_wrap=True, highlight=False)
    if len(study.arms) > 1 and any("±" in sentence for sentence in sentences):
        out.print(DIFFERENCE_NOTE, soft_wrap=True, highlight=False)
    out.print(f"report: {page}", soft_wrap=True, highlight=False)
