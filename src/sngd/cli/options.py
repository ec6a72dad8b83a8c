"""Options that several commands share, and the parsing of their values."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from sngd.problems import PROBLEMS
from sngd.slug import slug
from sngd.theory import RelaxedSmooth, Smooth, Smoothness
from sngd.training.config import SETTINGS


def completing(names: Iterable[str]) -> Callable[[str], list[str]]:
    """What Typer asks for the words that a shell can complete a beginning to; after a comma, another of ``names``."""
    names = list(names)

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name.startswith(begun)]

    return complete


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, nothing else, on standard output.")]
Norm = Annotated[
    str | None,
    typer.Option(
        help="Of the steps: l2, layer, sign, 'sign(scaled=False)', spectral, row, col; groups: by kind of weight."
    ),
]
Device = Annotated[str, typer.Option(help=SETTINGS["device"].help)]
Data = Annotated[
    Path | None,
    typer.Option(envvar="SNGD_DATA", help="Folder of data sets in their official files. (default: a download cache)"),
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files into run folders too.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away what the output folder holds.")]

SmoothnessL = Annotated[float | None, typer.Option("--L", help="F is L-smooth.")]
Smoothness0 = Annotated[float | None, typer.Option("--L0", help="With --L1: F is (L0, L1)-smooth.")]
Smoothness1 = Annotated[float | None, typer.Option("--L1", help="See --L0.")]


def smoothness_of(L: float | None, L0: float | None, L1: float | None) -> Smoothness | None:
    """The class of functions that the three options name, None if none is given.

    Raises:
        ValueError: --L together with the others, or one of --L0 and --L1 without the other.
    """
    if L is None and L0 is None and L1 is None:
        return None
    if (L is None) == (L0 is None) or (L0 is None) != (L1 is None):
        raise ValueError("give either --L, or --L0 and --L1")
    return Smooth(L) if L is not None else RelaxedSmooth(L0 or 0.0, L1 or 0.0)


def file_name(problem: str) -> str:
    """A folder's name that no other problem has: ``digits-mlp`` as it is, ``file.py:factory`` as ``file-factory``."""
    path, _, factory = problem.rpartition(":")
    short = f"{path.removesuffix('.py')}-{factory}"
    is_short = path.endswith(".py") and short not in PROBLEMS and slug(short) == short
    return short if is_short else slug(problem)
