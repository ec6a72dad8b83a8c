"""SNGD's step at every magnitude that a dtype holds, against the formula in numpy's longdouble.

One try is a few steps on a few tensors. Each step is held to the formula on its own, from the weights and buffers
before it, so that roundings do not add up. Rounding is granted, and what falls below the dtype's smallest number.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.target import DIFFERENCE, Chance, Found, Target
from sngd import SNGD

Long = np.longdouble
RANGES = {  # decimal exponents of a gradient's entries: from the smallest subnormal to where a sum would overflow
    torch.float32: (-45, 37.5),
    torch.float64: (-323, 307.5),
    torch.bfloat16: (-40, 37.5),
    torch.float16: (-7, 4.0),
}


def targets(where: Path) -> dict[str, Target]:  # noqa: ARG001
    return {
        str(dtype).removeprefix("torch."): Target(lambda chance, dtype=dtype: _attempt(chance, dtype), goal=5000)
        for dtype in RANGES
    }


@dataclass(frozen=True)
class Setting:
    """What SNGD is told."""

    lr: float
    momentum: float
    normalize: str
    weight_decay: float
    max_scale: float
    way: dict[str, Any]


def _attempt(chance: Chance, dtype: torch.dtype) -> dict[str, int]:
    setting = _setting(chance, dtype)
    sizes = [chance.choice((1, 3, 8, 9, 64, 65, 200)) for _ in range(chance.choice((1, 1, 2, 3)))]
    weights = [torch.nn.Parameter(_weights(chance, size, dtype)) for size in sizes]
    options = {name: value for name, value in vars(setting).items() if name != "way"} | setting.way
    optimizer = SNGD(weights, **options)
    outcomes: dict[str, int] = {}
    for _ in range(3):
        gradients, what = _gradients(chance, sizes, dtype)
        chance.note = f"{options}, {what}"
        outcome = _step(optimizer, weights, gradients, setting)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def _setting(chance: Chance, dtype: torch.dtype) -> Setting:
    narrow = dtype == torch.float16
    way = chance.choice(({}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}))
    return Setting(
        lr=10 ** chance.uniform(-3, 2)
        if narrow
        else 10 ** chance.choice((chance.uniform(-4, 1), chance.uniform(-12, 6))),
        momentum=chance.choice((0.0, 0.0, 0.5, 0.9, 0.99)),
        normalize=chance.choice(("gradient", "momentum")),
        weight_decay=chance.choice((0.0, 0.0, 1e-4, 0.1)),
        max_scale=chance.choice((inf, inf, 10 ** chance.uniform(-60, 60), 10 ** chance.uniform(-3, 3))),
        way={**way, "capturable": chance.random() < 0.3},
    )


def _weights(chance: Chance, size: int, dtype: torch.dtype) -> torch.Tensor:
    scale = chance.choice((0.0, 0.0, 1.0, 1e-3, 10.0))
    return torch.tensor([scale * chance.gauss(0, 1) for _ in range(size)]).to(dtype)


def _gradients(chance: Chance, sizes: list[int], dtype: torch.dtype) -> tuple[list[torch.Tensor], str]:
    kind = chance.choices(("one", "each", "zero", "not finite"), weights=(6, 3, 1, 1))[0]
    low, high = RANGES[dtype]
    exponents = [chance.uniform(low, high)] * len(sizes)
    if kind == "each":
        exponents = [chance.uniform(low, high) for _ in sizes]
    if kind == "zero":
        return [torch.zeros(size, dtype=dtype) for size in sizes], "a gradient of zero"
    made = []
    for size, exponent in zip(sizes, exponents, strict=True):
        entries = np.array([chance.uniform(-1, 1) for _ in range(size)]) * 10.0**exponent
        made.append(torch.from_numpy(entries).to(dtype))
    if kind == "not finite":
        made[-1][chance.randrange(sizes[-1])] = chance.choice((inf, -inf, torch.nan))
    return made, f"{kind} at 10^{', 10^'.join(f'{e:.1f}' for e in exponents)}, sizes {sizes}"


def _step(optimizer: SNGD, weights: list[Any], gradients: list[torch.Tensor], setting: Setting) -> str:
    before, buffers, skipped = _long(weights), _buffers(optimizer, weights), optimizer.skipped_steps
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    optimizer.step()
    after, new_buffers = _long(weights), _buffers(optimizer, weights)
    counted = optimizer.skipped_steps - skipped
    dtype = weights[0].dtype
    if not (np.isfinite(after).all() and np.isfinite(new_buffers).all()):
        raise Found(DIFFERENCE, "weights or buffers are no longer finite", "not finite")
    gradient = _long(gradients)
    if not np.isfinite(gradient).all():
        if counted != 1 or (after != before).any() or (new_buffers != buffers).any():
            raise Found(
                DIFFERENCE, f"a gradient that is not finite changed something, counted as skipped {counted} times"
            )
        return "not finite: skipped"
    return _hold_to_formula(before, buffers, gradient, after, counted, setting, dtype)


def _hold_to_formula(
    before: Any, buffers: Any, gradient: Any, after: Any, counted: int, setting: Setting, dtype: torch.dtype
) -> str:
    """w − α c v with c = min{1/‖v‖, β/α}, where v or what the buffers make of it is known up to rounding."""
    info = torch.finfo(dtype)
    eps, tiny = Long(info.eps), Long(info.smallest_normal) * Long(info.eps)
    decay, momentum, lr = (Long(x) for x in (setting.weight_decay, setting.momentum, setting.lr))
    v = gradient + decay * before
    doubt = 2 * eps * (abs(gradient) if setting.weight_decay else 0) + 2 * eps * abs(decay * before)
    if setting.weight_decay:
        doubt = doubt + 2 * tiny
    averaging = setting.momentum > 0 and setting.normalize == "momentum"
    if averaging:
        v, old = momentum * buffers + (1 - momentum) * v, abs(momentum * buffers)
        doubt = doubt + 4 * eps * (old + abs(v)) + 4 * tiny
    norm, unsure = np.sqrt((v**2).sum()), np.sqrt((doubt**2).sum() if np.ndim(doubt) else Long(0))
    moved = after - before
    if norm <= unsure:  # rounding alone may make it zero or turn it round
        return "too small to say" if norm or counted else "zero: skipped"
    if norm == 0:
        if counted != 1 or (moved != 0).any():
            raise Found(DIFFERENCE, f"a gradient of zero changed something, counted as skipped {counted} times")
        return "zero: skipped"
    if counted:
        raise Found(DIFFERENCE, f"skipped, though ‖v‖ = 10^{float(np.log10(norm)):.1f}", "skipped")
    c = min(1 / norm, Long(setting.max_scale) / lr)
    step, terms = c * v, abs(c * v)
    if setting.momentum > 0 and not averaging:
        step, terms = momentum * buffers + step, abs(momentum * buffers) + terms  # the sum may be much smaller
    step, terms = lr * step, lr * terms
    sure = np.sqrt((terms**2).sum()) * (8 * eps + 4 * min(unsure / norm, Long(1)))
    wide = Long(torch.finfo(torch.promote_types(dtype, torch.float32)).smallest_normal)
    wide = wide * Long(torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    granted = sure + 8 * eps * terms + eps * abs(before) + 2 * tiny + 2 * wide * max(lr, Long(1))
    error = abs(moved + step)
    if (error > granted).any():
        worst = int(np.argmax(error - granted))
        length = np.sqrt((step**2).sum())
        raise Found(
            DIFFERENCE,
            f"step is off: entry moved by {float(moved[worst]):.3g}, must be {float(-step[worst]):.3g}; "
            f"length must be {float(length):.3g}",
            "step is off",
        )
    return "step"


def _long(tensors: Any) -> Any:
    flat = torch.cat([t.detach().flatten() for t in tensors])
    return flat.to(torch.float64).numpy().astype(Long)


def _buffers(optimizer: SNGD, weights: list[Any]) -> Any:
    return _long([optimizer.state[w].get("momentum_buffer", torch.zeros_like(w)) for w in weights])
