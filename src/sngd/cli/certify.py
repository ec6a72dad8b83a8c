"""The command that computes a run's guarantee."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sngd.cli.console import out, print_json, print_table
from sngd.cli.options import Data, Json, Smoothness0, Smoothness1, SmoothnessL, smoothness_of

_REMEDIES = {  # by an assumption and its status
    ("smoothness", "unchecked"): "give --L, or train with --track smoothness",
    ("noise", "unchecked"): "give --sigma, or train with --track noise",
    ("batches", "violated"): "train with --sampling independent",
    ("gap", "unchecked"): "give --gap, or train with --curve-samples 0",
    ("measurements", "unchecked"): "train with --curve-samples 0 and --grad-norm, and without --eval-samples",
}


def certify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or one of several runs.")],
    smoothness: SmoothnessL = None,
    l0: Smoothness0 = None,
    l1: Smoothness1 = None,
    sigma: Annotated[float | None, typer.Option(help="σ: bound on the gradient noise of one sample.")] = None,
    gap: Annotated[float | None, typer.Option(help="Δ: F(w_0) − inf F.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Hold runs against their theorem: mean ‖∇F(w)‖ measured, bound, its terms, verdict, and every assumption.

    Constants that are not given are the problem's own, where known, or measured by a run with --track. No theorem is
    claimed when an assumption is violated or unchecked.
    """
    from sngd.studies.certify import certify as certify_runs

    given = smoothness_of(smoothness, l0, l1)
    found = certify_runs(folder, smoothness=given, sigma=sigma, gap=gap, data=data)
    if as_json:
        print_json({"folder": str(folder), "certificates": [certificate.as_json() for certificate in found]})
        return
    for certificate in found:
        rows: list[list[str | Text]] = []
        for assumption in certificate.assumptions:
            color = "green" if assumption.status in ("given", "measured") else "red"
            rows.append([assumption.name, Text(assumption.status, color), assumption.detail])
        header = ["assumption", "status", "why"]
        print_table(header, rows, title=f"{certificate.label}: {certificate.verdict}", text=header)
        out.print(certificate.statement, soft_wrap=True, highlight=False)
    missing = {(a.name, a.status) for certificate in found for a in certificate.assumptions}
    for case, remedy in _REMEDIES.items():
        if case in missing:
            out.print(f"{case[0]} {case[1]}: {remedy}", soft_wrap=True, highlight=False)
    if any(certificate.measured for certificate in found):
        out.print("In brackets: the 95 % interval", highlight=False)
    out.print(f"written: {folder / 'certificate.json'}", soft_wrap=True, highlight=False)
