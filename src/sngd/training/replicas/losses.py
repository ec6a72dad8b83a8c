"""The losses of all replicas and their gradients, in one forward and one backward pass.

The sum of the losses is differentiated. The loss of a replica depends on its own weights alone, so the gradient of the
sum with respect to these weights is the gradient of the replica's own loss.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sngd.problems import Problem
from sngd.training.replicas.layout import Layout

_BY_ENTRY = (nn.ELU, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)


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

    A model of ``Linear`` layers and activations multiplies batches of matrices. Any other model goes through
    ``torch.func.vmap``, whose overhead is larger.

    Args:
        problem: its loss and its inputs' preparation.
        model: one of the replicas' models; its buffers are those of all.
    """

    def __init__(self, problem: Problem, model: nn.Module) -> None:
        self.problem, self.model = problem, model
        named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        self._names = [name for name, _ in named]
        self.layout = Layout([param for _, param in named])
        self._layers = _layers(model) if problem.prepare is None and problem.train[0].dim() == 2 else None
        self._batched = {shared: vmap(self._one, (0, *[None if shared else 0] * 2)) for shared in (True, False)}
        self._batched_loss = vmap(problem.loss, (0, 0))

    def gradient(self, weights: Tensor, batch: Batch, into: Tensor, chunk_size: int | None = None) -> Tensor:
        """Fill ``into`` with the gradients of all rows' mean losses.

        Args:
            weights: (R, width), a matrix of ``layout``.
            batch: b samples for each row.
            into: (R, width), overwritten.
            chunk_size: samples evaluated at a time; None: all b.

        Returns:
            The mean losses, (R,).
        """
        b = batch.size
        total = weights.new_zeros(len(weights))
        for start in range(0, b, chunk_size or b):
            part = batch.part(start, start + (chunk_size or b))
            losses, _ = self.add_gradient(weights, part, into, share=part.size / b, add=start > 0)
            total += losses
        return total

    def add_gradient(
        self, weights: Tensor, batch: Batch, into: Tensor, *, share: float, add: bool
    ) -> tuple[Tensor, Tensor]:
        """Losses times ``share``, (R,), and the models' outputs; ``into`` gets or, with ``add``, adds the gradients."""
        pieces = [piece.detach().requires_grad_() for piece in self.layout.pieces(weights)]
        gradients = self.layout.pieces(into)
        losses, outputs = self._evaluate(pieces, batch, gradients, add)
        if share != 1:
            losses = losses * share
        if self._layers is not None:
            losses.sum().backward()  # type: ignore[no-untyped-call]
            return losses.detach(), outputs.detach()
        found = torch.autograd.grad(losses.sum(), pieces, allow_unused=True)
        for total, piece, gradient in zip(gradients, pieces, found, strict=True):
            new = torch.zeros_like(piece) if gradient is None else gradient
            total.add_(new) if add else total.copy_(new)
        return losses.detach(), outputs.detach()

    @torch.no_grad()
    def losses(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean losses, (R,), and the models' outputs, (R, b, …)."""
        return self._evaluate(self.layout.pieces(weights), batch, self.layout.pieces(weights), add=False)

    def _evaluate(self, pieces: list[Tensor], batch: Batch, into: list[Tensor], add: bool) -> tuple[Tensor, Tensor]:
        inputs, targets, shared = batch
        if self._layers is None:
            return self._batched[shared](dict(zip(self._names, pieces, strict=True)), inputs, targets)
        outputs = self._outputs(self._layers, pieces, inputs, into, add)
        if shared:
            targets = targets.expand(len(outputs), *targets.shape)
        if self.problem.loss is nn.functional.cross_entropy and targets.dim() == 2:
            each = nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
            return each.view_as(targets).mean(1), outputs
        return self._batched_loss(outputs, targets), outputs

    def _outputs(
        self, layers: Sequence[nn.Module], pieces: list[Tensor], x: Tensor, into: list[Tensor], add: bool
    ) -> Tensor:
        """The outputs of the layers; ``_Linear`` says what becomes of ``into``."""
        rest = iter(zip(pieces, into, strict=True))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                weights, gradients = zip(*[next(rest) for _ in layer.parameters()], strict=True)
                x = _Linear.apply(x, gradients, add, *weights)
            else:
                x = layer(x)
        return x

    def _one(self, weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss and the outputs of one replica."""
        if self.problem.prepare is not None:
            inputs = self.problem.prepare(inputs)
        outputs = functional_call(self.model, weights, (inputs,))
        return self.problem.loss(outputs, targets), outputs


def _layers(model: nn.Module) -> list[nn.Module] | None:
    """The layers of a model that only applies linear layers and activations, a linear one first; else None."""
    layers = list(model) if type(model) is nn.Sequential else [model]
    weights = [param for layer in layers for param in layer.parameters()]
    known = all(type(layer) in (nn.Linear, *_BY_ENTRY) for layer in layers) and type(layers[0]) is nn.Linear
    return layers if known and len(set(weights)) == len(weights) else None


class _Linear(torch.autograd.Function):
    """x Wᵀ + bias for each row, x of shape (R, b, in) or (b, in) for all rows.

    The backward pass writes the gradients of W and bias where they are wanted. Without a matrix of gradients to be
    copied, a step of a small network takes a third less time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, into: Sequence[Tensor], add: bool, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.into, ctx.add = into, add
        if x.dim() == 3:
            return x @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
        wide = x @ weight.flatten(0, 1).T if bias is None else torch.addmm(bias.flatten(), x, weight.flatten(0, 1).T)
        return wide.unflatten(1, weight.shape[:2]).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if x.dim() == 3:
            ctx.into[0].baddbmm_(grad.mT, x, beta=int(ctx.add))
        else:
            new = (grad.transpose(0, 1).flatten(1).T @ x).view_as(weight)
            ctx.into[0].add_(new) if ctx.add else ctx.into[0].copy_(new)
        if len(ctx.into) > 1:
            sums = grad.sum(1)
            ctx.into[1].add_(sums) if ctx.add else ctx.into[1].copy_(sums)
        back = grad.bmm(weight) if ctx.needs_input_grad[0] else None
        return (back, *[None] * (2 + len(ctx.into)))
