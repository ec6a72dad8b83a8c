"""The rows of metrics.jsonl: the measurements of each evaluation of a run. They are declared and read only here."""

import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

from sngd.training.schema import Count, Declared, NonNegative, NotJSON, content_of, decode

Share = Annotated[float | None, Declared(ge=0, le=1)]
Size = Annotated[float | None, Declared(ge=0)]


class Row(TypedDict):
    """One evaluation; None stands for a number that is not finite, or that the problem or the settings do not have."""

    step: Count
    epoch: NonNegative
    oracle_calls: Count
    grads_over_n: NonNegative
    lr: NonNegative
    train_loss: float | None
    train_accuracy: Share
    test_loss: float | None
    test_accuracy: Share
    grad_norm: Size
    seconds: NonNegative
    iterate: Annotated[str, Declared(one_of=("last", "random"))]
    final: bool
    diverged: bool
    samples: NotRequired[Count]  # training samples measured; absent: all, or as many as --eval-samples says
    skipped_steps: NotRequired[Annotated[int | None, Declared(ge=0)]]  # an early version did not count them
    dual_grad_norm: NotRequired[Size]  # ‖∇F(w)‖* of methods whose steps are normalized in another norm than ‖·‖₂
    # what was tracked, and could be measured; smoothness and noise_error in the norm of the method's steps
    noise_variance: NotRequired[float | None]
    noise_variance_low: NotRequired[float | None]
    noise_variance_high: NotRequired[float | None]
    noise_scale: NotRequired[float | None]
    noise_scale_low: NotRequired[float | None]
    noise_scale_high: NotRequired[float | None]
    noise_error: NotRequired[float | None]
    noise_error_low: NotRequired[float | None]
    noise_error_high: NotRequired[float | None]
    smoothness_grad_norm: NotRequired[Size]
    smoothness_along: NotRequired[float | None]
    smoothness_off: NotRequired[float | None]
    hessian_max: NotRequired[float | None]
    hessian_max_error: NotRequired[Size]
    hessian_min: NotRequired[float | None]
    hessian_min_error: NotRequired[Size]
    tracking_calls: NotRequired[Count]


def lines_of(path: Path) -> list[bytes]:
    """The file's lines with their ends, and what follows the last of them; none if there is no file."""
    return BytesIO(content_of(path)).readlines() if path.exists() else []


def read_rows(path: Path) -> list[Row]:
    """All complete rows. A file that is being written, or whose writer was killed, may end in an incomplete one.

    Raises:
        Malformed, UnknownKey: (ValueErrors) a line is no such row; the message names file, line and key.
    """
    return parse_rows(lines_of(path), path)


def as_lines(rows: Iterable[Mapping[str, object]]) -> bytes:
    """The rows as metrics.jsonl has them."""
    return b"".join(json.dumps(finite(row), allow_nan=False).encode() + b"\n" for row in rows)


def finite(row: Mapping[str, object]) -> dict[str, object]:
    """The row with None in the place of numbers that are not finite, which JSON cannot say."""
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in row.items()}


def parse_rows(lines: list[bytes], path: Path) -> list[Row]:
    """The rows that ``lines`` of ``path`` hold, as ``read_rows``."""
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(decode(line, Row, f"{path}, line {number}"))
        except NotJSON:
            if not line.endswith(b"\n"):
                break
            raise
    return rows
