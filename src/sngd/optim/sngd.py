"""SNGD: stochastic normalized gradient descent. Every step has the same length."""

from collections.abc import Callable, Iterable
from math import inf, isfinite
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from sngd.optim.norms import by_kind, norm_of_lists

Number = float | Tensor

_OPTIONS = (
    "lr",
    "momentum",
    "normalize",
    "weight_decay",
    "max_scale",
    "maximize",
    "foreach",
    "fused",
    "capturable",
)


class SNGD(Optimizer):
    r"""Stochastic normalized gradient descent (Zhao, Xie and Li 2021, Algorithm 1).

    .. math::
        w \leftarrow w - \alpha \, \frac{g}{\lVert g \rVert}

    with one *global* norm over the gradients of all parameters of all groups, so a step has length exactly ``lr``
    whatever the size of the gradient: no clipping threshold, no loss spikes, no stalling at saddles.

        >>> import torch, sngd
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = sngd.SNGD(model.parameters(), lr=0.1)
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()

    With weight decay λ, g stands for g + λw throughout (coupled, as in ``torch.optim.SGD``). With momentum β:

    * ``normalize="gradient"`` (SNGM, arXiv 2007.13985): u ← βu + g/‖g‖, w ← w − αu;
    * ``normalize="momentum"`` (Cutkosky and Mehta 2020): m ← βm + (1−β)g, w ← w − α m/‖m‖.

    ``max_scale`` is β of the paper's eq. 5, w ← w − min{α/‖g‖, max_scale} g: normalized while ‖g‖ > α/max_scale,
    a plain gradient step below. If the norm is zero or not finite, nothing changes (weights, buffers) and
    ``skipped_steps`` counts it. Neither that nor the norm makes the host wait for an accelerator.

    Args:
        params: parameters or param groups. Every option but ``capturable`` may differ by group; each group steps
            by its own ``lr`` along its part of the one global direction.
        lr: α, the step length, ≥ 0; a 0-d tensor is allowed.
        momentum: β in [0, 1).
        normalize: which vector the norm is taken of when there is momentum.
        weight_decay: λ ≥ 0.
        max_scale: cap on lr/‖g‖, in (0, inf].
        maximize: ascend instead of descend.
        foreach, fused: which implementation: ``foreach`` works on lists of tensors, ``fused`` in one kernel where
            torch has one that is right for device and dtype (else foreach); ``foreach=False`` is the readable loop.
            Default: the quickest.
        capturable: take no decision on the host, so that a step can be captured (accelerator graphs).

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: ``step`` met a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 0.1,
        *,
        momentum: float = 0.0,
        normalize: Literal["gradient", "momentum"] = "gradient",
        weight_decay: float = 0.0,
        max_scale: float = inf,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        options = (lr, momentum, normalize, weight_decay, max_scale, maximize, foreach, fused, capturable)
        defaults = dict(zip(_OPTIONS, options, strict=True))
        _check(defaults)
        super().__init__(params, defaults)
        self._last_norm = torch.tensor(torch.nan)
        self._skipped = torch.zeros((), dtype=torch.int64)

    @property
    def last_norm(self) -> Tensor:
        """Global norm that the last step divided by: ‖g + λw‖, or ‖m‖ for ``normalize="momentum"``.

        0-d tensor on the gradients' device (nan before the first step); only reading it on the host synchronizes.
        """
        return self._last_norm

    @property
    def skipped_steps(self) -> int:
        """Steps that changed nothing because the norm was zero or not finite. Reading it synchronizes."""
        return int(self._skipped)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, as in ``torch.optim``; its options are checked like the constructor's."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; ``closure``, if given, re-evaluates the model and returns the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = [part for group in self.param_groups for part in self._parts(group)]
        if not parts:
            return loss

        norm = norm_of_lists(part.vectors for part in parts)
        skip = ~((norm > 0) & (norm < inf))
        self._last_norm = norm
        self._skipped = self._skipped.to(norm.device).add_(skip)
        decide_here = self._host_may_read(norm)
        if decide_here and skip:
            return loss
        for part in parts:
            part.update(norm, None if decide_here else skip)
        return loss

    def _parts(self, group: dict[str, Any]) -> "list[_Part]":
        """The group's parameters that have a gradient, by device and dtype."""
        kinds = by_kind(p for p in group["params"] if p.grad is not None)
        return [self._part(group, params) for params in kinds.values()]

    def _part(self, group: dict[str, Any], params: list[Tensor]) -> "_Part":
        grads = [cast(Tensor, p.grad) for p in params]
        for grad in grads:
            if grad.layout is not torch.strided:
                raise RuntimeError(
                    f"SNGD does not support sparse gradients, and a parameter of shape {tuple(grad.shape)} has one: "
                    "build its layer with sparse=False"
                )
        buffers = [self._buffer(p) for p in params] if group["momentum"] else []
        if params[0].is_complex():
            params, grads, buffers = (list(map(torch.view_as_real, tensors)) for tensors in (params, grads, buffers))
        return _Part(group, params, grads, buffers)

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if state.get("momentum_buffer") is None:  # torch's SGD saves None before its first step
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return cast(Tensor, state["momentum_buffer"])

    def _host_may_read(self, norm: Tensor) -> bool:
        compiling = torch.compiler.is_compiling()
        return norm.device.type == "cpu" and not self.defaults["capturable"] and not compiling

    def state_dict(self) -> dict[str, Any]:
        """``torch.optim``'s state dict, and ``skipped_steps``."""
        return {**super().state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned; one without ``skipped_steps`` (another optimizer's) counts from 0."""
        super().load_state_dict(state_dict)
        self._skipped = torch.tensor(state_dict.get("skipped_steps", 0), dtype=torch.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last_norm": self._last_norm, "_skipped": self._skipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # options that the saved optimizer, torch's SGD perhaps, did not know
            for name in _OPTIONS:
                group.setdefault(name, self.defaults[name])


def _check(options: dict[str, Any]) -> None:
    lr, momentum, decay, cap = (options[k] for k in ("lr", "momentum", "weight_decay", "max_scale"))
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a number or a one-element tensor, got a tensor of shape {tuple(lr.shape)}")
    if not isinstance(lr, Tensor) and not (lr >= 0 and isfinite(lr)):
        raise ValueError(f"lr must be finite and at least 0, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    if options["normalize"] not in ("gradient", "momentum"):
        raise ValueError(f"normalize must be 'gradient' or 'momentum', got {options['normalize']!r}")
    if not (decay >= 0 and isfinite(decay)):
        raise ValueError(f"weight_decay must be finite and at least 0, got {decay}")
    if not cap > 0:
        raise ValueError(f"max_scale must be greater than 0 (inf: no cap), got {cap}")
    if options["foreach"] and options["fused"]:
        raise ValueError("foreach and fused cannot both be True: choose one")


class _Part:
    """Parameters of one group, device and dtype during one step.

    ``vectors`` are the v that the global norm is taken of: d = g + λw, or for ``normalize="momentum"`` the new
    momentum m = βm + (1−β)d. ``update`` then applies w ← w − α c v with c = min{1/‖v‖, max_scale/α}.
    """

    def __init__(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> None:
        self.group, self.params, self.buffers = group, params, buffers
        loop = group["foreach"] is False and not group["fused"]
        directions = _single_tensor_directions if loop else _foreach_directions
        self.vectors = directions(
            params,
            grads,
            buffers if group["normalize"] == "momentum" else [],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
        )

    def update(self, norm: Tensor, skip: Tensor | None) -> None:
        group, device = self.group, self.params[0].device
        _implementation(group, self.params[0])(
            self.params,
            self.vectors,
            self.buffers,
            norm=norm.to(device, non_blocking=True),
            skip=None if skip is None else skip.to(device, non_blocking=True),
            lr=_number(group["lr"]),
            momentum=group["momentum"],
            normalize=group["normalize"],
            max_scale=group["max_scale"],
        )


def _implementation(group: dict[str, Any], param: Tensor) -> Callable[..., None]:
    foreach, fused = group["foreach"], group["fused"]
    if foreach is False and not fused:
        return _single_tensor_sngd
    if foreach or fused is False or not _fused_is_right(param, group):
        return _foreach_sngd
    if param.device.type == "cpu" and not (fused or group["momentum"]):
        return _foreach_sngd  # a single list addition there, and quicker than the kernel
    return _fused_sngd


def _fused_is_right(param: Tensor, group: dict[str, Any]) -> bool:
    wide = param.dtype in (torch.float32, torch.float64)
    if param.device.type == "cpu":
        return wide  # torch 2.13's kernel skips whole SIMD blocks of float16 and bfloat16
    if param.device.type == "cuda":  # its tensor lr is float32: too coarse for float64 weights
        before_rounding = not (group["momentum"] and group["normalize"] == "gradient")
        return param.dtype == torch.float32 or (param.dtype != torch.float64 and before_rounding)
    return False


def _number(lr: Number) -> Number:
    """A tensor lr on the CPU as a float (free to read); one on an accelerator stays there."""
    on_host = isinstance(lr, Tensor) and lr.device.type == "cpu" and not torch.compiler.is_compiling()
    return float(lr) if on_host else lr


def _coefficient(norm: Tensor, lr: Number, max_scale: float) -> Tensor:
    """c = min{1/‖v‖, max_scale/α}, so that a step is w ← w − α c v."""
    c = norm.reciprocal()
    if max_scale == inf:
        return c
    cap = max_scale / lr if isinstance(lr, Tensor) or lr > 0 else inf
    return c.clamp(max=cap)


def _single_tensor_directions(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    *,
    momentum: float,
    weight_decay: float,
    maximize: bool,
) -> list[Tensor]:
    vectors = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        v = -grad if maximize else grad
        if weight_decay:
            v = v.add(param, alpha=weight_decay)  # one rounding, which bfloat16 feels
        if buffers:
            v = buffers[i].lerp(v, 1 - momentum)
        vectors.append(v)
    return vectors


def _single_tensor_sngd(
    params: list[Tensor],
    vectors: list[Tensor],
    buffers: list[Tensor],
    *,
    norm: Tensor,
    skip: Tensor | None,
    lr: Number,
    momentum: float,
    normalize: str,
    max_scale: float,
) -> None:
    """The truth, one tensor at a time; the other implementations are held equal to it by tests."""
    c = _coefficient(norm, lr, max_scale)
    for i, (param, v) in enumerate(zip(params, vectors, strict=True)):
        u = c * v.to(torch.promote_types(v.dtype, torch.float32))
        if buffers and normalize == "gradient":
            u = momentum * buffers[i] + u
        if buffers:
            new_buffer = u if normalize == "gradient" else v
            buffers[i].copy_(_unless(skip, buffers[i], new_buffer))
        param.copy_(_unless(skip, param, param - lr * u))


def _unless(skip: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    return new if skip is None else torch.where(skip, old, new)


def _foreach_directions(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    *,
    momentum: float,
    weight_decay: float,
    maximize: bool,
) -> list[Tensor]:
    vectors = list(torch._foreach_neg(grads)) if maximize else grads
    if weight_decay:
        vectors = list(torch._foreach_add(vectors, params, alpha=weight_decay))
    if buffers:
        vectors = list(torch._foreach_lerp(buffers, vectors, 1 - momentum))
    return vectors


def _foreach_sngd(
    params: list[Tensor],
    vectors: list[Tensor],
    buffers: list[Tensor],
    *,
    norm: Tensor,
    skip: Tensor | None,
    lr: Number,
    momentum: float,
    normalize: str,
    max_scale: float,
) -> None:
    c = _coefficient(norm, lr, max_scale)
    wide = torch.promote_types(params[0].dtype, torch.float32)
    if not buffers and skip is None and c.device.type == "cpu" and params[0].dtype == wide:
        torch._foreach_add_(params, vectors, alpha=-float(lr * c))  # one pass over memory instead of three
        return
    us = torch._foreach_mul([v.to(wide) for v in vectors], c.to(wide))
    if buffers and normalize == "gradient":
        torch._foreach_add_(us, buffers, alpha=momentum)
    if buffers:
        news = us if normalize == "gradient" else vectors
        torch._foreach_copy_(buffers, [_unless(skip, b, n) for b, n in zip(buffers, news, strict=True)])
    torch._foreach_mul_(us, lr)
    if skip is not None:
        for u in us:  # 0·nan is nan, so a factor of zero would not do
            u.masked_fill_(skip, 0.0)
    torch._foreach_sub_(params, us)


def _fused_sngd(
    params: list[Tensor],
    vectors: list[Tensor],
    buffers: list[Tensor],
    *,
    norm: Tensor,
    skip: Tensor | None,
    lr: Number,
    momentum: float,
    normalize: str,
    max_scale: float,
) -> None:
    c = _coefficient(norm, lr, max_scale)
    heavy_ball = bool(buffers) and normalize == "gradient"
    if heavy_ball:
        scaled, rate = list(torch._foreach_mul(vectors, c.to(params[0].dtype))), lr
    else:
        scaled, rate = vectors, lr * c
    if isinstance(rate, Tensor):  # the CPU's kernel reads a float, CUDA's a float32 on the device
        rate = float(rate) if rate.device.type == "cpu" else rate.float()
    torch._fused_sgd_(
        params,
        scaled,
        buffers if heavy_ball else [],
        weight_decay=0.0,
        momentum=momentum if heavy_ball else 0.0,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        found_inf=None if skip is None else skip.float(),
    )
    if buffers and not heavy_ball:
        torch._foreach_copy_(buffers, [_unless(skip, b, v) for b, v in zip(buffers, vectors, strict=True)])
