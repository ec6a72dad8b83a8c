"""The data of one step: parameters of one device, dtype and sharding, and the vectors along which they move."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import frexp, inf
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sngd.norms.global_norm import (
    Unmade,
    at_least_float32,
    host_may_read,
    is_long,
    ldexp,
    times_power_of_two,
)
from sngd.optim.kahan import foreach_kahan_sub_, unless
from sngd.optim.options import Number, averages, coupled_decay
from sngd.optim.pieces import cut_flat, in_pieces, long_ones
from sngd.sharding import Spread

LEAST_FACTOR = 1e-30  # α c; with a smaller one, float32 would round products with vectors more than the vectors


class Norms(NamedTuple):
    """The norms of one step's vectors v.

    Attributes:
        dual: ‖v‖* · 2^−exponent, the dual norm of the whole: the l2 ball's norm plus the dual norms of the others.
        exponent: 0, unless numbers would leave their dtype's range.
        l2: the norm of the l2 ball's vectors, scaled as they are; the tensor ``dual`` itself if there is no other
            ball.
    """

    dual: Tensor
    exponent: int
    l2: Tensor


class Part:
    """Parameters of one group, device, dtype and sharding during one step; for DTensors, this rank's part.

    ``vectors`` are the v of which the global norm is taken: d = g + λw, or for ``normalize="momentum"`` the new
    momentum m = βm + (1−β)d. ``aim`` computes them, when they are first asked for. The step is w ← w − α c v with
    c = min{1/‖v‖, max_scale/α}.

    With ``by_pieces``, long vectors are not kept between norm and step, which would write them to memory and read them
    again: pieces of them are made for the norm (``measured``), and once more for the step (``steps``).

    Squares of very small or large numbers leave float32's range. ``scale_ingredients`` and ``scale_vectors`` avoid
    this: after them ``vectors`` are v · 2^−exponent, in float32 or wider.
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
        directions: Callable[..., list[Tensor]],
    ) -> None:
        self.group, self.params, self.grads, self.buffers, self.dropped = group, params, grads, buffers, dropped
        self.spread, self.directions = spread, directions
        self._vectors: list[Tensor] | None = None
        self.by_pieces = False
        self.exponent = 0

    @property
    def vectors(self) -> list[Tensor]:
        if self._vectors is None:
            self.aim(self.params, self.grads, self.old_averages)
        return cast(list[Tensor], self._vectors)

    @vectors.setter
    def vectors(self, vectors: list[Tensor]) -> None:
        self._vectors, self.by_pieces = vectors, False

    @property
    def dtype(self) -> torch.dtype:
        """The vectors' dtype."""
        return (self.grads if self.by_pieces else self.vectors)[0].dtype

    @property
    def old_averages(self) -> list[Tensor]:
        """The running means m of ``normalize="momentum"`` before this step; empty otherwise."""
        return self.buffers if averages(self.group) else []

    @property
    def needs_room(self) -> bool:
        """Whether the step may compute more tensors on the way, as long as the weights if these are not cut."""
        if self.buffers:
            return True
        dtype = self.params[0].dtype
        in_batches = self.dropped and self.group["foreach"] is not False  # by ``kahan_add_``
        return dtype != at_least_float32(dtype) and not in_batches

    @property
    def divides(self) -> bool:
        """Whether ``steps`` give divisors beside the vectors, by which an implementation divides."""
        return False

    def aim(self, params: list[Tensor], grads: list[Tensor], old_averages: list[Tensor]) -> None:
        """Compute the vectors, from the part's own tensors or from multiples of them."""
        self.vectors = self._made(params, grads, old_averages)

    def _made(self, params: list[Tensor], grads: list[Tensor], old_averages: Sequence[Tensor] = ()) -> list[Tensor]:
        return vectors_of(self.directions, self.group, params, grads, old_averages)

    def may_take_pieces(self) -> bool:
        """Whether vectors are not the gradients themselves, and some are long enough to be made in pieces."""
        if not (self.old_averages or coupled_decay(self.group) or self.group["maximize"]):
            return False
        if not long_ones([self.params, self.grads]):
            return False
        return self.is_of_one_dtype()

    def is_of_one_dtype(self) -> bool:
        return len({t.dtype for tensors in (self.params, self.grads, self.old_averages) for t in tensors}) == 1

    def measured(self) -> list[Tensor | Unmade]:
        """The vectors, for their norm; if they are made in pieces, then long ones as what makes them."""
        if not self.by_pieces:
            return [*self.vectors]
        lists = [self.params, self.grads, *([self.old_averages] if self.old_averages else [])]
        long = {i for i in long_ones(lists) if is_long(self.grads[i].numel(), self.grads[i].itemsize)}
        short = [i for i in range(len(self.params)) if i not in long]
        found: list[Tensor | Unmade] = list(self.grads)
        made = self._made(*[[ts[i] for i in short] for ts in lists]) if short else []  # kernels refuse empty lists
        for i, vector in zip(short, made, strict=True):
            found[i] = vector
        for i in long:
            found[i] = Unmade(self.grads[i], partial(self._made_of, [ts[i] for ts in lists]))
        return found

    def _made_of(self, tensors: list[Tensor]) -> Iterator[Tensor]:
        """The vector for one parameter's weights, gradient and average, as flat pieces."""
        for pieces in zip(*map(cut_flat, tensors), strict=True):
            yield from self._made(*[[piece] for piece in pieces])

    def ingredients(self) -> list[Tensor]:
        """The tensors that the vectors are computed from. If no entry is larger than 1, no sum or mean overflows."""
        decay = coupled_decay(self.group)
        decayed = [decay * w for w in times_power_of_two(self.params, 0)] if decay else []
        return [*self.grads, *self.old_averages, *decayed]

    def scale_ingredients(self, exponent: int) -> None:
        """Compute the vectors again, from their ingredients times 2^exponent."""
        made_of = self.params, self.grads, self.old_averages
        self.aim(*[times_power_of_two(tensors, exponent) for tensors in made_of])
        self.exponent -= exponent

    def scale_vectors(self, exponent: int) -> None:
        """Multiply the vectors by 2^exponent."""
        self.vectors = times_power_of_two(self.vectors, exponent)
        self.exponent -= exponent

    def new_averages(self) -> list[Tensor]:
        """The values that the buffers get for ``normalize="momentum"``."""
        if not (self.old_averages and self.exponent):
            return self.vectors
        most = torch.finfo(self.buffers[0].dtype).max  # g + λw may be larger, and a buffer of inf never recovers
        return [v.clamp(-most, most) for v in times_power_of_two(self.vectors, self.exponent)]

    def arguments(self, norms: Norms, skip: Tensor | None) -> dict[str, Any]:
        """The arguments for an implementation of the step."""
        group, device = self.group, self.params[0].device
        later = device.type != "cpu"  # on the CPU a non-blocking copy could be read before it has arrived
        lr = _number(group["lr"], device)
        vectors, c = self.direction(norms, lr)
        return {
            "params": self.params,
            "vectors": vectors,
            "buffers": self.buffers,
            "c": c,
            "skip": None if skip is None else skip.to(device, non_blocking=later),
            "lr": lr,
            "momentum": group["momentum"],
            "normalize": group["normalize"],
            "new_averages": [] if self.by_pieces else self.new_averages(),
            **({"dropped": self.dropped} if self.dropped else {}),
        }

    def steps(self, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The arguments for an implementation of the step, for one piece of the tensors after another."""
        if not self.by_pieces:
            yield from in_pieces(arguments)
            return
        for piece in in_pieces(arguments | {"grads": self.grads}):
            grads, averages_ = piece.pop("grads"), piece["buffers"] if self.old_averages else []
            vectors = self._made(piece["params"], grads, averages_)
            yield piece | {"vectors": vectors, "new_averages": vectors}

    def direction(self, norms: Norms, lr: Number) -> tuple[list[Tensor], Tensor]:
        """Tensors and a factor c whose product is the normalized direction."""
        device, cap = self.params[0].device, self.group["max_scale"]
        norm = norms.l2.to(device, non_blocking=device.type != "cpu")
        alone = norms.l2 is norms.dual  # else there are other balls, of which the cap takes account
        share = None if alone else share_of(norms, lr, cap, device)
        c = coefficient(norm, lr, cap, self.exponent) if share is None else share * _reciprocal(norm)
        if host_may_read(norm) and float(lr) * c.item() <= LEAST_FACTOR and 0 < norm.item() < inf:
            exponent = frexp(norm.item())[1]  # float32 would round α c: scale the vectors by a power of two first
            self.scale_vectors(-exponent)
            norm = norm * 2.0**-exponent
            c = coefficient(norm, lr, cap, self.exponent) if share is None else share * _reciprocal(norm)
        return [] if self.by_pieces else self.vectors, c

    def shrink(self, skip: Tensor | None) -> None:
        """Decoupled weight decay, w ← (1 − αλ)w, unless ``skip``."""
        device = self.params[0].device
        if not self.group["decoupled_weight_decay"] or not self.group["weight_decay"]:
            return
        share = _number(self.group["lr"], device) * self.group["weight_decay"]
        skip = None if skip is None else skip.to(device, non_blocking=device.type != "cpu")
        if self.dropped:
            steps = [share * w for w in torch._foreach_add(times_power_of_two(self.params, 0), self.dropped)]
            foreach_kahan_sub_(self.params, steps, self.dropped, skip)
            return
        wide = times_power_of_two(self.params, 0)  # narrow weights would round the factor
        if skip is None and not isinstance(share, Tensor) and wide[0] is self.params[0]:
            torch._foreach_mul_(self.params, 1 - share)
            return
        torch._foreach_copy_(self.params, list(torch._foreach_mul(wide, left_by_decay(share, skip, wide[0]))))


def vectors_of(
    directions: Callable[..., list[Tensor]],
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    old_averages: Sequence[Tensor],
) -> list[Tensor]:
    """The vectors v for weights, gradients and running means of a group, or for pieces of them."""
    return directions(
        params,
        grads,
        list(old_averages),
        momentum=group["momentum"],
        weight_decay=coupled_decay(group),
        maximize=group["maximize"],
    )


def _number(lr: Number, device: torch.device) -> Number:
    """``lr`` as a float if reading it costs nothing; on an accelerator and in a compiled graph it stays a tensor."""
    if not isinstance(lr, Tensor):
        return lr
    if lr.device.type == "cpu" and not torch.compiler.is_compiling():
        return float(lr)
    return lr.squeeze().to(device, non_blocking=True)


def coefficient(norm: Tensor, lr: Number, max_scale: float, exponent: int) -> Tensor:
    """c · 2^exponent with c = min{1/‖v‖, max_scale/α}, for the step w ← w − α c v with vectors v · 2^−exponent.

    Args:
        norm: ‖v‖ · 2^−exponent, the norm of the scaled vectors.
    """
    c = norm.reciprocal()
    if max_scale == inf:
        return c
    if isinstance(lr, Tensor):  # where vectors are not scaled
        return c.clamp(max=max_scale / lr)
    cap = ldexp(max_scale / lr, exponent) if lr > 0 else inf
    return c.clamp(max=min(cap, torch.finfo(c.dtype).max))


def _reciprocal(norm: Tensor) -> Tensor:
    """1/norm; 0 for a norm that is 0, of a ball that stays where it is while others step."""
    return torch.where(norm > 0, 1 / norm, 0)


def share_of(norms: Norms, lr: Number, max_scale: float, device: torch.device) -> Tensor:
    """min{1, max_scale ‖v‖*/α}, the share of the length α that a capped step has."""
    dual = norms.dual.to(device, non_blocking=device.type != "cpu")
    if max_scale == inf:
        return torch.ones_like(dual)
    if isinstance(lr, Tensor):  # where vectors are not scaled
        return (dual * (max_scale / lr)).clamp(max=1)
    length = ldexp(max_scale * dual.item(), norms.exponent) if host_may_read(dual) else dual * max_scale
    return _scalar(length / lr if lr else 1.0, dual).clamp(max=1)


def left_by_decay(share: Number, skip: Tensor | None, like: Tensor) -> Tensor:
    """1 − share, by which decoupled decay multiplies the weights; 1 if ``skip``. In the dtype of ``like``."""
    left = 1 - _scalar(share, like)
    return unless(skip, torch.ones_like(left), left)


def _scalar(value: Number, like: Tensor) -> Tensor:
    """The number as a tensor of that one's dtype, on its device, for which the host does not wait."""
    if isinstance(value, Tensor):
        return value.to(like)
    return torch.full((), value, dtype=like.dtype, device=like.device)
