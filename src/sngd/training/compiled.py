"""The loss of a training batch through ``torch.compile``, which makes fewer and quicker operations of a model's.

What is compiled is tried first: where it fails, or gives other numbers, the reason is told and nothing is compiled.
"""

import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sngd.estimators.replay import generator_state
from sngd.problems import Problem
from sngd.problems.columns import materialized
from sngd.problems.problem import Samples
from sngd.training.config import RunConfig
from sngd.training.ranks import Forward, Loss
from sngd.training.replicas.alike import most_replicas, operations


class CompiledLoss:
    """The mean loss over a batch, compiled for batches of the shapes that it was tried on, and plain for others.

    So nothing is compiled again for a smaller last batch, or for what an augmentation makes of other shapes. Random
    numbers are drawn as without compilation: dropout has the same masks.

    Args:
        problem: its loss, and its inputs' preparation, which is not compiled.
        threads: CPU threads of the compiled code, ≥ 1.
    """

    def __init__(self, problem: Problem, threads: int) -> None:
        self._problem, self._threads = problem, threads
        self._compiled: Callable[..., Tensor] = _loss
        self._shapes: set[tuple[torch.Size, torch.Size]] = set()

    def __call__(self, model: Forward, batch: Samples) -> Tensor:
        inputs, targets = materialized(batch)
        inputs = self._problem.prepared(inputs)
        evaluate = self._compiled if (inputs.shape, targets.shape) in self._shapes else _loss
        return evaluate(model, self._problem.loss, inputs, targets)

    def try_on(self, seeded: Callable[[], nn.Module], batch: Samples) -> str | None:
        """Compile for batches of this shape, if that gives the same numbers.

        Args:
            seeded: a new model in training mode, the same at each call; seeds torch's generators.
            batch: samples on the model's device.

        Returns:
            None, or why it was not compiled, as the end of a sentence.
        """
        inputs, targets = materialized(batch)
        shapes = self._problem.prepared(inputs).shape, targets.shape
        expected = tried(self, seeded(), batch)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about its own modules and the functions that it looks into
                if self._compiled is _loss:
                    self._compiled = _compiled_loss(self._threads)
                self._shapes.add(shapes)
                found = tried(self, seeded(), batch)
            reason = expected.difference(found, "compiled", _products(inputs.device))
        except Exception as error:  # the compiler's, of which there are many kinds
            reason = f"torch.compile cannot do it ({first_line(error)})"
        if reason:
            self._shapes.discard(shapes)
        return reason


def _loss(model: Forward, loss: Callable[[Any, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return loss(model(inputs), targets)


def _compiled_loss(threads: int) -> Callable[..., Tensor]:
    """A copy of ``_loss``, compiled: torch gives up on a function that it has compiled eight times."""
    copy = FunctionType(_loss.__code__.replace(), globals())
    # The number of threads becomes part of the code, but not of the cache's key in all versions of torch. Compiling in
    # this process alone keeps several runs at a time from starting as many processes each as there are cores.
    options: dict[str, Any] = {"fallback_random": True, "cpp.threads": threads, "compile_threads": 1}
    return torch.compile(copy, dynamic=False, options=options)


# Floating-point operations of a run's layers. When it was chosen, compiling ResNet8's step took as long as it saved in
# 4e13 of them, ResNet20's in 2.3e14. The gain is a few percent, so later measurements differ (results/engine*.json).
_ENOUGH = 1e15
_CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d


def pays(model: nn.Module, config: RunConfig, problem: Problem) -> bool:
    """Whether compiling on the CPU takes much less time than it saves: in long runs of convolutional networks.

    It asks for the arithmetic, which does not depend on how busy the machine is, so that a run repeats its answer. Runs
    that can be trained as one are not compiled, because the answer would depend on which of them are. The model is not
    evaluated, but another one of the problem's.
    """
    if not any(isinstance(layer, _CONVOLUTIONS) for layer in model.modules()):
        return False
    try:
        # the backward pass has two convolutions for each
        enough = 3 * operations(problem, 1) * config.epochs * problem.n >= _ENOUGH
        return enough and most_replicas(config, problem) == 1
    except Exception:  # of a model that takes no batch of three, for example
        return False


class Trial(NamedTuple):
    """What an evaluation of the loss and its gradient led to."""

    value: Tensor
    gradients: Sequence[Tensor]
    buffers: Sequence[Tensor]
    chance: Tensor

    def difference(self, other: "Trial", how: str, rounded: torch.dtype = torch.float64) -> str | None:
        """What is different, more than by rounding, in ``other``, which was evaluated so; as the end of a sentence.

        Args:
            rounded: the dtype of products, if it is narrower than that of the numbers.
        """
        if not torch.equal(self.chance, other.chance):
            return f"other random numbers are drawn when {how}"
        pairs = ([self.value], [other.value]), (self.gradients, other.gradients)
        if not all(_alike(ours, others, rounded) for ours, others in pairs):
            return f"its loss or gradient comes out differently when {how}"
        if not _alike(self.buffers, other.buffers, rounded):
            return f"its buffers, such as BatchNorm's statistics, come out differently when {how}"
        return None


def tried(loss: Loss, model: nn.Module, batch: Samples) -> Trial:
    """Evaluate the loss and its gradient; the model's buffers and the random generators change."""
    params = [param for param in model.parameters() if param.requires_grad]
    value = loss(model, batch)
    found = torch.autograd.grad(value, params, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]
    buffers = [buffer.clone() for buffer in model.buffers()]
    return Trial(value.detach(), gradients, buffers, generator_state(value.device))


def _products(device: torch.device) -> torch.dtype:
    """The dtype to which autocast rounds products at present; float64, to which nothing is rounded, if it is off."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else torch.float64


def _alike(ones: Sequence[Tensor], others: Sequence[Tensor], rounded: torch.dtype) -> bool:
    """Whether all together are equal up to rounding: 1e-4 of their norm in float64, 2e-2 in float32, 0.3 in bfloat16.

    This is the fourth root of the spacing of numbers. The square root would be too strict: where rounding changes the
    sign of a ReLU's input, the gradient jumps. ResNet20's was 2e-3 away.
    """
    error = scale = tolerance = 0.0
    for one, other in zip(ones, others, strict=True):
        error += _square(one, other)
        scale += _square(one, torch.zeros_like(one))
        if one.is_floating_point() or one.is_complex():
            tolerance = max(tolerance, *(torch.finfo(dtype).eps ** 0.25 for dtype in (one.dtype, rounded)))
    return error <= tolerance**2 * scale


def _square(one: Tensor, other: Tensor) -> float:
    """‖one − other‖²."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    return float((one.to(wide) - other.to(wide)).abs().square().sum())


def first_line(error: Exception) -> str:
    """The first line of an error's message that is not empty, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
