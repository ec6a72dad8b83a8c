"""The options that several commands share, and how words become numbers."""

from pathlib import Path
from typing import Annotated

import typer

from sngd.problems import PROBLEMS
from sngd.slug import slug
from sngd.theory import RelaxedSmooth, Smooth, Smoothness
from sngd.training.plan_words import SPELLING
from sngd.training.tracking import tracking_cost

Problem = Annotated[str, typer.Argument(help="A name from 'sngd problems', or path/to/file.py:factory for your own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, nothing else, on standard output.")]
Lr = Annotated[float | None, typer.Option(help="Learning rate α of the first stage. (default: the method's)")]
BatchSize = Annotated[int, typer.Option(help="Samples a step, b.")]
Epochs = Annotated[float, typer.Option(help="Budget: gradient evaluations over n. No method spends more.")]
WeightDecay = Annotated[float, typer.Option(help="λ: adds λw to every gradient.")]
Plan = Annotated[str | None, typer.Option(help=f"Stage plan: {SPELLING}. (default: the method's)".replace("[", r"\["))]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="A parameter of the method's own, as NAME=VALUE; repeatable."),
]
Sampling = Annotated[str, typer.Option(help="'shuffled' passes, or 'independent' draws as the theorems assume.")]
Output = Annotated[str, typer.Option(help="What the method returns: the 'last' iterate or a 'random' one.")]
EvalEvery = Annotated[float, typer.Option(help="Evaluate every so many epochs (gradient evaluations over n).")]
GradNorm = Annotated[bool, typer.Option(help="Measure ‖∇F(w)‖ at evaluations; takes about as long as an epoch.")]
Track = Annotated[
    str | None,
    typer.Option(
        help="Measure at each evaluation, beside the budget, some of smoothness,noise,curvature "
        f"({tracking_cost()} gradient evaluations)."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a run. (default: its share of the cores)")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="SNGD_DATA", help="Folder of data sets in their official files. (default: a download cache)"),
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files into run folders too.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away what the output folder holds.")]
OverwriteOrResume = Annotated[
    bool, typer.Option("--overwrite/--resume", help="Throw away what the output folder holds, or go on from there.")
]

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
