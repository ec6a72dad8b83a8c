"""The paper's figures and claims."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sngd.cli.console import err, out, print_json
from sngd.cli.options import Json


def reproduce(
    what: Annotated[
        str,
        typer.Argument(help="claims (verdicts), or one study: fig1, conformance, scaling, relaxed, variance."),
    ],
    profile: Annotated[str, typer.Option(help="quick (under a minute a study) or small (minutes).")] = "quick",
    only: Annotated[str | None, typer.Option(help="Of the claims, these: C7,C9,C10.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where it goes. (default: runs/reproduce-WHAT-PROFILE)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure and draw what the paper shows, and judge what it claims.

    Claims are judged by measurements alone; those of the same profile that are in the folder already are not repeated.
    """
    folder = folder or Path("runs", f"reproduce-{what}-{profile}")
    command = shlex.join(["sngd", *sys.argv[1:]])
    if what == "claims":
        _claims(only, profile, folder, command, as_json)
    elif only is not None:
        raise ValueError(f"--only chooses among claims, {what} is one study: leave it out")
    else:
        _study(what, profile, folder, command, as_json)


def _study(figure: str, profile: str, folder: Path, command: str, as_json: bool) -> None:
    from sngd.studies.reproduce import FIGURES
    from sngd.studies.reproduce import reproduce as measure_and_draw

    with err.status(f"{figure}, profile {profile}"):
        pictures = measure_and_draw(figure, profile, folder, command=command)
    if as_json:
        print_json({"folder": str(folder), "pictures": [str(path) for path in pictures]})
        return
    out.print(f"{FIGURES[figure].claim}\nmeasurements: {folder / 'measurements.json'}", soft_wrap=True, highlight=False)
    for path in pictures:
        out.print(f"picture: {path}", soft_wrap=True, highlight=False)


def _claims(only: str | None, profile: str, folder: Path, command: str, as_json: bool) -> None:
    from sngd.studies.claims import reproduce_claims
    from sngd.studies.verdicts import as_json as verdict_json
    from sngd.studies.verdicts import cells, quantity_cells

    names = [name.strip() for name in only.split(",")] if only else []
    with err.status(f"claims, profile {profile}") as status:
        verdicts = reproduce_claims(
            names, profile, folder, command, lambda figure: status.update(f"{figure}, profile {profile}")
        )
    if as_json:
        print_json({"folder": str(folder), "verdicts": [verdict_json(verdict) for verdict in verdicts]})
        return
    for verdict in verdicts:
        if verdict.evidence:
            _print_table(f"{verdict.claim}: {verdict.text}", *quantity_cells(verdict.evidence))
    header, rows = cells(verdicts)
    _print_table("verdicts", header[:3], [row[:3] for row in rows])
    out.print(f"written: {folder / 'verdicts.md'}", soft_wrap=True, highlight=False)


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)
