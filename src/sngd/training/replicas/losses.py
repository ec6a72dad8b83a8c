"""The losses of all replicas and their gradients, in one forward and one backward pass.

The sum of the losses is differentiated. The loss of a replica depends on its own weights alone, so the gradient of the
sum with respect to these weights is the gradient of the replica's own loss.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sngd.problems import Problem
from sngd.training.replicas.layers import layers_of
from sngd.training.replicas.layout import Layout

Pieces = Sequence[Tensor]  # for each parameter, the stack (R, …) of those of all rows; see ``Layout.pieces``


class Batch(NamedTuple):
    """Inputs and targets: (R, b, …) with b samples for each row or, ``shared``, (b, …) with the same for all rows."""

    inputs: Tensor
    targets: Tensor
    shared: bool = False

    @property
    def size(self) -> int:
        """b."""
        return self.inputs.shape[0 if self.shared else 1]

    def part(self, start: int, stop: int) -> "Batch":
        """Some of each row's samples."""
        inputs, targets, shared = self
        if shared:
            return Batch(inputs[start:stop], targets[start:stop], shared)
        return Batch(inputs[:, start:stop], targets[:, start:stop], shared)


class Losses:
    """Mean losses of a problem at many weights at once.

    A model that ``layers.Layers`` knows has its pass written out. Any other one goes through ``torch.func.vmap``, whose
    overhead is larger.

    Args:
        problem: its loss and its inputs' preparation.
        model: one of the replicas' models; its buffers are those of all.
    """

    def __init__(self, problem: Problem, model: nn.Module) -> None:
        self.problem, self.model = problem, model
        named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        self._names = [name for name, _ in named]
        self.layout = Layout([param for _, param in named])
        self._layers = layers_of(model, problem)
        self._batched = {shared: vmap(self._one, (0, *[None if shared else 0] * 2)) for shared in (True, False)}

    @property
    def written_out(self) -> bool:
        """Whether passes do without ``torch.func.vmap``."""
        return self._layers is not None

    def gradient(
        self, weights: Pieces, batch: Batch, into: Pieces, chunk_size: int | None = None
    ) -> Callable[[], Tensor]:
        """Fill ``into`` with the gradients of all rows' mean losses.

        Args:
            weights: of all rows.
            batch: b samples for each row.
            into: as ``weights``, overwritten.
            chunk_size: samples evaluated at a time; None: all b.

        Returns:
            Computes the mean losses, (R,).
        """
        b = batch.size
        if chunk_size is None:
            return self.add_gradient(weights, batch, into, share=1, add=False)[0]
        parts = [batch.part(start, start + chunk_size) for start in range(0, b, chunk_size)]
        losses = [
            self.add_gradient(weights, part, into, share=part.size / b, add=position > 0)[0]
            for position, part in enumerate(parts)
        ]
        return lambda: torch.stack([of_part() for of_part in losses]).sum(0)

    def add_gradient(
        self, weights: Pieces, batch: Batch, into: Pieces, *, share: float, add: bool
    ) -> tuple[Callable[[], Tensor], Tensor]:
        """What computes the losses times ``share``, (R,), and the models' outputs.

        ``into`` gets or, with ``add``, adds the gradients of these losses.
        """
        inputs, targets, _ = batch
        if self._layers is not None:
            return self._layers.add_gradient(weights, inputs, targets, into, share=share, add=add)
        pieces = [piece.detach().requires_grad_() for piece in weights]
        losses, outputs = self._vmapped(pieces, batch)
        found = torch.autograd.grad((losses * share).sum(), pieces, allow_unused=True)
        for total, piece, gradient in zip(into, pieces, found, strict=True):
            new = torch.zeros_like(piece) if gradient is None else gradient
            total.add_(new) if add else total.copy_(new)
        values = losses.detach()  # whose graph may go
        return lambda: values * share, outputs.detach()

    @torch.no_grad()
    def losses(self, weights: Pieces, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean losses, (R,), and the models' outputs, (R, b, …)."""
        inputs, targets, _ = batch
        if self._layers is not None:
            return self._layers.losses(weights, inputs, targets)
        return self._vmapped(weights, batch)

    def _vmapped(self, weights: Pieces, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs, targets, shared = batch
        return self._batched[shared](dict(zip(self._names, weights, strict=True)), inputs, targets)

    def _one(self, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and the outputs of one replica."""
        if self.problem.prepare is not None:
            inputs = self.problem.prepare(inputs)
        outputs = functional_call(self.model, weights, (inputs,))
        return self.problem.loss(outputs, targets), outputs
