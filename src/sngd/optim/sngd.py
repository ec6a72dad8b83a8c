"""SNGD: stochastic normalized gradient descent, in any norm. Every step has the same length."""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from math import inf
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sngd.norms import L2, Norm, find_norm, spelled
from sngd.norms.global_norm import at_least_float32, by_kind, host_may_read, ldexp
from sngd.optim.ball import BallPart
from sngd.optim.bare import bare_step
from sngd.optim.clipped import is_watched, warn_if_clipped
from sngd.optim.fused import fused_is_right, fused_sngd
from sngd.optim.kahan import foreach_kahan_sub_, kahan_add_, single_tensor_kahan_sub_, unless
from sngd.optim.norm_groups import NormGroups, shown, spreads, warn_inside_backward, warn_inside_zero
from sngd.optim.options import (
    BUFFERS,
    Number,
    check_buffers,
    check_lrs,
    check_options,
    check_saved,
    check_shapes,
    feels_the_scale,
    is_zero,
)
from sngd.optim.part import Part
from sngd.optim.usual import in_one_dtype, shapes_if_usual, with_gradients
from sngd.optim.whole_norm import Everywhere, is_no_direction, norms_of
from sngd.sharding import (
    Groups,
    all_local,
    are_plain,
    gradient,
    may_have_gradients_elsewhere,
    refuse_flat_shards,
    sharding_of,
)

if TYPE_CHECKING:
    from sngd.optim.norm_groups import NormGroup

_DIVIDED = 1e-15, 1e15  # α c; its products with vectors of such lengths neither lose digits nor overflow


