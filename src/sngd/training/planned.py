"""Turn a plan of ``sngd.theory`` into the settings of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, cast

from sngd.stages import StagePlan
from sngd.training.methods import find_method
from sngd.training.plan_words import list_plan
from sngd.training.schema import Declared, Line, Positive, read

AtLeastOne = Annotated[int, Declared(ge=1)]


class Planned(TypedDict):
    """What ``sngd plan METHOD … --json`` prints, see ``sngd.theory.Plan``; a run needs the first four."""

    method: Line
    lr: Positive
    batch_size: AtLeastOne
    oracle_calls: AtLeastOne
    theorem: NotRequired[str]
    L: NotRequired[float]
    L0: NotRequired[float]
    L1: NotRequired[float]
    sigma: NotRequired[float]
    kappa: NotRequired[float]
    norm: NotRequired[Line]
    gap: NotRequired[float]
    target: NotRequired[float]
    epsilon: NotRequired[Positive]
    anchor_batch_size: NotRequired[AtLeastOne]
    period: NotRequired[AtLeastOne]
    max_scale: NotRequired[Positive]
    momentum: NotRequired[Annotated[float, Declared(ge=0)]]
    steps: NotRequired[AtLeastOne]
    guarantee: NotRequired[float]
    terms: NotRequired[dict[str, float | bool]]
    lr_limited: NotRequired[bool]
    stages: NotRequired[Annotated[list[tuple[Positive, AtLeastOne, Positive]], Declared(length=(1, 2**31))]]


# The methods that take the steps of nsgd-momentum in another norm, as ``sngd plan --norm`` spells it.
_IN_NORM = {"sign(scaled=False)": "signum", "layer": "sngd-layer", "groups": "scion"}


def read_plan(path: Path) -> Planned:
    """The plan of one method in ``path``, as ``sngd plan METHOD … --json`` prints it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no such plan.
    """
    return read(path, Planned)


def planned_settings(plan: Planned, n: int) -> dict[str, Any]:
    """Settings of ``RunConfig`` that make the planned run on a problem of ``n`` samples.

    Samples are drawn independently and the output is the random iterate, as the theorems assume.

    Args:
        plan: ``sngd.theory.Plan.as_json()``.
        n: number of training samples; the budget, the plan's oracle calls, is given to a run in passes over them.

    Raises:
        ValueError: no row of ``METHODS`` takes the plan's steps.
    """
    method = find_method(_method_in_norm(plan))
    stages = plan.get("stages")
    options = cast(Mapping[str, Any], plan)
    return {
        "method": method.name,
        "lr": plan["lr"],
        "batch_size": plan["batch_size"],
        "epochs": plan["oracle_calls"] / n,
        "plan": list_plan(StagePlan.from_list(stages)) if stages else "constant",
        "params": {p.name: options[p.name] for p in method.parameters if p.name in options},
        "sampling": "independent",
        "output": "random",
    }


def _method_in_norm(plan: Planned) -> str:
    """The method that takes the plan's steps in the plan's norm."""
    name, norm = plan["method"].partition(":")[0], plan.get("norm", "l2")
    if norm == "l2" and plan.get("kappa", 1.0) == 1:
        return name
    if "norm" not in plan:
        raise ValueError(f"plan has kappa {plan.get('kappa')!r} and no norm: make it by sngd plan --norm … --problem …")
    if name == "nsgd-momentum" and norm in _IN_NORM:
        return _IN_NORM[norm]
    raise ValueError(
        f"plan is for {name} in norm {norm}, which no method takes: it must be nsgd-momentum in {', '.join(_IN_NORM)}"
    )
