"""The command that packs finished studies into few files."""

from pathlib import Path
from typing import Annotated

import typer

from sngd.cli.console import out, print_json
from sngd.cli.options import Json


def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder, or one above several studies.")],
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Make one pair of files in DIR of all studies at or below it. Their own table.md, report.html and "
            "curves are deleted, and their folders unless weights or other files are in them; report makes them again.",
        ),
    ] = False,
    unpack: Annotated[bool, typer.Option("--unpack", help="The other way: make the run folders again.")] = False,
    drop_weights: Annotated[
        bool, typer.Option("--drop-weights", help="Delete the runs' weights (checkpoint.pt), which are kept otherwise.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make few files of every finished study: study.json (settings, environments) and rows.jsonl.xz (evaluations).

    report, certify, compare and reproduce work from them as from run folders. A study with unfinished runs is refused.
    One that is packed together with others must be unpacked before compare goes on with it by itself.
    """
    from sngd.studies import pack as packing

    for option, given in (("--together", together), ("--drop-weights", drop_weights)):
        if unpack and given:
            raise ValueError(f"{option} is for packing, --unpack is not that: give one of them")
    done = packing.unpack(folder) if unpack else packing.pack(folder, together=together, drop_weights=drop_weights)
    if as_json:
        print_json({"folder": str(folder), "studies": [str(study) for study in done]})
        return
    for study in done:
        out.print(f"{'unpacked' if unpack else 'packed'}: {study}", soft_wrap=True, highlight=False)
