"""The commands that list methods and problems."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from sngd.cli.console import out, print_json
from sngd.cli.options import Json
from sngd.problems import PROBLEMS
from sngd.training import METHODS


def methods(as_json: Json = False) -> None:
    """List the methods: what each is made of and where it comes from."""
    rows: list[dict[str, Any]] = [
        {
            "name": m.name,
            "summary": m.summary,
            "gradient": m.estimate.formula,
            "step": m.step_rule.formula,
            "plan": m.plan,
            "output": m.output,
            "cost": f"{m.estimate.cost_text} oracle calls a step",
            "lr": m.lr,
            "parameters": [
                {"name": p.name, "symbol": p.symbol, "default": p.shown_default, "what": p.what} for p in m.parameters
            ],
            "paper": m.paper,
        }
        for m in METHODS.values()
    ]
    if as_json:
        print_json(rows)
        return
    out.print("α: --lr, b: --batch-size, n: training samples; g includes λw, λ: --weight-decay", highlight=False)
    for row in rows:
        described = [f"{p['name']} = {p['symbol']} ({p['default']}): {p['what']}" for p in row["parameters"]]
        row["parameters"] = "\n              ".join(described) or "none"
    _print_entries(rows, as_json)


def problems(as_json: Json = False) -> None:
    """List the built-in problems."""
    _print_entries([{"name": row.name, "summary": row.summary} for row in PROBLEMS.values()], as_json)


def _print_entries(entries: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        (_, name), (_, summary), *others = entry.items()
        out.print(Text.assemble((name, "bold"), f"  {summary}"), highlight=False, soft_wrap=True)
        for key, value in others:
            out.print(f"    {key:10} {value!s}", highlight=False, soft_wrap=True)
