"""The command that measures the paper's figures and judges its claims."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sngd.cli.console import out, print_json, print_table
from sngd.cli.many import execution_here_or_on_ray, watched
from sngd.cli.options import Json
from sngd.cli.settings import made_from_options
from sngd.cli.torchrun import refuse_several_processes
from sngd.studies.execution.execution import Execution
from sngd.training import Interrupted


@made_from_options(execution=execution_here_or_on_ray)
def reproduce(
    *,
    what: Annotated[
        str,
        typer.Argument(
            help="all, or claims (verdicts), or one study: fig1, fig2, fig3, fig4, counting, variation, spider-sizes, "
            "large-batches, reduced-variance, sensitivity, norms, alternatives, conformance, conformance-norms, "
            "scaling, relaxed, variance."
        ),
    ],
    profile: Annotated[
        str,
        typer.Option(
            help="quick (minutes), small (many hours on 2 cores) or paper (wants a GPU); fig3 and fig4 have medium "
            "too: the paper's ResNet20 for some hours on 2 cores."
        ),
    ] = "quick",
    only: Annotated[str | None, typer.Option(help="Of the claims, these: C7,C9,C10.")] = None,
    stored: Annotated[
        bool, typer.Option("--stored", help="Judge the claims by what the folder holds, and measure nothing.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where it goes. (default: runs/reproduce-WHAT-PROFILE)")
    ] = None,
    execution: Execution,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where it trains: cpu, cuda, … (default: as it was begun; cuda for paper, if it is there, otherwise "
            "cpu)"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the products in training steps: float32, or bfloat16, which is quicker on a GPU. Weights, "
            "gradients and evaluations are float32 all the same. (default: as it was begun; float32)"
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            help="Train through torch.compile, which pays in long runs of convolutional networks, or do not. "
            "(default: as it was begun; do not)"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure and draw what the paper shows, and judge what it claims.

    Runs and verdicts go on from what the folder holds, so the same command continues after any interruption. Claims are
    judged by measurements alone.
    """
    from sngd.paper import claims
    from sngd.paper.closed_form.share_done import listening
    from sngd.paper.reproduce import FIGURES
    from sngd.paper.reproduce import reproduce as measure_and_draw

    refuse_several_processes("reproduce")
    if only is not None and what != "claims":
        raise ValueError(f"--only chooses among claims, {what} is not that: leave it out")
    if stored and what != "claims":
        raise ValueError(f"--stored is for claims, {what} is not that: leave it out")
    if stored and execution.overwrite:
        raise ValueError("--stored judges what the folder holds, --overwrite throws it away: give one of them")
    execution = replace(execution, device=device, precision=precision, compile=compile)
    folder = folder or Path("runs", f"reproduce-{what}-{profile}")
    command = shlex.join(["sngd", *sys.argv[1:]])
    with watched(execution) as (watched_execution, bars):
        present, done, total = bars.add_task(f"{what}, profile {profile}", total=None, loss=""), 0, 1

        def tell(figure: str, index: int, count: int) -> None:
            nonlocal done, total
            done, total = index, count
            bars.update(present, description=f"study {index + 1} of {count}: {figure}, profile {profile}")
            tell_share(0.0)

        def tell_share(share: float) -> None:
            if watched_execution.should_stop():  # what is measured without runs keeps nothing until it is done
                raise Interrupted(f"{what} was stopped; the same command goes on, and begins the present study anew")
            bars.update(present, completed=done + share, total=total)

        with listening(tell_share):
            if what == "all":
                verdicts = claims.reproduce_all(profile, folder, command, watched_execution, on_progress=tell)
            elif what == "claims":
                names = [name.strip() for name in only.split(",")] if only else []
                verdicts = claims.reproduce_claims(
                    names, profile, folder, command, watched_execution, on_progress=tell, stored_only=stored
                )
            else:
                if what not in FIGURES:
                    raise ValueError(f"unknown study {what!r}; must be all, claims, or one of {', '.join(FIGURES)}")
                pictures = measure_and_draw(what, profile, folder, command, watched_execution)
    if what in ("all", "claims"):
        _print_verdicts(verdicts, folder, as_json)
    else:
        _print_pictures(what, pictures, folder, as_json)


def _print_pictures(figure: str, pictures: Sequence[Path], folder: Path, as_json: bool) -> None:
    from sngd.paper.reproduce import FIGURES

    if as_json:
        print_json({"folder": str(folder), "pictures": [str(path) for path in pictures]})
        return
    out.print(f"{FIGURES[figure].claim}\nmeasurements: {folder / 'measurements.json'}", soft_wrap=True, highlight=False)
    for path in pictures:
        out.print(f"picture: {path}", soft_wrap=True, highlight=False)


def _print_verdicts(verdicts: Sequence[Any], folder: Path, as_json: bool) -> None:
    from sngd.paper.verdicts import as_json as verdict_json
    from sngd.paper.verdicts import cells, counting_cells, quantity_cells, reading_cells

    if as_json:
        print_json({"folder": str(folder), "verdicts": [verdict_json(verdict) for verdict in verdicts]})
        return
    for verdict in verdicts:
        if verdict.evidence:
            _print_table(f"{verdict.claim}: {verdict.text}", *quantity_cells(verdict.evidence))
    header, rows = cells(verdicts)
    _print_table("verdicts", header[:4], [row[:4] for row in rows])
    header, rows = counting_cells(verdicts)
    if rows:
        _print_table("by how SPIDER-SFO's gradients are counted", header, rows)
    header, rows = reading_cells(verdicts)
    if rows:  # a terminal's width; the file has the verdict under each reading
        title = f"where the paper is ambiguous: {', '.join(header[2:-1])}"
        _print_table(title, [header[0], header[-1]], [[row[0], row[-1]] for row in rows])
    out.print(f"written: {folder / 'verdicts.md'}", soft_wrap=True, highlight=False)


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print_table(header, rows, title=title, text=header, drop=header[:0:-1])
