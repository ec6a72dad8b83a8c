"""The paper's figures and claims."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sngd.cli.console import err, out, print_json
from sngd.cli.options import Json


def reproduce(
    figure: Annotated[str, typer.Argument(help="fig1: leaving saddles and sharp minima.")],
    profile: Annotated[str, typer.Option(help="quick (seconds) or small (minutes).")] = "quick",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where it goes. (default: runs/reproduce-FIGURE-PROFILE)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure and draw a figure of the paper."""
    from sngd.studies.reproduce import FIGURES
    from sngd.studies.reproduce import reproduce as measure_and_draw

    folder = folder or Path("runs", f"reproduce-{figure}-{profile}")
    with err.status(f"{figure}, profile {profile}"):
        pictures = measure_and_draw(figure, profile, folder, command=shlex.join(["sngd", *sys.argv[1:]]))
    if as_json:
        print_json({"folder": str(folder), "pictures": [str(path) for path in pictures]})
        return
    out.print(f"{FIGURES[figure].claim}\nmeasurements: {folder / 'measurements.json'}", soft_wrap=True, highlight=False)
    for path in pictures:
        out.print(f"picture: {path}", soft_wrap=True, highlight=False)
