"""A run's metrics as TensorBoard event files, in RUN/tensorboard."""

from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

_TAGS = {  # the rest: train_loss is train/loss, noise_variance_low is noise/variance_low
    "grad_norm": "train/grad_norm",
    "dual_grad_norm": "train/dual_grad_norm",
    "lr": "optimizer/lr",
    "step": "optimizer/steps",
    "skipped_steps": "optimizer/skipped_steps",
    "epoch": "cost/epoch",
    "grads_over_n": "cost/grads_over_n",
    "seconds": "cost/seconds",
    "samples": "evaluation/samples",
    "tracking_calls": "cost/tracking_calls",
}


class EventFiles:
    """Writes rows of metrics as scalars: TensorBoard's step is ``oracle_calls``, its clock the run's ``seconds``.

    ``begin`` writes all events again from metrics.jsonl, so that a resumed run has no point twice and no point of steps
    that were lost. A random iterate's row goes under ``random_iterate/`` and is no point of the curve.

    Raises:
        ValueError: the package tensorboard is not installed.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "tensorboard: event files need the package tensorboard: pip install 'sngd[tensorboard]'"
            ) from None
        self._run, self._new_writer = run, SummaryWriter
        self._writer: Any = None

    def __enter__(self) -> "EventFiles":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def begin(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all points by those of ``rows``; a running TensorBoard drops the old points too."""
        folder = self._run / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.write_bytes(b"")  # TensorBoard would wait forever for a deleted file
        self._started = (self._run / "config.json").stat().st_mtime
        self._writer = self._new_writer(str(folder), purge_step=0)
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row's numbers, but for those that are not finite."""
        assert self._writer is not None
        for tag, number in scalars(row).items():
            self._writer.add_scalar(tag, number, row["oracle_calls"], walltime=self._started + row["seconds"])
        self._writer.flush()


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row of metrics, by the tags that TensorBoard groups them under."""
    numbers = {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and key != "oracle_calls"
    }
    if row.get("iterate") == "random":
        return {f"random_iterate/{key}": number for key, number in numbers.items()}
    return {_TAGS.get(key, key.replace("_", "/", 1)): number for key, number in numbers.items()}
