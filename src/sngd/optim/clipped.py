"""A warning for gradients that are clipped before a step that does not depend on their length."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from sngd.norms.global_norm import global_norm, host_may_read
from sngd.optim.ball import BallPart
from sngd.optim.part import Norms, Part
from sngd.sharding import is_shared

_WATCHED = 20  # an optimizer's first steps, in which gradients are usually longer than the limit of clipping
_IN_A_ROW = 5
_TOLERANCE = 1e-5  # relative: clip_grad_norm_ divides by norm + 1e-6, and float32 rounds

_told: set[str] = set()  # warnings that this process has given


@dataclass
class _Watch:
    """Steps of one optimizer: how many were watched, and the last of them that had gradients of one round norm."""

    steps: int = 0
    norm: float = 0.0
    sums: list[float] = field(default_factory=list)  # Σ|g_i|, by which gradients of equal norm are told apart


_watches: WeakKeyDictionary[Optimizer, _Watch] = WeakKeyDictionary()


def is_watched(optimizer: Optimizer) -> bool:
    """Whether ``warn_if_clipped`` would look at the optimizer's next step."""
    if "clipped" in _told:
        return False
    watch = _watches.get(optimizer)
    if watch is None:
        on_cpu = any(p.is_cpu for group in optimizer.param_groups for p in group["params"])
        watch = _watches[optimizer] = _Watch(steps=0 if on_cpu else _WATCHED)
    return watch.steps < _WATCHED


def warn_if_clipped(optimizer: Optimizer, parts: Sequence[Part], norms: Norms) -> None:
    """Warn, once a process, if gradients seem to be clipped; call it in steps that do not depend on their length.

    They seem so if 5 steps in a row had different gradients of the same ℓ2 norm, and this is a number of at most two
    significant digits, as limits of clipping are. Only an optimizer's first 20 steps are watched, and only on the CPU,
    because an accelerator would make the host wait. For norms other than l2 this computes the gradients' ℓ2 norm.
    """
    if torch.compiler.is_compiling() or not host_may_read(norms.dual) or not is_watched(optimizer):
        return
    watch = _watches[optimizer]
    watch.steps += 1
    norm = _norm(parts, norms)
    limit = float(f"{norm:.1e}")
    if not (0 < norm < inf and abs(norm - limit) <= _TOLERANCE * limit):
        watch.sums.clear()
        return
    if limit != watch.norm:
        watch.norm = limit
        watch.sums.clear()
    watch.sums.append(_sum(parts))
    latest = watch.sums[-_IN_A_ROW:]
    if len(latest) == _IN_A_ROW and max(latest) - min(latest) > 100 * _TOLERANCE * max(latest):
        _told.add("clipped")
        warnings.warn(
            f"the gradients of {_IN_A_ROW} steps in a row had the norm {limit:g}, so they seem to be clipped before "
            "the step. A normalized step has the same length whatever theirs, and clipping changes nothing: leave "
            "clip_grad_norm_ out, or set max_grad_norm=0 in Hugging Face's TrainingArguments, gradient_clip_val=None "
            "in Lightning, gradient_clipping=0 in DeepSpeed. If steps are too long, lower lr",
            stacklevel=5,
        )


def _norm(parts: Sequence[Part], norms: Norms) -> float:
    """The gradients' ℓ2 norm; nan if it cannot be known without asking other ranks, or if vectors were scaled."""
    if not any(isinstance(part, BallPart) for part in parts):
        return float("nan") if norms.exponent else norms.l2.item()
    if any(is_shared(part.spread) for part in parts):
        return float("nan")
    return global_norm([grad for part in parts for grad in part.grads]).item()


def _sum(parts: Sequence[Part]) -> float:
    return sum(float(grad.abs().sum(dtype=torch.float64)) for part in parts for grad in part.grads)
