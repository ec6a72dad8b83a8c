"""How much arithmetic a model's evaluation is."""

import torch
from torch import Tensor, nn

from sngd.problems import Problem

_SAMPLES = 3  # that are evaluated


def operations(problem: Problem, batch: int) -> float:
    """Floating-point operations of a forward pass in the layers that multiply matrices, roughly.

    It evaluates a new model on the first samples, so that nothing of a run changes.
    """
    total = 0.0

    def count(module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        weights = [param for param in module.parameters(recurse=False) if param.dim() > 1]
        if weights and isinstance(output, Tensor) and not isinstance(module, nn.Embedding):
            total += 2 * output.numel() * weights[0][0].numel()

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = problem.build_model()
        model.eval()
        for module in model.modules():
            module.register_forward_hook(count)
        samples = problem.train[0][:_SAMPLES], problem.train[1][:_SAMPLES]
        inputs, _ = problem.augmented(samples, torch.Generator().manual_seed(0))
        problem.outputs(model, inputs)
    return total / len(inputs) * batch
