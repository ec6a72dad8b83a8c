"""The base of variance-reduced estimators: ∇f_I(w) − ∇f_I(w_ref), a difference on the same samples at two points."""

from typing import Any

import torch
from torch import Tensor, nn

from sngd.checks import count
from sngd.cost import Cost, differences
from sngd.estimators.estimator import Batch, Estimator, Loss, check_chunk_size, check_size_of
from sngd.estimators.replay import Chance, at_weights, buffers_kept
from sngd.norms.global_norm import global_norm
from sngd.sharding import all_local, gradient, local
from sngd.state import check_keys, fitted, saved_count, saved_tensors


class DifferenceEstimator(Estimator):
    """Keeps a reference point w_ref, a gradient to add differences to, and its age in steps since the anchor.

    The two evaluations of a difference use the same samples, augmentation and dropout masks, provided that random
    numbers come from torch's generators. Only the evaluation at the present weights changes BatchNorm's running
    statistics.

    If a gradient is not finite, ``p.grad`` gets it as it is, so that an optimizer can skip the step as it would for a
    mini-batch. No difference is added to it: the next estimate is an anchor. Its oracle calls are counted.
    A gradient is finite if its global norm is. In a distributed run this is the norm over all ranks, so that all take
    the anchor together. The host must know the answer when ``age``, ``next_batch_size``, ``next_cost`` or
    ``state_dict`` is read, or when the next estimate begins. There it waits for an accelerator, once an estimate.

    The reference and the gradient are sharded like the weights, and follow them to another dtype or device. They take
    the memory of two copies of the weights, beside ``p.grad``. If parameters are frozen or unfrozen, the next estimate
    is an anchor.
    """

    _anchor_argument = "anchor_batch_size"  # the constructor's name for the size of an anchor

    def __init__(
        self, model: nn.Module, anchor_batch_size: int, batch_size: int, period: int, chunk_size: int | None
    ) -> None:
        super().__init__(model)
        self.anchor_batch_size = count(self._anchor_argument, anchor_batch_size)
        self.batch_size = count("batch_size", batch_size)
        self.period = count("period", period)
        self.chunk_size = check_chunk_size(chunk_size)
        self._begin()

    def _begin(self) -> None:
        """Let the next estimate be an anchor, of the parameters that are trained now."""
        self._age = 0
        self._failed: Tensor | None = None  # 0-d bool on the parameters' device: the stored gradient is not finite
        self._reference = [torch.zeros_like(p, requires_grad=False) for p in self.params]
        self._gradient = [torch.zeros_like(p, requires_grad=False) for p in self.params]

    def _follow_freezing(self) -> bool:
        changed = super()._follow_freezing()
        if changed:
            self._begin()
        return changed

    @property
    def age(self) -> int:
        """Steps since the anchor; 0 means that the next estimate is an anchor."""
        self._follow_freezing()
        if self._age > 0 and self._failed is not None and self._failed.item():
            self._age = 0
        self._failed = None  # so that the host waits only once
        return self._age

    @property
    def next_cost(self) -> int:
        return int(self._cost.anchor if self.age == 0 else self._cost.between)

    @property
    def mean_cost(self) -> float:
        return self._cost.mean

    @property
    def _cost(self) -> Cost:
        return differences(self.anchor_batch_size, self.batch_size, self.period)

    def estimate(self, loss: Loss, batch: Batch) -> Tensor:
        """Set ``p.grad`` to the estimate at the present weights; see ``Estimator.estimate``.

        Raises:
            ValueError: the batch has not ``next_batch_size`` samples, or a parameter has another shape than before.
        """
        self._check_batch(batch)
        self._fit_params()
        value = self._anchor(loss, batch) if self.age == 0 else self._build(loss, batch)
        self._age = (self._age + 1) % self.period
        return value

    def _check_batch(self, batch: Batch) -> None:
        if self.age == 0:
            check_size_of(batch, self._anchor_argument, self.anchor_batch_size, ", as this estimate is an anchor")
        else:
            advice = "; a DataLoader leaves out a short last batch with drop_last=True"
            check_size_of(batch, "batch_size", self.batch_size, advice=advice)

    def _fit_params(self) -> None:
        """Convert what is stored if the parameters were converted meanwhile, by ``model.double()`` for example."""
        name = type(self).__name__
        reference = fitted(f"{name}'s reference", self._reference, self.params, self._names)
        self._gradient = fitted(f"{name}'s gradient", self._gradient, self.params, self._names)
        self._reference = reference

    def _anchor(self, loss: Loss, batch: Batch) -> Tensor:
        """Evaluate at the present weights; store them as the reference, and the gradient to add differences to."""
        value = self._backward(loss, batch, self.chunk_size)
        torch._foreach_copy_(all_local(self._gradient), self._gradients())
        self._move_reference()
        self._set_grad()
        self._note_failure()
        return value

    def _build(self, loss: Loss, batch: Batch) -> Tensor:
        """Set ``p.grad`` to the estimate between anchors."""
        raise NotImplementedError

    def _difference(self, loss: Loss, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Loss at the present weights, and this rank's part of ∇f_I(w) − ∇f_I(w_ref)."""
        chance = Chance(self.params[0].device)
        value = self._backward(loss, batch)
        here = [grad.clone() for grad in self._gradients()]  # DDP may reuse their memory for its messages
        with at_weights(self.params, self._reference), chance.replayed(), buffers_kept(self.model):
            self._backward(loss, batch)
        return value, list(torch._foreach_sub(here, self._gradients()))

    def _gradients(self) -> list[Tensor]:
        return [torch.zeros_like(local(p)) if p.grad is None else local(gradient(p)) for p in self.params]

    @torch.no_grad()
    def _move_reference(self) -> None:
        torch._foreach_copy_(all_local(self._reference), all_local(self.params))

    def _set_grad(self) -> None:
        """Set ``p.grad`` to a copy, so that clipping in place does not change what the next estimate starts from."""
        for param, value in zip(self.params, self._gradient, strict=True):
            param.grad = value.clone()

    def _note_failure(self) -> None:
        """Compute whether the stored gradient is finite, and leave the answer on the device until it is needed."""
        self._failed = ~global_norm([torch.view_as_real(g) if g.is_complex() else g for g in self._gradient]).isfinite()

    def state_dict(self) -> dict[str, Any]:
        own = {"age": self.age, "reference": self._reference, "gradient": self._gradient}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._load(state, self.period)

    def _load(self, state: dict[str, Any], period: int) -> None:
        self._follow_freezing()
        check_keys(state, "age", "reference", "gradient")
        age = saved_count(state, "age", 0, period - 1)
        reference, gradient = (saved_tensors(state, k, self.params, self._names) for k in ("reference", "gradient"))
        super().load_state_dict(state)
        self._age, self._failed, self._reference, self._gradient = age, None, reference, gradient
