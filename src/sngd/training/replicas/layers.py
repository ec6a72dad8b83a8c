"""Forward and backward passes of linear layers and activations, of all replicas, written out.

For a small network a graph of the whole pass costs as much time as the products of matrices. Here only activations have
one, and the gradients of weights are written where they are wanted.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules  # whose private names are listed in tests/test_architecture.py

from sngd.problems import Problem
from sngd.problems.augment import unit_interval

_BY_ENTRY = (nn.ELU, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)


class _Passed(NamedTuple):
    """A layer in a forward pass: what it was given and gave, the places of its weights, the first being a matrix."""

    x: Tensor
    y: Tensor
    places: tuple[int, ...]


class Layers:
    """A model of ``Linear`` layers and activations that begins with a ``Linear`` and ends in a cross-entropy of labels.

    Inputs are (R, b, d), or (b, d) if they are the same for all R replicas; labels are (R, b) or (b,). Inside, samples
    come last, (R, d, b): so W x needs no transposition, and the softmax of a few classes is ten times as fast.

    Args:
        layers: in the order of the pass.
        prepared: makes the model's inputs of those that are given, each number by itself.
    """

    def __init__(self, layers: Sequence[nn.Module], prepared: Callable[[Tensor], Tensor]) -> None:
        self.prepared = prepared
        self._layers: list[tuple[nn.Module, tuple[int, ...]]] = []  # with the places of their weights, if they have any
        start = 0
        for layer in layers:
            count = len(list(layer.parameters()))
            self._layers.append((layer, tuple(range(start, start + count))))
            start += count

    @torch.no_grad()
    def losses(self, weights: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses, (R,), and outputs, (R, b, classes); ``weights`` are stacks (R, …) by parameter."""
        outputs = self._pass(weights, inputs)[-1].y
        logs = outputs.log_softmax(1)
        return _cross_entropy(logs.gather(1, _places(labels, logs))), outputs.mT

    @torch.no_grad()
    def add_gradient(
        self,
        weights: Sequence[Tensor],
        inputs: Tensor,
        labels: Tensor,
        into: Sequence[Tensor],
        *,
        share: float,
        add: bool,
    ) -> tuple[Callable[[], Tensor], Tensor]:
        """As ``losses``, times ``share``; ``into`` gets or, with ``add``, adds the gradients of these losses.

        The losses are averaged when they are asked for, which nobody does in most steps.
        """
        passed = self._pass(weights, inputs, differentiate=True)
        outputs = passed[-1].y
        logs = outputs.log_softmax(1)
        places = _places(labels, logs)
        losses = partial(_cross_entropy, logs.gather(1, places), share)
        back = logs.exp_().scatter_(1, places, -1, reduce="add").mul_(share / labels.shape[-1])
        for position, (x, y, own) in reversed(list(enumerate(passed))):
            if not own:
                back = _through(y, back)
                continue
            into[own[0]].baddbmm_(back, x.mT, beta=int(add))
            for place in own[1:]:
                into[place].add_(back.sum(2)) if add else torch.sum(back, 2, out=into[place])
            if position > 0:
                back = weights[own[0]].mT.bmm(back)
        return losses, outputs.mT

    def _pass(self, weights: Sequence[Tensor], inputs: Tensor, *, differentiate: bool = False) -> list[_Passed]:
        passed: list[_Passed] = []
        x = self.prepared(inputs).mT
        if x.dim() == 2:
            x = x.expand(len(weights[0]), -1, -1)
        for layer, own in self._layers:
            if own:
                y = result = _linear(x, *[weights[place] for place in own])
            elif differentiate:
                with torch.enable_grad():
                    y = layer(x.requires_grad_())
                result = y.detach()
            else:
                y = result = layer(x)
            passed.append(_Passed(x, y, own))
            x = result
        return passed


def layers_of(model: nn.Module, problem: Problem) -> Layers | None:
    """The model's layers if it is one that ``Layers`` knows, with inputs and targets that it takes; else None."""
    if problem.loss is not nn.functional.cross_entropy or problem.augment is not None:  # which may change targets
        return None
    if problem.prepare not in (None, unit_interval) or torch.is_autocast_enabled("cpu"):
        return None
    hooks = torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks
    if any((*hooks, torch_modules._global_backward_hooks, torch_modules._global_backward_pre_hooks)):
        return None
    layers = list(model) if type(model) is nn.Sequential and _is_plain(model) else [model]
    if not (layers and type(layers[0]) is nn.Linear and all(_is_known(layer) for layer in layers)):
        return None
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weights = [param for layer in linear for param in (layer.weight, layer.bias) if param is not None]
    if [*map(id, model.parameters())] != [*map(id, weights)] or any(True for _ in model.buffers()):
        return None
    if not all(_is_usual(param) for param in weights) or len({param.dtype for param in weights}) > 1:
        return None
    return Layers(layers, problem.prepared) if _are_known(problem.train) and _are_known(problem.test) else None


def _is_known(layer: nn.Module) -> bool:
    if type(layer) not in (nn.Linear, *_BY_ENTRY) or getattr(layer, "inplace", False):
        return False
    return _is_plain(layer) and not any(True for _ in layer.children())


def _is_plain(module: nn.Module) -> bool:
    """Whether no function of a user's is called in its passes."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" not in vars(module) and not any(getattr(module, name) for name in hooks)


def _is_usual(param: Tensor) -> bool:
    """Whether it is trained, in numbers that are not short, and no function of a user's looks at its gradient."""
    usual = param.requires_grad and param.dtype in (torch.float32, torch.float64) and param.numel() > 0
    return usual and without_hooks(param)


def without_hooks(param: Tensor) -> bool:
    """Whether no function of a user's looks at its gradient."""
    return not (param._backward_hooks or param._post_accumulate_grad_hooks)


def _are_known(samples: tuple[object, object] | None) -> bool:
    """Whether inputs are vectors, and targets a class each, of which none is negative: that would mean to ignore it."""
    if samples is None:
        return True
    inputs, targets = samples
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):  # columns, which are read when they are needed
        return False
    return inputs.dim() == 2 and targets.dim() == 1 and targets.dtype == torch.int64 and int(targets.min()) >= 0


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + bias for each row, (R, out, b)."""
    return weight.bmm(x) if bias is None else torch.baddbmm(bias.unsqueeze(2), weight, x)


def _through(y: Tensor, back: Tensor) -> Tensor:
    """The gradient with respect to an activation's input, from that with respect to ``y``: by autograd's own function.

    To call it costs a sixth of ``torch.autograd.grad``.
    """
    function: Callable[[Tensor], Tensor] | None = y.grad_fn  # type: ignore[assignment]  # torch's stubs lack the call
    return back if function is None else function(back)  # Identity has none


def _places(labels: Tensor, logs: Tensor) -> Tensor:
    """Where the labels' entries are in (R, classes, b): (R, 1, b)."""
    return (labels if labels.dim() == 2 else labels.expand(len(logs), -1)).unsqueeze(1)


def _cross_entropy(logs: Tensor, share: float = 1) -> Tensor:
    """Mean of −log p over the samples, (R,), times ``share``; ``logs`` are those of the labels, (R, 1, b)."""
    return -logs.mean((1, 2)) * share
