"""The commands that list methods and problems."""

from typing import Annotated, Any

import typer
from rich.text import Text

from sngd.checks import suggestion
from sngd.cli.console import out, print_json
from sngd.cli.options import Json, completing
from sngd.problems import PROBLEMS
from sngd.training import METHODS
from sngd.training.methods import Method


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="One method: its formulas, cost and parameters.", autocompletion=completing(METHODS)),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or say what one is made of and where it comes from."""
    if name is not None and name not in METHODS:
        meant = suggestion(name, METHODS) or ","
        raise ValueError(f"unknown method {name!r}{meant} must be one of {', '.join(METHODS)}")
    if as_json:
        print_json([_entry(m) for m in METHODS.values()] if name is None else _entry(METHODS[name]))
    elif name is None:
        for method in METHODS.values():
            _print_line(method.name, method.summary)
        out.print("sngd methods NAME: its formulas, cost and parameters", highlight=False)
    else:
        _print_method(METHODS[name])


def problems(as_json: Json = False) -> None:
    """List the built-in problems."""
    if as_json:
        print_json([{"name": row.name, "summary": row.summary} for row in PROBLEMS.values()])
        return
    for row in PROBLEMS.values():
        _print_line(row.name, row.summary)


def _entry(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "gradient": method.estimate.formula,
        "step": method.step_rule.formula,
        "plan": method.plan,
        "output": method.output,
        "cost": f"{method.estimate.cost_text} oracle calls a step",
        "lr": method.lr,
        "parameters": [
            {"name": p.name, "symbol": p.symbol, "default": p.shown_default, "what": p.what} for p in method.parameters
        ],
        "paper": method.paper,
    }


def _print_line(name: str, text: str) -> None:
    out.print(Text.assemble((f"{name:20}", "bold"), f" {text}"), highlight=False, soft_wrap=True)


def _print_method(method: Method) -> None:
    (_, name), (_, summary), *others = _entry(method).items()
    out.print(Text.assemble((name, "bold"), f"  {summary}"), highlight=False, soft_wrap=True)
    for key, content in others:
        lines = [str(content)]
        if key == "parameters":
            lines = [f"{p['name']} = {p['symbol']} ({p['default']}): {p['what']}" for p in content] or ["none"]
        for index, line in enumerate(lines):
            out.print(f"    {key if index == 0 else '':10} {line}", highlight=False, soft_wrap=True)
    out.print("α: --lr, b: --batch-size, n: training samples; g includes λw, λ: --weight-decay", highlight=False)