class SNGD(Optimizer):
    r"""Stochastic normalized gradient descent (Zhao, Xie and Li 2021, Algorithm 1).

        w ← w − α g/‖g‖

    with one *global* norm over the gradients of all parameters of all groups. So a step has length exactly ``lr``,
    whatever the size of the gradient: there is no clipping threshold to choose, a large gradient does not throw the
    weights far, and a small one near a saddle does not make steps shorter.

        >>> import torch, sngd
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = sngd.SNGD(model.parameters(), lr=0.1)
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()

    In other norms than the Euclidean one (``norm``, by param group) the step is w ← w − α unit(g). unit(g) is the point
    of the norm's unit ball that lies farthest along g; for the Euclidean norm it is g/‖g‖. See ``sngd.norms.Norm`` and
    ``docs/norms.md``. All tensors of all "l2" groups are one ball. Every tensor of another group is a ball of its own,
    in which it takes a step of length ``lr``. The dual norm ‖g‖\* of the whole is the l2 ball's ‖g‖ plus
    ⟨g_i, unit(g_i)⟩ for every other tensor i. What follows is written for l2. In other norms unit(g) stands for g/‖g‖.

    Weight decay λ has two forms:

    * coupled, as in ``torch.optim.SGD``: g stands for g + λw throughout. The decay is part of what is normalized, so it
      turns the direction and the step keeps its length;
    * decoupled, as in AdamW (``decoupled_weight_decay=True``): w ← (1 − αλ)w before the step, whatever the gradient.

    With momentum β:

    * ``normalize="gradient"`` (SNGM, arXiv 2007.13985): u ← βu + g/‖g‖, w ← w − αu;
    * ``normalize="momentum"`` (Cutkosky and Mehta 2020): m ← βm + (1−β)g, w ← w − α m/‖m‖.

    ``max_scale`` is β of the paper's eq. 5, w ← w − min{α/‖g‖, max_scale} g. The step is normalized while
    ‖g‖ > α/max_scale, and a plain gradient step below. In other norms a step has length min{α, max_scale ‖g‖\*}.

    If the norm is zero or not finite, weights and buffers do not change and ``skipped_steps`` counts the step. Neither
    this check nor the norm makes the host wait for an accelerator.

    On the CPU every finite gradient that is not zero takes its step, even if its entries are subnormal numbers or the
    largest ones: if squares would leave the dtype's range, g is first multiplied by a power of two. This is the same
    for all tensors, so one whose entries are more than 1e38 times smaller than another's loses digits, or stays where
    it is. On an accelerator and in a compiled graph the host does not read the norm. There a step is skipped and
    counted if the norm lies outside about 3e-16 … 1e19 (float64: 1e-146 … 1e154).

    Norms are summed in float32 or wider, whatever the weights' dtype. But bfloat16 weights lose a step shorter than
    about ‖w‖/2⁹ to rounding (float16: 2¹²). With ``kahan_sum`` they follow steps down to about ‖w‖/2¹⁷ (float16: 2²³).

    A ``torch.amp.GradScaler`` need not unscale. Its scale cancels in g/‖g‖; with ``weight_decay``, ``max_scale`` or
    ``normalize="momentum"`` it does not cancel, and the step divides by it. A step for which the scaler found inf or
    nan is skipped.

    For DTensors (``fully_shard``, ``parallelize_module``) the norm is that of the whole tensors: a step issues one
    all-reduce of a few numbers for each mesh dimension over which something is sharded. Norms other than l2 are those
    of whole tensors too; ``layer``, ``row`` and ``col`` reduce what is split, and ``spectral`` gathers each matrix on
    one rank, so that ranks share the work (``sngd.norms.sharded``). Buffers are sharded like the parameters. Plain
    tensors on other ranks (pipeline stages, experts, ``ZeroRedundancyOptimizer``) are part of the norm only if
    ``norm_group`` names these ranks.

    Args:
        params: parameters or param groups. Every option but ``capturable`` may differ by group; each group steps
            by its own ``lr`` along its part of the one global direction.
        lr: α, the step length, ≥ 0; a 0-d tensor is allowed.
        norm: "l2", "layer", "sign", "spectral", "row" or "col", with options as in "row(table=True)", or a
            ``sngd.norms.Norm``. Other norms than "l2" take real parameters.
        momentum: β in [0, 1).
        normalize: which vector the norm is taken of when there is momentum.
        weight_decay: λ ≥ 0.
        decoupled_weight_decay: whether λ shrinks the weights by αλ of themselves, or is added to the gradient as λw.
        max_scale: cap on lr/‖g‖, in (0, inf].
        maximize: ascend instead of descend.
        kahan_sum: for float16 and bfloat16 weights, sum up what rounding drops from each step and add it to the next
            (Kahan summation). Costs one buffer of the weights' dtype; wider weights have none.
        norm_group: a ``torch.distributed`` process group whose ranks hold different plain parameters of one model, or a
            sequence of such groups, the outermost first, as (stages, experts). Sums of squares are added up over each
            group by one all-reduce of one number. Every rank must take part in it, with a gradient or without. None:
            there is no such group. State dicts and pickles leave it out; deep copies share it.
        foreach, fused: choose the implementation. ``foreach`` works on lists of tensors. ``fused`` uses one kernel if
            torch has a correct one for device, dtype and memory layout, else ``foreach``. ``foreach=False`` is the
            readable loop. Default: the quickest.
        capturable: take no decision on the host, so that accelerator graphs can capture a step. A float ``lr`` is
            captured as a constant; a tensor on the accelerator can change between replays.

    Raises:
        ValueError: an argument is out of its range, there is no such norm, or ``FullyShardedDataParallel`` flattened
            the parameters. From ``load_state_dict`` and ``step``: a buffer or gradient that does not have its
            parameter's shape or is no tensor of its kind, a state that another norm made, or a learning rate out of
            range.
        TypeError: ``norm_group`` holds something else than process groups.
        RuntimeError: ``step`` met a sparse gradient, a complex parameter in another norm than l2, or DTensors of which
            this rank cannot know the global norm.
    """

    _step_supports_amp_scaling = True  # a GradScaler leaves the gradients scaled and sets grad_scale and found_inf

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 0.1,
        *,
        norm: str | Norm = "l2",
        momentum: float = 0.0,
        normalize: Literal["gradient", "momentum"] = "gradient",
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        max_scale: float = inf,
        maximize: bool = False,
        kahan_sum: bool = False,
        norm_group: "NormGroup" = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "norm": spelled(find_norm(norm)),  # text, so that saved param groups can be read without code
            "momentum": momentum,
            "normalize": normalize,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "max_scale": max_scale,
            "maximize": maximize,
            "kahan_sum": kahan_sum,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
        }
        check_options(defaults)
        self._norm_groups = NormGroups(norm_group)
        super().__init__(params, {**defaults, "norm_group": shown(self._norm_groups.default)})
        warn_inside_zero(self._norm_groups.known())
        # a dict, because torch.compile loses assignments to an optimizer's attributes; on the CPU, because the default
        # device may be "meta", which holds no numbers
        self._last = {
            "norm": torch.tensor(torch.nan, device="cpu"),
            "skipped": torch.zeros((), dtype=torch.int64, device="cpu"),
        }

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``step`` as ``torch.optim.Optimizer`` does, but call it bare while no hook and no profiler is there.

        Announcing a step to a profiler takes as long as the norm of a small network.
        """
        announced = Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
            # their lengths, because a compiled graph would not see that a dict is no longer empty
            hooks = len(self._optimizer_step_pre_hooks) + len(self._optimizer_step_post_hooks)
            hooks += len(_global_optimizer_pre_hooks) + len(_global_optimizer_post_hooks)
            heard = hooks or (not torch.compiler.is_compiling() and _profiler_enabled())  # no graph can ask for it
            return (announced if heard else func)(self, *args, **kwargs)

        return step

    @property
    def last_norm(self) -> Tensor:
        """Norm that the last step divided by: ‖g + λw‖, or ‖m‖ for ``normalize="momentum"``, without loss scale.

        In other norms than l2 it is the dual norm of the whole, of the same vector.

        It is a 0-d tensor on the gradients' device, nan before the first step. Only reading it on the host waits for an
        accelerator.
        """
        return self._last["norm"]

    @property
    def skipped_steps(self) -> int:
        """Steps that changed nothing because the norm was zero or not finite. Reading it waits for an accelerator."""
        return int(self._last["skipped"])

    @property
    def skip_count(self) -> Tensor:
        """The same, as the 0-d int64 tensor in which steps count; after the first one it is where the gradients are."""
        return self._last["skipped"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, as in ``torch.optim``; its options are checked like the constructor's."""
        check_options({**self.defaults, **param_group})
        groups = self._norm_groups.given_to(param_group)
        if "norm_group" in param_group:  # the caller's dict keeps the process groups
            param_group = {**param_group, "norm_group": shown(groups)}
        if "norm" in param_group:
            param_group = {**param_group, "norm": spelled(find_norm(param_group["norm"]))}
        super().add_param_group(param_group)
        self._norm_groups.each.append(groups)
        refuse_flat_shards(self.param_groups[-1]["params"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; ``closure``, if given, re-evaluates the model and returns the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(False):  # in half of no_grad's time
            self._take_step()
        return loss

    def _take_step(self) -> None:
        check_lrs(self.param_groups)
        scale = getattr(self, "grad_scale", None)  # set by a GradScaler for the length of its step, as is found_inf
        found_inf = getattr(self, "found_inf", None)
        self._norm_groups.take_from(self.param_groups)
        norm_groups = self._norm_groups.known()
        warn_inside_backward(norm_groups)
        if scale is found_inf is None and not any(norm_groups) and self._take_bare_step():
            return
        cancels = self._length_cancels()
        everywhere: Everywhere = {}
        parts = None if any(norm_groups) or not (cancels or scale is None) else self._usual_parts()
        if parts is None:
            parts = [
                part
                for group, groups in zip(self.param_groups, norm_groups, strict=True)
                for part in self._parts(group, groups, None if cancels else scale)
            ]
            everywhere = spreads(self.param_groups, norm_groups)
        if not (parts or everywhere):
            return

        norms = norms_of(parts, everywhere)
        skip = is_no_direction(norms.dual)
        if found_inf is not None:
            skip = skip | (found_inf.to(norms.dual.device) > 0)
        self._remember(norms.dual, norms.exponent, skip, scale if cancels else None)
        if cancels:
            warn_if_clipped(self, parts, norms)
        decide_here = host_may_read(norms.dual) and not self.defaults["capturable"]
        if decide_here and skip:
            return
        later = None if decide_here else torch.as_tensor(skip)
        for part in parts:
            if not part.params:
                continue
            part.shrink(later)
            arguments = part.arguments(norms, later)
            like = part.old_averages or part.grads  # what is made in pieces lies in memory as they do
            implementation = _implementation(part, like if part.by_pieces else arguments["vectors"])
            in_pieces = part.by_pieces or (decide_here and part.needs_room)
            for piece in part.steps(arguments) if in_pieces else (arguments,):
                implementation(**piece)

    def _length_cancels(self) -> bool:
        """Whether a step does not depend on the length of the gradient."""
        return not any(map(feels_the_scale, self.param_groups))

    def _take_bare_step(self) -> bool:
        """Take the step if it is a bare one; False if it is not, and nothing was changed."""
        if torch.compiler.is_compiling() or self.defaults["capturable"]:
            return False
        if is_watched(self) and self._length_cancels():
            return False
        taken = bare_step(self.param_groups, self.state)
        if taken is None:
            return False
        self._remember(taken.norm, 0, taken.skipped, None)
        return True

    def _remember(self, norm: Tensor, exponent: int, skip: bool | Tensor, scale: Tensor | None) -> None:
        """Store the values of ``last_norm`` and ``skipped_steps``."""
        if exponent:
            norm = torch.tensor(ldexp(norm.item(), exponent), dtype=torch.float64, device="cpu")
        self._last["norm"] = norm if scale is None else norm / scale.to(norm.device)
        if skip is False or norm.device.type == "meta":  # which holds no numbers
            return
        only_for_the_state = all(is_zero(group["lr"]) for group in self.param_groups)  # as a checkpoint's loading does
        if not only_for_the_state:
            self._last["skipped"] = self._last["skipped"].to(norm.device).add_(skip)

    def _usual_parts(self) -> list[Part] | None:
        """What ``_parts`` gives for all groups if all is usual (``shapes_if_usual``, foreach); else None.

        ``_parts`` asks many questions of each tensor, which for a small network take longer than the arithmetic. In a
        compiled graph nothing is usual.
        """
        if torch.compiler.is_compiling():
            return None
        parts = []
        for group in self.param_groups:
            if group["foreach"] is False or not are_plain(group["params"]):
                return None  # of DTensors other ranks may have gradients, also if this one has none
            params, grads = with_gradients(group["params"])
            if not params:
                continue
            if any(p.dtype != params[0].dtype for p in params):
                return None  # before there are buffers of Kahan summation for weights that need none
            buffers, dropped = self._buffers(group, params, params[0].dtype)
            if shapes_if_usual(params, grads, buffers, dropped) is None:
                return None
            grads = in_one_dtype(grads, params[0].dtype)
            kind = Part if isinstance(find_norm(group["norm"]), L2) else BallPart
            part = kind(group, params, grads, buffers, dropped, spread=(None, ()), directions=_foreach_directions)
            part.by_pieces = params[0].is_cpu and not self.defaults["capturable"] and part.may_take_pieces()
            parts.append(part)
        return parts

    def _parts(self, group: dict[str, Any], groups: Groups, scale: Tensor | None) -> "list[Part]":
        """The group's parameters that have a gradient, by device, dtype and sharding."""
        params = [p for p in group["params"] if p.grad is not None]
        if not isinstance(find_norm(group["norm"]), L2) and not are_plain(group["params"]):
            # ranks may have to exchange shards of tensors
            params = [p for p in group["params"] if p.grad is not None or may_have_gradients_elsewhere(p)]
        return [self._part(group, groups, some, scale) for some in by_kind(params).values()]

    def _part(self, group: dict[str, Any], groups: Groups, params: list[Tensor], scale: Tensor | None) -> "Part":
        kind, sharding = params, sharding_of(params[0])
        if sharding is None:
            grads = [cast(Tensor, p.grad) for p in params]
        else:
            params = [p for p in kind if p.grad is not None]
            grads = [gradient(p) for p in params]
        for grad in grads:
            if grad.layout is not torch.strided:
                raise RuntimeError(
                    f"SNGD does not support sparse gradients, and a parameter of shape {tuple(grad.shape)} has one: "
                    "build its layer with sparse=False"
                )
        grads = in_one_dtype(grads, kind[0].dtype)
        lists = [params, grads, *self._buffers(group, params, kind[0].dtype)]
        if sharding is not None:
            lists = [all_local(tensors) for tensors in lists]
        check_shapes(params, dict(zip(("weights", "gradient", *BUFFERS), lists, strict=True)), self.param_groups)
        balls = not isinstance(find_norm(group["norm"]), L2)
        if kind[0].is_complex():
            if balls:
                raise RuntimeError(
                    f"norm {group['norm']} does not support complex parameters, and one of shape "
                    f"{tuple(kind[0].shape)} is {str(kind[0].dtype).removeprefix('torch.')}: use norm l2"
                )
            lists = [[torch.view_as_real(t.resolve_conj()) for t in tensors] for tensors in lists]
        if scale is not None:
            lists[1] = _unscaled(lists[1], scale)
        loop = group["foreach"] is False and not group["fused"]
        directions = _single_tensor_directions if loop else _foreach_directions
        spread = sharding, groups
        part: Part
        if balls:
            part = BallPart(group, *lists, spread=spread, directions=directions)
            part.everywhere = kind if sharding is not None else ()
        else:
            part = Part(group, *lists, spread=spread, directions=directions)
        if params:
            part.aim(part.params, part.grads, part.old_averages)
        else:
            part.vectors = []
        return part

    def _buffers(
        self, group: dict[str, Any], params: list[Tensor], dtype: torch.dtype
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The buffers for momentum and for Kahan summation of parameters of one dtype; empty for what is not wanted."""
        kahan = group["kahan_sum"] and dtype != at_least_float32(dtype)
        wanted = (group["momentum"], "momentum_buffer"), (kahan, "kahan_buffer")
        momentum, dropped = (self._buffers_named(name, params, dtype) if want else [] for want, name in wanted)
        return momentum, dropped

    def _buffers_named(self, name: str, params: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        buffers: list[Any] = [self.state[p].get(name) for p in params]
        if are_plain(buffers) and all(b.dtype is dtype for b in buffers):
            return buffers
        return [self._buffer(p, name) for p in params]

    def _buffer(self, param: Tensor, name: str) -> Tensor:
        state = self.state[param]
        buffer = state.get(name)
        if buffer is None:  # torch's SGD saves None before its first step
            buffer = state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        elif buffer.dtype != param.dtype:  # as after model.double()
            buffer = state[name] = buffer.to(param.dtype)
        return cast(Tensor, buffer)

    def state_dict(self) -> dict[str, Any]:
        """``torch.optim``'s state dict, with norms as text and ``skipped_steps`` added."""
        self._norm_groups.take_from(self.param_groups)
        state = super().state_dict()
        groups = [{**group, "norm": str(find_norm(group["norm"]))} for group in state["param_groups"]]
        return {**state, "param_groups": groups, "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned. Another optimizer's has no ``skipped_steps``; the count is then 0.

        Norms are not loaded: they must be those of this optimizer.
        """
        self._norm_groups.take_from(self.param_groups)
        skipped = 0

        def check(_: Optimizer, adapted: dict[str, Any]) -> None:
            nonlocal skipped
            check_saved(self.param_groups, adapted)
            skipped = adapted.get("skipped_steps", 0)

        last = self.register_load_state_dict_pre_hook(check)  # the others may adapt what was saved
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
        self._last["skipped"].fill_(skipped)

    def __getstate__(self) -> dict[str, Any]:
        self._norm_groups.take_from(self.param_groups)
        return {**super().__getstate__(), "_last": self._last, "_norm_groups": self._norm_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check all of what was pickled, copied or loaded, then take it over."""
        defaults = {**state.get("defaults", {}), **getattr(self, "defaults", {})}
        own = getattr(self, "param_groups", state["param_groups"])
        for group, known in zip(state["param_groups"], own, strict=True):
            for name, value in defaults.items():  # options that the saved optimizer, torch's SGD perhaps, did not know
                group.setdefault(name, value)
            group["norm"] = spelled(
                find_norm(known.get("norm", "l2"))
            )  # a loaded state has its text, an old pickle none
            check_options(group)
        check_buffers(state["param_groups"], state["state"])
        super().__setstate__(state)
        self._norm_groups.show_in(self.param_groups)


def _implementation(part: Part, vectors: list[Tensor]) -> Callable[..., None]:
    foreach, fused, momentum = (part.group[k] for k in ("foreach", "fused", "momentum"))
    if foreach is False and not fused:
        return _single_tensor_sngd
    if foreach or fused is False or part.dropped or part.divides:
        return _foreach_sngd
    if part.params[0].device.type == "cpu" and not (fused or momentum):
        return _foreach_sngd  # on the CPU it is a single list addition, which is quicker than the kernel
    kept = part.buffers if part.group["normalize"] == "gradient" else []
    return fused_sngd if fused_is_right(part.params, vectors, kept) else _foreach_sngd


def _unscaled(grads: list[Tensor], scale: Tensor) -> list[Tensor]:
    """The gradients divided by the loss scale, in float32 or wider: float16 could not hold the small ones."""
    if not grads:
        return []
    wide = at_least_float32(grads[0].dtype)
    return list(torch._foreach_div([g.to(wide) for g in grads], scale.to(grads[0].device, wide)))


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
            v = v.add(param, alpha=weight_decay)  # rounds once instead of twice, which matters in bfloat16
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
    new_averages: list[Tensor],
    dropped: Sequence[Tensor] = (),
) -> None:
    """The step, one tensor at a time. Tests check that the other implementations compute the same."""
    for i, (param, v) in enumerate(zip(params, vectors, strict=True)):
        u = c * v.to(at_least_float32(v.dtype))
        if buffers and normalize == "gradient":
            u = momentum * buffers[i] + u
        if buffers:
            new_buffer = u if normalize == "gradient" else new_averages[i]
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
    new_averages: list[Tensor],
    dropped: Sequence[Tensor] = (),
    divisors: Sequence[Tensor] = (),
) -> None:
    wide, heavy_ball = at_least_float32(params[0].dtype), len(buffers) > 0 and normalize == "gradient"
    # inf: the step is not one multiple of the vectors, that the host knows and their dtype holds
    factor = -c.item() * float(lr) if not heavy_ball and skip is None and c.is_cpu else inf
    least, most = _DIVIDED if divisors else (0.0, torch.finfo(wide).max)
    if least <= abs(factor) <= most and (dropped or params[0].dtype == wide):
        if buffers:
            torch._foreach_copy_(buffers, new_averages)
        if dropped:
            kahan_add_(params, vectors, list(dropped), factor)
        elif divisors:
            torch._foreach_addcdiv_(params, vectors, list(divisors), value=factor)
        else:
            torch._foreach_add_(params, vectors, alpha=factor)  # one pass over memory instead of three
        return
    us = [v.to(wide) for v in vectors]
    if divisors:
        us = list(torch._foreach_div(us, list(divisors)))
    if us[0] is vectors[0]:
        us = list(torch._foreach_mul(us, c.to(wide)))
    else:
        torch._foreach_mul_(us, c.to(wide))
    if heavy_ball:
        torch._foreach_add_(us, buffers, alpha=momentum)
    if buffers:
        news = us if heavy_ball else new_averages
        torch._foreach_copy_(buffers, [unless(skip, b, n) for b, n in zip(buffers, news, strict=True)])
    torch._foreach_mul_(us, lr)
    if dropped:
        foreach_kahan_sub_(params, us, list(dropped), skip)
        return
    if skip is not None:
        for u in us:  # 0·nan is nan, so a factor of zero would not do
            u.masked_fill_(skip, 0.0)
    torch._foreach_sub_(params, us)
