"""The measurements of a row of metrics: losses, accuracies, and ‖∇F(w)‖, the stationarity gap."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sngd.norms import Product
from sngd.norms.global_norm import global_norm
from sngd.problems import Problem
from sngd.problems.eval_mode import in_eval_mode
from sngd.problems.problem import classifies
from sngd.training.ranks import ALONE, Ranks

Measured = dict[str, float | None]

# Input numbers evaluated at a time, and 4096 targets at most: few samples of them if they are large. A processor's
# cache is small, and a convolution's outputs are several times its images; on an accelerator it is the number of
# operations that takes time.
CHUNK, CHUNK_OF_IMAGES, CHUNK_ON_ACCELERATOR = 2**19, 2**17, 2**21


def evaluate(
    problem: Problem,
    model: nn.Module,
    *,
    grad_norm: bool = True,
    norm: Product | None = None,
    ranks: Ranks = ALONE,
) -> Measured:
    """Measure ``model`` in eval mode on all of the problem's data, each rank on its share.

    Args:
        problem: its ``train`` and ``test`` are evaluated.
        model: on the data's device.
        grad_norm: whether to measure ‖∇F(w)‖.
        norm: of the steps. For another norm than ‖·‖₂, ‖∇F(w)‖* is measured too, with spectral norms by SVD.
        ranks: among which the samples are divided.

    Returns:
        ``train_loss`` F(w) and ``test_loss`` (means over samples, without weight decay), ``train_accuracy`` and
        ``test_accuracy`` (fractions of the labels, in [0, 1]), ``grad_norm`` ‖∇F(w)‖ over the training set, and
        ``dual_grad_norm`` ‖∇F(w)‖* if there is another ``norm``. A value is
        None if the problem does not have it (no test set, targets that are no classes) or if it was not asked for.
        Gradients, random state and training mode are left as they were. Nothing here counts as an oracle call.
    """
    with in_eval_mode(model):
        train_loss, train_accuracy, gradients = _measure(
            problem, model, *problem.train, gradient=grad_norm, ranks=ranks
        )
        test_loss, test_accuracy, _ = (
            (None, None, [])
            if problem.test is None
            else _measure(problem, model, *problem.test, gradient=False, ranks=ranks)
        )
    losses = {
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
    }
    return losses | gradient_norms(gradients if grad_norm else None, norm)


def gradient_norms(gradients: Sequence[Tensor] | None, norm: Product | None) -> Measured:
    """``grad_norm`` and, in another ``norm`` than ‖·‖₂, ``dual_grad_norm``; None without gradients."""
    norms: Measured = {"grad_norm": None if gradients is None else global_norm(gradients).item()}
    if norm is not None and not norm.is_euclidean:
        norms["dual_grad_norm"] = None if gradients is None else norm.exact.dual(gradients).item()
    return norms


def chunk_size(inputs: Tensor, targets: Tensor) -> int:
    """Samples evaluated at a time, so that memory is bounded."""
    on_cpu = CHUNK_OF_IMAGES if inputs.dim() == 4 else CHUNK
    chunk = on_cpu if inputs.device.type == "cpu" else CHUNK_ON_ACCELERATOR
    return max(64, min(4096 // max(1, targets[0].numel()), chunk // max(1, inputs[0].numel())))


def _measure(
    problem: Problem, model: nn.Module, inputs: Tensor, targets: Tensor, *, gradient: bool, ranks: Ranks
) -> tuple[float | None, float | None, list[Tensor]]:
    """Loss, accuracy and, if asked, the loss's gradient."""
    n, own = len(inputs), ranks.share(len(inputs))
    chunk = chunk_size(inputs, targets)
    params = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) for p in params]
    loss = torch.zeros((), dtype=torch.float64, device=inputs.device)
    correct, labels = torch.zeros(2, dtype=torch.int64, device=inputs.device)
    with torch.set_grad_enabled(gradient):
        for x, y in zip(inputs[own].split(chunk), targets[own].split(chunk), strict=True):
            if len(x) == 0:
                continue
            share = len(x) / n
            outputs = problem.outputs(model, x)
            value = problem.loss(outputs, y)
            loss += value.detach().double() * share
            if classifies(outputs, y):
                correct += (outputs.detach().max(-1).indices == y).sum()  # argmax takes longer
                labels += y.numel()
            if gradient:
                parts = torch.autograd.grad(value * share, params, allow_unused=True)
                for total, part in zip(gradients, parts, strict=True):
                    if part is not None:
                        total += part
    loss, correct, labels, *gradients = ranks.sum([loss, correct, labels, *(gradients if gradient else ())])
    return (
        loss.item(),
        correct.item() / labels.item() if labels else None,
        gradients,
    )
