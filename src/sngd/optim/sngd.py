"""SNGD: stochastic normalized gradient descent. Every step has the same length."""

from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from sngd.optim.fused import fused_is_right, fused_sngd
from sngd.optim.kahan import foreach_kahan_sub_, single_tensor_kahan_sub_, unless
from sngd.optim.norm_groups import NormGroups, shown, spreads, warn_inside_backward, warn_inside_zero
from sngd.optim.norms import by_kind, norm_of_lists
from sngd.sharding import Groups, Spread, all_local, gradient, refuse_flat_shards, sharding_of

if TYPE_CHECKING:
    from sngd.optim.norm_groups import NormGroup

Number = float | Tensor

_OPTIONS = (
    "lr",
    "momentum",
    "normalize",
    "weight_decay",
    "max_scale",
    "maximize",
    "kahan_sum",
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

    Norms are summed in float32 or wider whatever the weights' dtype. But bfloat16 weights round a step shorter than
    about ‖w‖/2⁹ away (float16: 2¹²); with ``kahan_sum`` they follow steps down to about ‖w‖/2¹⁷ (float16: 2²³).

    A ``torch.amp.GradScaler`` need not unscale: its scale cancels in g/‖g‖, and is divided out where it would not
    (``weight_decay``, ``max_scale``, ``normalize="momentum"``). A step for which it found inf or nan is skipped.

    Of DTensors (``fully_shard``, ``parallelize_module``) the norm is that of the whole: a step issues one all-reduce of
    a few numbers for each mesh dimension that shards something. Buffers are sharded as the parameters are. Of plain
    tensors on other ranks (pipeline stages, experts, ``ZeroRedundancyOptimizer``) it hears only by ``norm_group``.

    Args:
        params: parameters or param groups. Every option but ``capturable`` may differ by group; each group steps
            by its own ``lr`` along its part of the one global direction.
        lr: α, the step length, ≥ 0; a 0-d tensor is allowed.
        momentum: β in [0, 1).
        normalize: which vector the norm is taken of when there is momentum.
        weight_decay: λ ≥ 0.
        max_scale: cap on lr/‖g‖, in (0, inf].
        maximize: ascend instead of descend.
        kahan_sum: for float16 and bfloat16 weights, sum up what rounding drops from each step and add it to the next
            (Kahan summation). Costs one buffer of the weights' dtype; wider weights have none.
        norm_group: ``torch.distributed`` process group whose ranks hold different plain parameters of one model, or a
            sequence of such, the outermost first, as (stages, experts). Sums of squares are added up over each by one
            all-reduce of one number, in which every rank must take part, with a gradient or without. None: none. State
            dicts and pickles leave it out; deep copies share it.
        foreach, fused: which implementation: ``foreach`` works on lists of tensors, ``fused`` in one kernel where
            torch has one that is right for device, dtype and memory layout (else foreach); ``foreach=False`` is the
            readable loop. Default: the quickest.
        capturable: take no decision on the host, so that a step can be captured (accelerator graphs). A float ``lr``
            is captured as it is; a tensor on the accelerator can change between replays.

    Raises:
        ValueError: an argument is out of its range, or ``FullyShardedDataParallel`` flattened the parameters.
        TypeError: ``norm_group`` holds something else than process groups.
        RuntimeError: ``step`` met a sparse gradient, or DTensors of which this rank cannot know the global norm.
    """

    _step_supports_amp_scaling = True  # a GradScaler leaves the gradients scaled and sets grad_scale and found_inf

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
        kahan_sum: bool = False,
        norm_group: "NormGroup" = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        options = (lr, momentum, normalize, weight_decay, max_scale, maximize, kahan_sum, foreach, fused, capturable)
        defaults = dict(zip(_OPTIONS, options, strict=True))
        _check(defaults)
        self._norm_groups = NormGroups(norm_group)
        super().__init__(params, {**defaults, "norm_group": shown(self._norm_groups.default)})
        warn_inside_zero(self._norm_groups.known())
        # a dict, because torch.compile loses assignments to an optimizer's attributes
        self._last = {"norm": torch.tensor(torch.nan), "skipped": torch.zeros((), dtype=torch.int64)}

    @property
    def last_norm(self) -> Tensor:
        """Global norm that the last step divided by: ‖g + λw‖, or ‖m‖ for ``normalize="momentum"``; without loss scale.

        0-d tensor on the gradients' device (nan before the first step); only reading it on the host synchronizes.
        """
        return self._last["norm"]

    @property
    def skipped_steps(self) -> int:
        """Steps that changed nothing because the norm was zero or not finite. Reading it synchronizes."""
        return int(self._last["skipped"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, as in ``torch.optim``; its options are checked like the constructor's."""
        _check({**self.defaults, **param_group})
        groups = self._norm_groups.given_to(param_group)
        if "norm_group" in param_group:  # the caller's dict keeps the process groups
            param_group = {**param_group, "norm_group": shown(groups)}
        super().add_param_group(param_group)
        self._norm_groups.each.append(groups)
        refuse_flat_shards(self.param_groups[-1]["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; ``closure``, if given, re-evaluates the model and returns the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = getattr(self, "grad_scale", None)  # set by a GradScaler for the length of its step
        cancels = not any(_feels_the_scale(group) for group in self.param_groups)
        self._norm_groups.take_from(self.param_groups)
        norm_groups = self._norm_groups.known()
        warn_inside_backward(norm_groups)
        parts = [
            part
            for group, groups in zip(self.param_groups, norm_groups, strict=True)
            for part in self._parts(group, groups, None if cancels else scale)
        ]
        everywhere = spreads(self.param_groups, norm_groups)
        if not (parts or everywhere):
            return loss

        norm = norm_of_lists(((part.spread, part.vectors) for part in parts), everywhere)
        skip = ~((norm > 0) & (norm < inf))
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            skip = skip | (found_inf.to(norm.device) > 0)
        self._last["norm"] = norm / scale.to(norm.device) if scale is not None and cancels else norm
        if not all(is_zero(group["lr"]) for group in self.param_groups):  # as when a checkpoint only wants the state
            self._last["skipped"] = self._last["skipped"].to(norm.device).add_(skip)
        decide_here = self._host_may_read(norm)
        if decide_here and skip:
            return loss
        for part in parts:
            part.update(norm, None if decide_here else skip)
        return loss

    def _parts(self, group: dict[str, Any], groups: Groups, scale: Tensor | None) -> "list[_Part]":
        """The group's parameters that have a gradient, by device and dtype."""
        kinds = by_kind(p for p in group["params"] if p.grad is not None)
        return [self._part(group, groups, params, scale) for params in kinds.values()]

    def _part(self, group: dict[str, Any], groups: Groups, params: list[Tensor], scale: Tensor | None) -> "_Part":
        sharding = sharding_of(params[0])
        grads = [cast(Tensor, p.grad) for p in params] if sharding is None else [gradient(p) for p in params]
        for grad in grads:
            if grad.layout is not torch.strided:
                raise RuntimeError(
                    f"SNGD does not support sparse gradients, and a parameter of shape {tuple(grad.shape)} has one: "
                    "build its layer with sparse=False"
                )
        buffers = [self._buffer(p, "momentum_buffer") for p in params] if group["momentum"] else []
        narrow = params[0].dtype != _at_least_float32(params[0].dtype)
        dropped = [self._buffer(p, "kahan_buffer") for p in params] if group["kahan_sum"] and narrow else []
        lists = [params, grads, buffers, dropped]
        if sharding is not None:
            lists = [all_local(tensors) for tensors in lists]
        if params[0].is_complex():
            lists = [list(map(torch.view_as_real, tensors)) for tensors in lists]
        return _Part(group, *lists, spread=(sharding, groups), scale=scale)

    def _buffer(self, param: Tensor, name: str) -> Tensor:
        state = self.state[param]
        if state.get(name) is None:  # torch's SGD saves None before its first step
            state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return cast(Tensor, state[name])

    def _host_may_read(self, norm: Tensor) -> bool:
        compiling = torch.compiler.is_compiling()
        return norm.device.type == "cpu" and not self.defaults["capturable"] and not compiling

    def state_dict(self) -> dict[str, Any]:
        """``torch.optim``'s state dict, and ``skipped_steps``."""
        self._norm_groups.take_from(self.param_groups)
        return {**super().state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned; one without ``skipped_steps`` (another optimizer's) counts from 0."""
        self._norm_groups.take_from(self.param_groups)
        super().load_state_dict(state_dict)
        self._last["skipped"].fill_(state_dict.get("skipped_steps", 0))

    def __getstate__(self) -> dict[str, Any]:
        self._norm_groups.take_from(self.param_groups)
        return {**super().__getstate__(), "_last": self._last, "_norm_groups": self._norm_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # options that the saved optimizer, torch's SGD perhaps, did not know
            for name in _OPTIONS:
                group.setdefault(name, self.defaults[name])
        self._norm_groups.show_in(self.param_groups)


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


def _feels_the_scale(group: dict[str, Any]) -> bool:
    """Whether gradients times a constant give another step."""
    averages = group["momentum"] and group["normalize"] == "momentum"
    return bool(averages or group["weight_decay"] or group["max_scale"] < inf)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Part:
    """Parameters of one group, device, dtype and sharding during one step; of DTensors what is here.

    ``vectors`` are the v that the global norm is taken of: d = g + λw, or for ``normalize="momentum"`` the new
    momentum m = βm + (1−β)d. ``update`` then applies w ← w − α c v with c = min{1/‖v‖, max_scale/α}.
    """

    def __init__(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor],
        dropped: list[Tensor],
        *,
        spread: Spread,
        scale: Tensor | None,
    ) -> None:
        self.group, self.params, self.buffers, self.dropped = group, params, buffers, dropped
        self.spread = spread
        if scale is not None:
            grads = _unscaled(grads, scale)
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
        later = device.type != "cpu"  # the CPU would read the copy before it is there
        lr = _number(group["lr"], device)
        _implementation(self)(
            self.params,
            self.vectors,
            self.buffers,
            c=_coefficient(norm.to(device, non_blocking=later), lr, group["max_scale"]),
            skip=None if skip is None else skip.to(device, non_blocking=later),
            lr=lr,
            momentum=group["momentum"],
            normalize=group["normalize"],
            **({"dropped": self.dropped} if self.dropped else {}),
        )


def _unscaled(grads: list[Tensor], scale: Tensor) -> list[Tensor]:
    """The gradients that the loss scale was to save: in float32, for float16 would lose them again."""
    wide = _at_least_float32(grads[0].dtype)
    return list(torch._foreach_div([g.to(wide) for g in grads], scale.to(grads[0].device, wide)))


def _implementation(part: _Part) -> Callable[..., None]:
    foreach, fused, momentum = (part.group[k] for k in ("foreach", "fused", "momentum"))
    if foreach is False and not fused:
        return _single_tensor_sngd
    if foreach or fused is False or part.dropped:
        return _foreach_sngd
    if part.params[0].device.type == "cpu" and not (fused or momentum):
        return _foreach_sngd  # a single list addition there, and quicker than the kernel
    kept = part.buffers if part.group["normalize"] == "gradient" else []
    return fused_sngd if fused_is_right(part.params, part.vectors, kept) else _foreach_sngd


def _number(lr: Number, device: torch.device) -> Number:
    """A tensor lr on the CPU as a float (free to read); on an accelerator and in a compiled graph it stays a tensor."""
    if not isinstance(lr, Tensor):
        return lr
    if lr.device.type == "cpu" and not torch.compiler.is_compiling():
        return float(lr)
    return lr.squeeze().to(device, non_blocking=True)


def is_zero(lr: Number) -> bool:
    """Whether it is 0 as far as the host knows without asking."""
    on_host = not isinstance(lr, Tensor) or (lr.device.type == "cpu" and not torch.compiler.is_compiling())
    return on_host and float(lr) == 0


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
            v = buffers[i].to(v.dtype).lerp(v, 1 - momentum)
        vectors.append(v)
    return vectors


def _single_tensor_sngd(
    params: list[Tensor],
    vectors: list[Tensor],
    buffers: list[Tensor],
    *,
    c: Tensor,
    skip: Tensor | None,
    lr: Number,
    momentum: float,
    normalize: str,
    dropped: Sequence[Tensor] = (),
) -> None:
    """The truth, one tensor at a time; the other implementations are held equal to it by tests."""
    for i, (param, v) in enumerate(zip(params, vectors, strict=True)):
        u = c * v.to(_at_least_float32(v.dtype))
        if buffers and normalize == "gradient":
            u = momentum * buffers[i] + u
        if buffers:
            new_buffer = u if normalize == "gradient" else v
            buffers[i].copy_(unless(skip, buffers[i], new_buffer))
        if dropped:
            single_tensor_kahan_sub_(param, lr * u, dropped[i], skip)
        else:
            param.copy_(unless(skip, param, param - lr * u))


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
        old = [b.to(v.dtype) for b, v in zip(buffers, vectors, strict=True)]
        vectors = list(torch._foreach_lerp(old, vectors, 1 - momentum))
    return vectors


def _foreach_sngd(
    params: list[Tensor],
    vectors: list[Tensor],
    buffers: list[Tensor],
    *,
    c: Tensor,
    skip: Tensor | None,
    lr: Number,
    momentum: float,
    normalize: str,
    dropped: Sequence[Tensor] = (),
) -> None:
    wide = _at_least_float32(params[0].dtype)
    if not buffers and skip is None and c.device.type == "cpu" and params[0].dtype == wide:
        torch._foreach_add_(params, vectors, alpha=-float(lr * c))  # one pass over memory instead of three
        return
    us = list(torch._foreach_mul([v.to(wide) for v in vectors], c.to(wide)))
    if buffers and normalize == "gradient":
        torch._foreach_add_(us, buffers, alpha=momentum)
    if buffers:
        news = us if normalize == "gradient" else vectors
        torch._foreach_copy_(buffers, [unless(skip, b, n) for b, n in zip(buffers, news, strict=True)])
    torch._foreach_mul_(us, lr)
    if dropped:
        foreach_kahan_sub_(params, us, list(dropped), skip)
        return
    if skip is not None:
        for u in us:  # 0·nan is nan, so a factor of zero would not do
            u.masked_fill_(skip, 0.0)
    torch._foreach_sub_(params, us)
