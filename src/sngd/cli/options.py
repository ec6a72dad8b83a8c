"""The options that several commands share, and how words become numbers."""

from pathlib import Path
from typing import Annotated

import typer

from sngd.training.plans import SPELLING

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
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a run. (default: its share of the cores)")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="SNGD_DATA", help="Folder of data sets in their official files. (default: a download cache)"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away what the output folder holds.")]


def file_name(problem: str) -> str:
    """``digits-mlp`` as it is, ``path/to/file.py:factory`` as ``file-factory``."""
    path, _, factory = problem.rpartition(":")
    return f"{Path(path).stem}-{factory}" if path else problem
