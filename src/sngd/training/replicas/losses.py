"""The losses of all replicas and their gradients, in one forward and one backward pass.

The sum of the losses is differentiated. The loss of a replica depends on its own weights alone, so the gradient of the
sum with respect to these weights is the gradient of the replica's own loss.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sngd.problems import Problem
from sngd.problems.problem import Samples
from sngd.training.replicas.layout import Layout

_BY_ENTRY = (nn.ELU, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)


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
        self._batched = vmap(self._loss, randomness="error")
        self._batched_loss = vmap(problem.loss, randomness="error")

    def gradient(self, weights: Tensor, batch: Samples, into: Tensor, chunk_size: int | None = None) -> Tensor:
        """Fill ``into`` with the gradients of all rows' mean losses.

        Args:
            weights: (R, width), a matrix of ``layout``.
            batch: inputs and targets (R, b, …), b samples for each row.
            into: (R, width), overwritten.
            chunk_size: samples evaluated at a time; None: all b.

        Returns:
            The mean losses, (R,).
        """
        pieces = [piece.detach().requires_grad_() for piece in self.layout.pieces(weights)]
        targets = self.layout.pieces(into)
        inputs, labels = batch
        b = inputs.shape[1]
        size = chunk_size or b
        total: Tensor | None = None
        for start in range(0, b, size):
            part = inputs[:, start : start + size], labels[:, start : start + size]
            losses = self._losses(pieces, part, targets, add=start > 0)
            if b > size:
                losses = losses * (part[0].shape[1] / b)
            self._backward(losses.sum(), pieces, targets, add=start > 0)
            total = losses.detach() if total is None else total + losses.detach()
        assert total is not None
        return total

    def _losses(self, pieces: Sequence[Tensor], batch: Samples, into: Sequence[Tensor], add: bool) -> Tensor:
        if self._layers is None:
            return self._batched(dict(zip(self._names, pieces, strict=True)), *batch)
        inputs, labels = batch
        x, rest = inputs, iter(zip(pieces, into, strict=True))
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                own = [next(rest) for _ in range(1 if layer.bias is None else 2)]
                weights, gradients = zip(*own, strict=True)
                x = _Linear.apply(x, gradients, add, *weights)  # type: ignore[no-untyped-call]
            else:
                x = layer(x)
        if self.problem.loss is nn.functional.cross_entropy and labels.dim() == 2:
            each = nn.functional.cross_entropy(x.flatten(0, 1), labels.flatten(), reduction="none")
            return each.view_as(labels).mean(1)
        return self._batched_loss(x, labels)

    def _loss(self, weights: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of one replica."""
        if self.problem.prepare is not None:
            inputs = self.problem.prepare(inputs)
        return self.problem.loss(functional_call(self.model, weights, (inputs,)), labels)

    def _backward(self, loss: Tensor, pieces: Sequence[Tensor], into: list[Tensor], add: bool) -> None:
        if self._layers is not None:
            loss.backward()
            return
        gradients = torch.autograd.grad(loss, pieces, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(pieces, gradients, strict=True)]
        if add:
            torch._foreach_add_(into, found)
        else:
            torch._foreach_copy_(into, found)


def _layers(model: nn.Module) -> list[nn.Module] | None:
    """The layers of a model that only applies linear layers and activations, one after the other; else None."""
    layers = list(model) if type(model) is nn.Sequential else [model]
    linear = [layer for layer in layers if type(layer) is nn.Linear]
    weights = [param for layer in linear for param in layer.parameters()]
    simple = (
        linear and len(set(weights)) == len(weights) and all(type(layer) in (nn.Linear, *_BY_ENTRY) for layer in layers)
    )
    return layers if simple else None


class _Linear(torch.autograd.Function):
    """x Wᵀ + bias for each row; the backward pass writes the gradients of W and bias where they are wanted.

    Without a matrix of gradients to be copied, a step of a small network takes a third less time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, into: Sequence[Tensor], add: bool, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.into, ctx.beta = into, int(add)
        return x @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        ctx.into[0].baddbmm_(grad.mT, x, beta=ctx.beta)
        if len(ctx.into) > 1:
            sums = grad.sum(1)
            ctx.into[1].add_(sums) if ctx.beta else ctx.into[1].copy_(sums)
        back = grad.bmm(weight) if ctx.needs_input_grad[0] else None
        return (back, *[None] * (2 + len(ctx.into)))
