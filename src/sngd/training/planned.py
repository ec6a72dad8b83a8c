"""From a plan of the theory to the settings of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sngd.stages import StagePlan
from sngd.training.methods import find_method
from sngd.training.plans import list_plan
from sngd.training.run_folder import read_json


def read_plan(path: Path) -> dict[str, Any]:
    """The plan of one method in ``path``, as ``sngd plan METHOD … --json`` prints it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no such plan.
    """
    content = read_json(path)
    if missing := [key for key in ("method", "lr", "batch_size", "oracle_calls") if key not in content]:
        raise ValueError(f"{path}: must hold what 'sngd plan METHOD --json' prints, it lacks {', '.join(missing)}")
    return content


def planned_settings(plan: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Settings of ``RunConfig`` that make the planned run on a problem of ``n`` samples.

    Samples are drawn independently and the output is the random iterate, as the theorems have it.

    Args:
        plan: ``sngd.theory.Plan.as_json()``.
        n: number of training samples; the budget, the plan's oracle calls, is given to a run in passes over them.

    Raises:
        ValueError: the plan's method is no row of ``METHODS``.
    """
    method = find_method(str(plan["method"]).partition(":")[0])
    stages = plan.get("stages")
    return {
        "method": method.name,
        "lr": plan["lr"],
        "batch_size": plan["batch_size"],
        "epochs": plan["oracle_calls"] / n,
        "plan": list_plan(StagePlan.from_list(stages)) if stages else "constant",
        "params": {p.name: plan[p.name] for p in method.parameters if p.name in plan},
        "sampling": "independent",
        "output": "random",
    }
