"""What variance-reduced estimators share: ∇f_I(w) − ∇f_I(w_ref), the same samples at two points."""

from typing import Any

import torch
from torch import Tensor, nn

from sngd.estimators.estimator import Batch, Estimator, Loss, check_size
from sngd.estimators.replay import Chance, at_weights, buffers_kept
from sngd.sharding import all_local, gradient, local, placed_like


class DifferenceEstimator(Estimator):
    """Keeps a reference point w_ref, a gradient to build on, and its age in steps within the period.

    The two evaluations of a difference see the same samples, augmentation and dropout masks, provided that chance
    comes from torch's generators; BatchNorm's running statistics end as if only the one at the present weights had
    happened.

    The reference and the gradient are sharded as the weights are. Memory: two copies of the weights beside ``p.grad``.
    """

    def __init__(self, model: nn.Module, batch_size: int, chunk_size: int) -> None:
        super().__init__(model)
        self.batch_size = check_size("batch_size", batch_size)
        self.chunk_size = check_size("chunk_size", chunk_size)
        self.age = 0  # steps since the anchor; 0: the next estimate is an anchor
        self._reference = [torch.zeros_like(p, requires_grad=False) for p in self.params]
        self._gradient = [torch.zeros_like(p, requires_grad=False) for p in self.params]

    def _take_gradient(self, loss: Loss, batch: Batch) -> Tensor:
        """Evaluate at the present weights: they become the reference, the gradient what is built on."""
        value = self._backward(loss, batch, self.chunk_size)
        torch._foreach_copy_(all_local(self._gradient), self._gradients())
        self._move_reference()
        return value

    def _difference(self, loss: Loss, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Loss at the present weights, and this rank's part of ∇f_I(w) − ∇f_I(w_ref)."""
        chance = Chance(self.params[0].device)
        value = self._backward(loss, batch)
        here = [grad.clone() for grad in self._gradients()]  # DDP may reuse their memory, a bucket of all-reduces
        with at_weights(self.params, self._reference), chance.replayed(), buffers_kept(self.model):
            self._backward(loss, batch)
        return value, list(torch._foreach_sub(here, self._gradients()))

    def _gradients(self) -> list[Tensor]:
        return [torch.zeros_like(local(p)) if p.grad is None else local(gradient(p)) for p in self.params]

    @torch.no_grad()
    def _move_reference(self) -> None:
        torch._foreach_copy_(all_local(self._reference), all_local(self.params))

    def _set_grad(self) -> None:
        """Give the optimizer a copy: clipping in place must not reach what the next estimate builds on."""
        for param, value in zip(self.params, self._gradient, strict=True):
            param.grad = value.clone()

    def state_dict(self) -> dict[str, Any]:
        own = {"age": self.age, "reference": self._reference, "gradient": self._gradient}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.age = state["age"]
        for own, saved in ((self._reference, state["reference"]), (self._gradient, state["gradient"])):
            for tensor, value in zip(own, saved, strict=True):
                local(tensor).copy_(local(placed_like(value, tensor)))
