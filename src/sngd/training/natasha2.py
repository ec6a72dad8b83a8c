r"""Natasha2: variance-reduced descent that looks for negative curvature before each epoch.

Z. Allen-Zhu, "Natasha 2: Faster Non-Convex Optimization Than SGD", NeurIPS 2018 (arXiv 1708.08694). From a point y:

1. **Oja's search.** From a random unit vector, w ← (I + ηA)w / ‖(I + ηA)w‖ with A = ½(I − ∇²f_I(y)/L) on a fresh
   mini-batch I each time: w turns towards the eigenvector v of the most negative curvature.
2. **If vᵀ∇²f(y)v ≤ −δ/2**, y ← y ± (δ/L₂)v with a random sign, and back to 1.
3. **Else one full epoch of Natasha1.5** on F(x) = f(x) + L max{0, ‖x − y‖ − δ/L₂}², which holds x where ∇²f is not far
   from ∇²f(y). With the anchor x̃ = y and its gradient μ over B samples, each of p sub-epochs starts at x_0 = x̂, repeats

       x_{t+1} = x_t − α(∇F_I(x_t) − ∇F_I(x̃) + μ + 2σ(x_t − x̂))      for m steps,

   and hands on a random one of x_0 … x_{m−1} as the next x̂. The last x̂ is the next y.

**Constants.** The paper gives orders, not values: B = Θ(1/ε²), p = Θ((σ/(εL))^{2/3}) and m = B/p for accuracy ε and
noise variance 1, Oja's T = Θ((L/δ)² log² d) and η = Θ(1/√T). Here α, the batch sizes, p, δ, L₂, T and η are arguments
with practical defaults, and three more follow from these unless given:

* L = 1/(2α): a gradient step on the penalty alone then ends exactly on the sphere ‖x − y‖ = δ/L₂;
* σ = 3δ: if ∇²f(y) ⪰ −δI and L, L₂ are true Lipschitz constants, then ∇²F ⪰ −3δI everywhere, so that
  F + σ‖x − x̂‖² is strongly convex;
* m = B/(pb): the steps of whole sub-epochs use as many samples as the anchor.

To be likely to see a curvature of −δ, Oja's search needs a T of order (L/δ) log d or more; the default T sees only
curvature comparable to −L.

**What differs from the paper.**

* Mini-batches of b samples in inner steps, and in Oja's, where the paper takes single samples.
* The random x̂ is chosen before its sub-epoch. The steps after it are not made, because no result depends on them: this
  has the same distribution at half the cost. (For practice the author suggests the mean of the iterates; the analysis
  is about the random one.)
* Oja's search runs once, not log(1/probability of failure) times, and its answer is the last w. A bad w can miss
  negative curvature but not invent it, since the curvature along it is measured on an independent batch.
* That batch is also the anchor's, because a Hessian-vector product yields the gradient on the way. So the test of the
  curvature and μ share their B samples; the paper draws them independently.
* The final convex minimization of F + σ‖x − ŷ‖² about a random iterate ŷ is left out, as the author suggests for
  practice.

**Cost.** One oracle call is one ∇f(w; a); a Hessian-vector product of one sample, which is a gradient and a second
backward pass through it, counts as two. A search costs 2T oja_batch_size, measuring the curvature and the anchor 2B,
an epoch of N inner steps 2b(N − 1): at the first x_t = x̃, so the difference is zero and not evaluated. The mean of N is
p(m − 1)/2; with probability m^{−p} it is 0, and y stays. ``epoch_cost`` adds this up.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sngd.checks import count, non_negative, positive, shown
from sngd.cost import Cost, at_least_one
from sngd.estimators.estimator import Batch, Loss
from sngd.estimators.replay import Chance, at_weights, buffers_kept
from sngd.norms.global_norm import global_norm
from sngd.state import check_keys, fitted, saved_count, saved_generator, saved_tensors, trainable

# Any constant that makes the private stream differ from the global one, which has drawn the weights.
_SEED_MIX = 0x5851F42D4C957F2D


class Natasha2:
    """The whole method, one action at a time; formulas, constants and their sources are in the module's docstring.

    An action is one of Oja's iterations; or measuring the curvature along the direction found, together with what
    follows (the move along it, or the anchor and the epoch's first step); or one inner step::

        natasha = Natasha2(model, lr=0.1)
        for _ in range(actions):
            batch = draw(natasha.next_batch_size)
            natasha.step(lambda batch: loss_fn(model(batch[0]), batch[1]), batch)

    Args:
        model: its trainable parameters are moved; their ``.grad`` is not touched.
        lr: α > 0.
        batch_size: b ≥ 1, samples of an inner step.
        anchor_batch_size: B ≥ 1, samples of the anchor gradient and of the measurement of curvature.
        sub_epochs: p ≥ 1.
        period: m ≥ 2, inner steps of a whole sub-epoch; None: B/(pb), at least 2.
        delta: δ > 0; curvature below −δ/2 is followed.
        smoothness: L > 0, Lipschitz constant of ∇f; None: 1/(2α).
        hessian_lipschitz: L₂ > 0, Lipschitz constant of ∇²f; δ/L₂ is the length of a move and the radius of trust.
        sigma: σ ≥ 0, strength of the retraction to x̂; None: 3δ.
        oja_steps: T ≥ 1.
        oja_batch_size: samples of one of Oja's iterations, ≥ 1; None: ``batch_size``.
        oja_lr: η > 0.
        generator: CPU generator for Oja's starts, the signs and the lengths of sub-epochs. None: a private one, seeded
            from ``torch.initial_seed()``; it takes nothing from the global stream.

    Attributes:
        oracle_calls: ∇f(w; a) evaluated so far; a Hessian-vector product of one sample counts as two.
        curvature_steps: moves along negative curvature so far.
        iterate_weight: of every iterate in a random output; all weigh the same.
        skipped_steps: actions that found no direction; there are none.

    Raises:
        ValueError: an argument is out of its range, the generator is not on the CPU, or nothing is trainable.
    """

    iterate_weight = 1.0
    skipped_steps = 0

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        *,
        batch_size: int = 32,
        anchor_batch_size: int = 1024,
        sub_epochs: int = 4,
        period: int | None = None,
        delta: float = 0.1,
        smoothness: float | None = None,
        hessian_lipschitz: float = 0.1,
        sigma: float | None = None,
        oja_steps: int = 20,
        oja_batch_size: int | None = None,
        oja_lr: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.params, self._names = trainable(model)
        if not self.params:
            raise ValueError("model must have a parameter that requires a gradient, got none")
        self.lr = positive("lr", lr)
        self.batch_size = count("batch_size", batch_size)
        self.anchor_batch_size = count("anchor_batch_size", anchor_batch_size)
        self.sub_epochs = count("sub_epochs", sub_epochs)
        usual = _usual_period(self.batch_size, self.anchor_batch_size, self.sub_epochs)
        self.period = usual if period is None else count("period", period)
        if self.period < 2:  # of x_0 … x_{m−1} only x_0 would be left, and nothing ever moved
            raise ValueError(f"period must be at least 2, got {period}")
        self.delta = positive("delta", delta)
        self.smoothness = 1 / (2 * lr) if smoothness is None else positive("smoothness", smoothness)
        self.hessian_lipschitz = positive("hessian_lipschitz", hessian_lipschitz)
        self.sigma = 3 * delta if sigma is None else sigma
        non_negative("sigma", self.sigma)
        self.oja_steps = count("oja_steps", oja_steps)
        self.oja_batch_size = self.batch_size if oja_batch_size is None else count("oja_batch_size", oja_batch_size)
        self.oja_lr = positive("oja_lr", oja_lr)
        if generator is None:
            generator = torch.Generator().manual_seed(torch.initial_seed() ^ _SEED_MIX)
        if generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
        self.generator = generator

        self.oracle_calls = 0
        self.curvature_steps = 0
        self._search_steps = 0  # of Oja's iterations, made at this y
        self._direction: list[Tensor] | None = None  # Oja's w, once drawn
        self._epoch: _Epoch | None = None  # while in one

    @property
    def next_batch_size(self) -> int:
        """Number of samples that the next action takes."""
        if self._epoch is not None:
            return self.batch_size
        return self.oja_batch_size if self._search_steps < self.oja_steps else self.anchor_batch_size

    @property
    def next_cost(self) -> int:
        """Oracle calls of the next action; every kind of action costs two for each sample."""
        return 2 * self.next_batch_size

    def step(self, loss: Loss, batch: Batch) -> Tensor:
        """Take one action.

        Of the evaluations only those at the present weights count for BatchNorm's running statistics, and of these not
        Oja's. An inner step's two see the same dropout masks.

        Args:
            loss: maps a batch to the mean loss over it at the model's present weights, a scalar with a graph that can
                be differentiated twice.
            batch: ``next_batch_size`` samples: a tensor, or tensors in tuples, lists and dicts, whose first dimension
                counts samples; handed to ``loss`` as it is.

        Returns:
            The loss of the batch before the action, detached.

        Raises:
            ValueError: a parameter has another shape than what is kept of it.
        """
        self._fit_params()
        self.oracle_calls += 2 * len(tree_leaves(batch)[0])
        if self._epoch is not None:
            return self._inner_step(self._epoch, loss, batch)
        if self._search_steps < self.oja_steps:
            return self._search(loss, batch)
        return self._move_or_begin_epoch(loss, batch)

    def _fit_params(self) -> None:
        """The parameters may have been converted meanwhile, by ``model.double()`` for example."""
        if self._direction is not None:
            self._direction = fitted("Natasha2's direction", self._direction, self.params, self._names)
        if self._epoch is not None:
            for name in _VECTORS:
                vector = fitted(f"Natasha2's {name}", getattr(self._epoch, name), self.params, self._names)
                setattr(self._epoch, name, vector)

    def _search(self, loss: Loss, batch: Batch) -> Tensor:
        """One of Oja's iterations: w ← (I + ηA)w / ‖(I + ηA)w‖ with A = ½(I − ∇²f/L)."""
        v = self._random_direction() if self._direction is None else self._direction
        with buffers_kept(self.model):
            value, _, hv = self._gradient_and_curvature(loss, batch, v)
        turned = [x + self.oja_lr / 2 * (x - h / self.smoothness) for x, h in zip(v, hv, strict=True)]
        self._direction = _normalized(turned)
        self._search_steps += 1
        return value

    def _random_direction(self) -> list[Tensor]:
        numbers = torch.randn(sum(p.numel() for p in self.params), dtype=torch.float64, generator=self.generator)
        parts = numbers.split([p.numel() for p in self.params])
        return _normalized([x.view(p.shape).to(p.device, p.dtype) for x, p in zip(parts, self.params, strict=True)])

    def _move_or_begin_epoch(self, loss: Loss, batch: Batch) -> Tensor:
        """Measure the curvature along Oja's direction; follow it if it is negative enough, else descend."""
        assert self._direction is not None
        v, self._direction, self._search_steps = self._direction, None, 0
        value, gradient, hv = self._gradient_and_curvature(loss, batch, v)
        if _dot(v, hv).item() <= -self.delta / 2:
            self._move_along(v)
        else:
            self._begin_epoch(gradient)
        return value

    @torch.no_grad()
    def _move_along(self, v: list[Tensor]) -> None:
        """y ← y ± (δ/L₂)v"""
        sign = 2 * int(torch.randint(2, (), generator=self.generator)) - 1
        for param, x in zip(self.params, v, strict=True):
            param.add_(x, alpha=sign * self.delta / self.hessian_lipschitz)
        self.curvature_steps += 1

    @torch.no_grad()
    def _begin_epoch(self, gradient: list[Tensor]) -> None:
        """Draw where the sub-epochs end, and make the first step: there x_t = x̂ = x̃, so it goes along μ."""
        ends = torch.randint(self.period, (self.sub_epochs,), generator=self.generator).tolist()
        lengths = [end for end in ends if end > 0]
        if not lengths:  # x̂ = x_0 was drawn each time
            return
        here = _copies(self.params)
        self._epoch = _Epoch(anchor=here, gradient=gradient, start=here, lengths=lengths)
        for param, mu in zip(self.params, gradient, strict=True):
            param.sub_(mu, alpha=self.lr)
        self._count_inner_step(self._epoch)

    def _inner_step(self, epoch: "_Epoch", loss: Loss, batch: Batch) -> Tensor:
        """x ← x − α(∇f(x) − ∇f(x̃) + μ + 2σ(x − x̂) + c(x − x̃)); the last term is the penalty's gradient.

        The penalty does not depend on the sample and is zero at x̃ = y, so its part of the difference is c(x − x̃) with
        c = 2L max{0, 1 − r/‖x − y‖}, r = δ/L₂.
        """
        chance = Chance(self.params[0].device)
        value, gradient = self._gradient(loss, batch)
        with at_weights(self.params, epoch.anchor), chance.replayed(), buffers_kept(self.model):
            _, at_anchor = self._gradient(loss, batch)
        with torch.no_grad():
            distance = global_norm([p - a for p, a in zip(self.params, epoch.anchor, strict=True)])
            pull = 2 * self.smoothness * (1 - self.delta / self.hessian_lipschitz / distance).clamp(min=0)
            for p, g, a, mu, y, x_hat in zip(
                self.params, gradient, at_anchor, epoch.gradient, epoch.anchor, epoch.start, strict=True
            ):
                p.sub_(g - a + mu + 2 * self.sigma * (p - x_hat) + pull * (p - y), alpha=self.lr)
        self._count_inner_step(epoch)
        return value

    def _count_inner_step(self, epoch: "_Epoch") -> None:
        epoch.lengths[0] -= 1
        if epoch.lengths[0] > 0:
            return
        del epoch.lengths[0]
        epoch.start = _copies(self.params)
        if not epoch.lengths:
            self._epoch = None

    def _gradient(self, loss: Loss, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Loss and ∇f at the present weights."""
        value = loss(batch)
        return value.detach(), list(torch.autograd.grad(value, self.params, materialize_grads=True))

    def _gradient_and_curvature(
        self, loss: Loss, batch: Batch, v: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Loss, ∇f and ∇²f·v = ∇(∇f·v) at the present weights."""
        value = loss(batch)
        gradient = torch.autograd.grad(value, self.params, create_graph=True, materialize_grads=True)
        slope = _dot(list(gradient), v)
        if slope.requires_grad:
            hv = list(torch.autograd.grad(slope, self.params, materialize_grads=True))
        else:  # the loss is linear
            hv = [torch.zeros_like(p) for p in self.params]
        return value.detach(), [g.detach() for g in gradient], hv

    def state_dict(self) -> dict[str, Any]:
        """All that a bitwise equal continuation needs beside the model and the global generators' states.

        ``torch.load(…, weights_only=True)`` reads it back; later steps do not change it.
        """
        epoch = self._epoch
        return {
            "oracle_calls": self.oracle_calls,
            "curvature_steps": self.curvature_steps,
            "search_steps": self._search_steps,
            "direction": self._direction,
            "epoch": None if epoch is None else {**vars(epoch), "lengths": list(epoch.lengths)},
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; tensors are copied to the parameters' devices and dtypes.

        Raises:
            ValueError: an entry is missing, out of its range, or does not fit the model; nothing is changed then.
        """
        check_keys(state, "oracle_calls", "curvature_steps", "search_steps", "direction", "epoch", "generator")
        calls, moves = saved_count(state, "oracle_calls"), saved_count(state, "curvature_steps")
        searched = saved_count(state, "search_steps", 0, self.oja_steps)
        if (state["direction"] is None) != (searched == 0):
            raise ValueError(f"state_dict's direction must be there if search_steps = {searched} > 0, and only then")
        direction = saved_tensors(state, "direction", self.params, self._names) if searched else None
        epoch = None if state["epoch"] is None else self._saved_epoch(state["epoch"])
        generator = saved_generator(state, "generator")
        self.oracle_calls, self.curvature_steps, self._search_steps = calls, moves, searched
        self._direction, self._epoch = direction, epoch
        self.generator.set_state(generator)

    def _saved_epoch(self, state: Any) -> "_Epoch":
        what = "state_dict's epoch"
        check_keys(state, *_VECTORS, "lengths", what=what)
        lengths = state["lengths"]
        whole = isinstance(lengths, list) and all(type(n) is int and 0 < n < self.period for n in lengths)
        if not whole or not 0 < len(lengths) <= self.sub_epochs:
            allowed = f"1 to {self.sub_epochs} whole numbers from 1 to {self.period - 1}"
            raise ValueError(f"{what}'s lengths must be a list of {allowed}, got {shown(lengths)}")
        vectors = {name: saved_tensors(state, name, self.params, self._names, what) for name in _VECTORS}
        return _Epoch(**vectors, lengths=list(lengths))


def epoch_cost(batch_size: int, anchor_batch_size: float, sub_epochs: float, oja_steps: float) -> Cost:
    """Oracle calls of the actions of an epoch with m = B/(pb), if no negative curvature is followed before it.

    Where it is followed, as many searches and measurements come on top as there are moves, which depends on f.

    Raises:
        ValueError: one of the arguments is less than 1.
    """
    at_least_one(batch_size=batch_size, anchor_batch_size=anchor_batch_size, sub_epochs=sub_epochs, oja_steps=oja_steps)
    m = _usual_period(batch_size, anchor_batch_size, sub_epochs)
    inner_steps = sub_epochs * (m - 1) / 2 - 1 + m**-sub_epochs  # E max{0, N − 1}: the first is made with the anchor
    return Cost(2 * anchor_batch_size, 2 * batch_size, oja_steps + 1 + inner_steps)


def _usual_period(batch_size: int, anchor_batch_size: float, sub_epochs: float) -> int:
    return max(2, int(anchor_batch_size // (sub_epochs * batch_size)))


@dataclass
class _Epoch:
    """What one full epoch of Natasha1.5 keeps; all vectors are lists like the parameters, never changed in place."""

    anchor: list[Tensor]  # x̃ = y
    gradient: list[Tensor]  # μ
    start: list[Tensor]  # x̂, where the present sub-epoch began
    lengths: list[int]  # steps to be made in this sub-epoch and in each to come


_VECTORS = ("anchor", "gradient", "start")


def _copies(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _normalized(tensors: list[Tensor]) -> list[Tensor]:
    norm = global_norm(tensors)
    return [t / norm for t in tensors]
