"""The command that measures a model's constants."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sngd.cli.console import out, print_json, print_table, progress_bars
from sngd.cli.options import Data, Device, Json, Norm, file_name
from sngd.cli.torchrun import refuse_several_processes
from sngd.training.folder_lock import make_folder
from sngd.training.tracking import tracked_names


def diagnose(
    target: Annotated[
        str,
        typer.Argument(metavar="RUN|PROBLEM", help="A run's folder (its last weights), or a problem (initial ones)."),
    ],
    only: Annotated[str, typer.Option(help="Some of smoothness,noise,curvature.")] = "smoothness,noise,curvature",
    norm: Norm = None,
    samples: Annotated[int, typer.Option(help="Training samples drawn for each quantity.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    device: Device = "cpu",
    data: Data = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Where it goes. (default: the run's folder, or runs/diagnose-PROBLEM)"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model's constants: gradient noise, local smoothness, the ends of the Hessian's spectrum.

    Each comes with an interval and its cost. Smoothness and noise are in the norm of the run's steps, or in --norm.
    On a run trained with --track it also fits L0 and L1 along the run.
    """
    from sngd.studies.diagnosis import diagnose as measure
    from sngd.studies.diagnosis import write_diagnosis

    refuse_several_processes("diagnose")
    folder = folder or (Path(target) if Path(target).is_dir() else Path("runs", f"diagnose-{file_name(target)}"))
    make_folder(folder)  # an error before anything is measured, if it cannot be made
    with progress_bars() as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, most: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=most, loss="")
            bars.update(tasks[what], completed=done)

        found = measure(
            target,
            only=tracked_names("only", only),
            norm=norm,
            samples=samples,
            seed=seed,
            device=device,
            data=data,
            on_progress=show,
        )
    written = write_diagnosis(found, folder, command=shlex.join(["sngd", *sys.argv[1:]]))
    if as_json:
        print_json({"files": [str(path) for path in written], **found.as_json()})
        return
    out.print(f"{found.target}: {found.where}; n = {found.n:,}, d = {found.dim:,}", soft_wrap=True, highlight=False)
    if not found.norm.is_euclidean:
        out.print(f"in the norm {found.norm}; κ = {found.norm.kappa:.4g}", soft_wrap=True, highlight=False)
    rows = [
        [quantity, f"{interval.value:.4g}", f"[{interval.low:.4g}, {interval.high:.4g}]", calls]
        for quantity, interval, calls in found.table()
    ]
    print_table(["quantity", "value", "interval", "calls"], rows, drop=("calls", "interval"))
    out.print("Intervals: 95 %, of the eigenvalues λ 99 %", highlight=False)
    if found.curvature:
        out.print(f"by its curvature the point is: {found.curvature.kind}")
    for path in written:
        out.print(f"written: {path}", soft_wrap=True, highlight=False)
