"""A peer: torch's own Muon for hidden matrices with torch's AdamW for all other weights, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer


class MuonWithAdamW(Optimizer):
    """``torch.optim.Muon`` steps one list of matrices and ``torch.optim.AdamW`` another list of parameters.

    Both keep their state in this optimizer's ``state``, so that it is saved, loaded and scheduled as one. Their other
    options are torch's defaults: Muon has Nesterov momentum 0.95, AdamW β = (0.9, 0.999).

    Args:
        matrices: parameters of two dimensions, in the first param group.
        others: all other parameters, in the second; may be empty.
        lr: learning rate of the matrices.
        others_lr: learning rate of the others.
        weight_decay: λ ≥ 0 of both, decoupled: w ← (1 − αλ)w.

    Raises:
        ValueError: there are no matrices, or torch is older than 2.9 and has no Muon.
    """

    def __init__(
        self, matrices: Sequence[Tensor], others: Sequence[Tensor], lr: float, others_lr: float, weight_decay: float
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"muon-adamw needs torch.optim.Muon of torch 2.9, this is {torch.__version__}")
        if not matrices:
            raise ValueError("muon-adamw needs at least one hidden matrix, and this model has none")
        self._parts: list[Optimizer] = [torch.optim.Muon(matrices, lr, weight_decay=weight_decay)]
        if others:
            self._parts.append(AdamW(others, others_lr, weight_decay=weight_decay))
        super().__init__([{**part.param_groups[0]} for part in self._parts], {})
        self._share()

    def _share(self) -> None:
        """Let both optimizers work on this one's param groups and state."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of both; ``closure``, if given, re-evaluates the model and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        super().load_state_dict(state_dict)
        self._share()
