"""Forward and backward passes of linear layers and activations, of all replicas, written out.

For a small network a graph of the whole pass costs as much time as the products of matrices. Here only activations have
one, and the gradients of weights are written where they are wanted.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sngd.problems import Problem
from sngd.problems.problem import Samples

_BY_ENTRY = (nn.ELU, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)


class _Passed(NamedTuple):
    """A layer in a forward pass: what it was given and gave, the places of its weights, the first being a matrix."""

    layer: nn.Module
    x: Tensor
    y: Tensor
    places: tuple[int, ...]


class Layers:
    """A model of ``Linear`` layers and activations that ends in a cross-entropy of class labels.

    Inputs are (R, b, d), or (b, d) if they are the same for all R replicas; labels are (R, b) or (b,).

    Args:
        layers: in the order of the pass.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers

    @torch.no_grad()
    def losses(self, weights: Sequence[Tensor], x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses, (R,), and outputs, (R, b, classes); ``weights`` are stacks (R, …) by parameter."""
        outputs = list(self._pass(weights, x))[-1].y
        return _cross_entropy(outputs.log_softmax(-1), labels.expand(outputs.shape[:2])), outputs

    @torch.no_grad()
    def add_gradient(
        self, weights: Sequence[Tensor], x: Tensor, labels: Tensor, into: Sequence[Tensor], *, share: float, add: bool
    ) -> tuple[Tensor, Tensor]:
        """As ``losses``, times ``share``; ``into`` gets or, with ``add``, adds the gradients of these losses."""
        passed = list(self._pass(weights, x))
        outputs = passed[-1].y
        logs, labels = outputs.log_softmax(-1), labels.expand(outputs.shape[:2])
        losses = _cross_entropy(logs, labels) * share
        back, places = logs.exp(), labels.unsqueeze(2)
        back.scatter_(2, places, back.gather(2, places) - 1).mul_(share / labels.shape[1])
        for position, (layer, given, gave, own) in reversed(list(enumerate(passed))):
            if not isinstance(layer, nn.Linear):
                (back,) = torch.autograd.grad(gave, given, back)
                continue
            _write(into[own[0]], given, back, add)
            for place in own[1:]:
                sums = back.sum(1)
                into[place].add_(sums) if add else into[place].copy_(sums)
            if position > 0:
                back = back.bmm(weights[own[0]])
        return losses, outputs

    def _pass(self, weights: Sequence[Tensor], x: Tensor) -> Iterator[_Passed]:
        start = 0
        for layer in self.layers:
            given = x.detach()
            if isinstance(layer, nn.Linear):
                places = tuple(range(start, start + (1 if layer.bias is None else 2)))
                start += len(places)
                gave = _linear(given, *[weights[place] for place in places])
            else:
                places = ()
                with torch.enable_grad():
                    gave = layer(given.requires_grad_())
            yield _Passed(layer, given, gave, places)
            x = gave


def layers_of(model: nn.Module, problem: Problem) -> Layers | None:
    """The model's layers if it is one that ``Layers`` knows, with inputs and targets that it takes; else None."""
    layers = list(model) if type(model) is nn.Sequential else [model]
    weights = [param for layer in layers for param in layer.parameters()]
    if type(layers[0]) is not nn.Linear or not all(type(layer) in (nn.Linear, *_BY_ENTRY) for layer in layers):
        return None
    if any(getattr(layer, "inplace", False) for layer in layers) or len(set(weights)) < len(weights):
        return None
    if problem.loss is not nn.functional.cross_entropy or problem.prepare is not None:
        return None
    return Layers(layers) if _are_known(problem.train) and _are_known(problem.test) else None


def _are_known(samples: Samples | None) -> bool:
    """Whether inputs are vectors, and targets a class each, of which none is negative: that would mean to ignore it."""
    if samples is None:
        return True
    inputs, targets = samples
    return inputs.dim() == 2 and targets.dim() == 1 and targets.dtype == torch.int64 and int(targets.min()) >= 0


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for each row, (R, b, out)."""
    if x.dim() == 3:
        return x @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    every = weight.flatten(0, 1).T  # (in, R · out): one product for all rows
    wide = x @ every if bias is None else torch.addmm(bias.flatten(), x, every)
    outputs: Tensor = wide.unflatten(1, weight.shape[:2])
    return outputs.transpose(0, 1)


def _write(into: Tensor, x: Tensor, back: Tensor, add: bool) -> None:
    """The gradients of weights, backᵀ x for each row."""
    if x.dim() == 3:
        into.baddbmm_(back.mT, x, beta=int(add))
        return
    new = (back.transpose(0, 1).flatten(1).T @ x).view_as(into)
    into.add_(new) if add else into.copy_(new)


def _cross_entropy(logs: Tensor, labels: Tensor) -> Tensor:
    """Mean of −log p over the samples, (R,), from logarithms (R, b, classes)."""
    return -logs.gather(2, labels.unsqueeze(2)).squeeze(2).mean(1)
