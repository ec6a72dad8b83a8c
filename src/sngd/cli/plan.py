"""The command that plans a run from constants."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sngd.cli.console import out, print_json, print_table
from sngd.cli.options import Data, Json, Norm, Smoothness0, Smoothness1, SmoothnessL, smoothness_of


def plan(
    methods: Annotated[
        str,
        typer.Argument(
            help="sngd, s-sngd:harmonic, s-sngd:harmonic-even, s-sngd:geometric, sgd, spider-sfo, nsgd-momentum; "
            "several joined by commas."
        ),
    ],
    smoothness: SmoothnessL = None,
    l0: Smoothness0 = None,
    l1: Smoothness1 = None,
    sigma: Annotated[float, typer.Option(help="σ: bound on the gradient noise of one sample.")] = 0.0,
    gap: Annotated[float, typer.Option(help="Δ: F(w_0) − inf F.")] = 1.0,
    kappa: Annotated[
        float | None, typer.Option(help="κ: ‖v‖* ≤ κ‖v‖₂, for steps in another norm than ‖·‖₂, which L is of.")
    ] = None,
    norm: Norm = None,
    problem: Annotated[str | None, typer.Option(help="With --norm: its model's weights make κ.")] = None,
    data: Data = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="ε: the theorem's own choice for the first method, whose guarantee is 4ε for sngd; others get the "
            "same guarantee."
        ),
    ] = None,
    target: Annotated[float | None, typer.Option(help="τ: the guarantee wanted; the cheapest run.")] = None,
    as_json: Json = False,
) -> None:
    """From constants to a run: learning rate, batch size, steps or stages, cost, and the guaranteed E‖∇F(w̄)‖*."""
    from sngd.theory import plan as plan_run

    given = smoothness_of(smoothness, l0, l1)
    if given is None:
        raise ValueError("give either --L, or --L0 and --L1")
    if (epsilon is None) == (target is None):
        raise ValueError("give either --target, the guarantee wanted, or --epsilon, the theorem's own choice")
    in_norm, weights = _norm_of(norm, problem, kappa, data)
    kappa = in_norm.get("kappa", 1.0) if kappa is None else kappa
    names = [name.strip() for name in methods.split(",")]
    plans = [plan_run(names[0], given, sigma, gap, epsilon=epsilon, target=target, kappa=kappa)]
    plans += [plan_run(name, given, sigma, gap, target=plans[0].target, kappa=kappa) for name in names[1:]]
    if as_json:
        shown = [{**p.as_json(), **in_norm} for p in plans]
        if epsilon is not None:
            shown[0]["epsilon"] = epsilon  # beside the guarantee, which is a multiple of it
        print_json(shown[0] if len(plans) == 1 else shown)
        return
    print_table(
        ["method", "lr", "batch size", "steps", "calls", "guarantee"],
        [
            [
                p.method,
                f"{p.lr:.4g}" + (f" → {p.stages[-1].lr:.2g}" if p.stages else ""),
                f"{p.batch_size:,}",
                f"{p.steps:,}",
                f"{p.oracle_calls:,}",
                f"{p.guarantee:.4g}",
            ]
            for p in plans
        ],
        drop=("steps", "batch size", "calls", "lr"),
    )
    constants = {**asdict(given), "σ": sigma, "Δ": gap}
    out.print("for " + ", ".join(f"{name} = {value:g}" for name, value in constants.items()), highlight=False)
    if weights:
        out.print(weights, soft_wrap=True, highlight=False)
    if epsilon is not None:
        first = plans[0]
        out.print(
            f"ε = {epsilon:g} stands for the guarantee E‖∇F(w̄)‖* ≤ {first.target / epsilon:g}ε = {first.target:g} "
            f"({first.method}, {first.theorem}); --target {first.target:g} asks for the cheapest run with it.",
            soft_wrap=True,
            highlight=False,
        )
    for p in plans:
        terms = f"progress {p.bound.progress:.4g} + curvature {p.bound.curvature:.4g} + noise {p.bound.noise:.4g}"
        binding = f"; αL1 ≤ ½ binds: lr ≤ {given.max_lr:g}" if p.lr_limited else ""
        sum_of = f"√({terms})" if p.bound.squared else terms
        options = "".join(f"; {name} {value:.10g}" for name, value in p.options.items())
        out.print(f"{p.method}, {p.theorem}: {sum_of}{binding}{options}", soft_wrap=True, highlight=False)
    if any(p.stages for p in plans):
        out.print("The bound of a stage plan is no better than SNGD's: what stages gain is empirical.", soft_wrap=True)


def _norm_of(
    norm: str | None, problem: str | None, kappa: float | None, data: Path | None
) -> tuple[dict[str, Any], str]:
    """What a plan's JSON says of the norm, and the same in words; nothing of either without --norm."""
    if (norm is None) != (problem is None):
        raise ValueError("give --norm and --problem together: κ depends on the weights")
    if norm is None or problem is None:
        return {}, ""
    if kappa is not None:
        raise ValueError("give either --kappa, or --norm and --problem")
    from sngd.problems import load_problem
    from sngd.studies.spelled_norm import canonical, norm_of_model

    spelled = canonical(norm)
    product = norm_of_model(spelled, load_problem(problem, data).build_model())
    tensors = f"{len(product.shapes)} tensor{'s' * (len(product.shapes) > 1)}"
    words = f"κ = {product.kappa:.4g}: the norm {product} over {problem}'s weights, {tensors}"
    return {"norm": spelled, "kappa": product.kappa}, words
