"""The measurements of a row of metrics, of all replicas at once; see ``sngd.training.evaluate``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sngd.norms import Product
from sngd.problems import Problem
from sngd.problems.eval_mode import in_eval_mode
from sngd.problems.problem import Samples, classifies
from sngd.training.evaluate import Measured, chunk_size, gradient_norms
from sngd.training.replicas.losses import Batch, Losses


def measure(
    losses: Losses, weights: Tensor, problem: Problem, *, grad_norm: bool, norms: Sequence[Product]
) -> list[Measured]:
    """What ``evaluate`` measures, of each row of ``weights`` (R, width), with the row's norm of ``norms``."""
    gradient = torch.zeros_like(weights) if grad_norm else None
    with in_eval_mode(losses.model):
        train = _measure(losses, weights, problem.train, gradient)
        test = [(None, None)] * len(weights) if problem.test is None else _measure(losses, weights, problem.test, None)
    rows: list[Measured] = []
    for row, norm in enumerate(norms):
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        own = None if gradient is None else losses.layout.views(gradient[row])
        rows.append(dict(zip(names, (*train[row], *test[row]), strict=True)) | gradient_norms(own, norm))
    return rows


def _measure(
    losses: Losses, weights: Tensor, samples: Samples, gradient: Tensor | None
) -> list[tuple[float | None, float | None]]:
    """Loss and accuracy of each row; ``gradient`` is filled with the losses' gradients."""
    pieces, into = losses.layout.pieces(weights), None if gradient is None else losses.layout.pieces(gradient)
    whole = Batch(*samples, shared=True)
    loss = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    correct, labels = torch.zeros(len(weights), dtype=torch.int64, device=weights.device), 0
    size = chunk_size(*samples)
    for start in range(0, whole.size, size):
        part = whole.part(start, start + size)
        share = part.size / whole.size
        if into is None:
            values, outputs = losses.losses(pieces, part)
            loss += values.double() * share
        else:
            shares, outputs = losses.add_gradient(pieces, part, into, share=share, add=start > 0)
            loss += shares().double()
        if classifies(outputs[0], part.targets):
            correct += (outputs.max(-1).indices == part.targets).flatten(1).sum(1)  # argmax takes ten times as long
            labels += part.targets.numel()
    accuracies = [count / labels for count in correct.tolist()] if labels else [None] * len(weights)
    return list(zip(loss.tolist(), accuracies, strict=True))
