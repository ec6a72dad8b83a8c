"""Let a run go on to more epochs than it was begun with, so that it ends as if it had been begun with them."""

from collections.abc import Sequence
from typing import cast

from sngd.checks import shown
from sngd.training.config import RunConfig
from sngd.training.metrics import Row
from sngd.training.run_folder import Checkpoint


def check_extension(config: RunConfig, epochs: float) -> None:
    """ValueError unless a run of ``config`` is the beginning of one of ``epochs``, as it is with a constant plan."""
    plan = str(config.resolved().plan)
    if plan != "constant":
        raise ValueError(
            f"it was begun with {config.epochs:g} epochs, and its plan {shown(plan)} is laid over all of them: a run "
            f"of {epochs:g} has other stages from the start. Only the plan 'constant' goes on"
        )


def extended(checkpoint: Checkpoint, rows: Sequence[Row], eval_every: float) -> Checkpoint:
    """The checkpoint of the run as it was before the evaluation at its end; the same if the run has not ended.

    A longer run evaluates there, too, if that is on its schedule.

    Args:
        checkpoint: of the run.
        rows: of metrics that the checkpoint knows.
        eval_every: epochs between evaluations.

    Raises:
        ValueError: the run has diverged.
    """
    if not checkpoint["finished"]:
        return checkpoint
    if rows[-1]["diverged"]:
        raise ValueError("it has diverged: more epochs would go on from a loss that is not finite")
    kept = rows[: -2 if rows[-1]["iterate"] == "random" else -1]
    evaluations, tracking_calls = 0, 0
    if kept:
        evaluations = int(kept[-1]["grads_over_n"] / eval_every + 1e-9) + 1
        tracking_calls = kept[-1].get("tracking_calls", 0)
    changed = {"finished": False, "rows": len(kept), "evaluations": evaluations, "tracking_calls": tracking_calls}
    return cast(Checkpoint, {**checkpoint, **changed})
