"""Which runs can be replicas, and how many of them gain by it."""

from collections.abc import Hashable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sngd.problems import Problem
from sngd.training.config import RunConfig
from sngd.training.methods import BUILT_IN, Method, find_method
from sngd.training.replicas.trial import a_batch, reason_in_trial, seeded

_OPERATIONS = 9e7  # of a forward pass: with more, less than a tenth of the time is saved
_CHUNK = 512  # samples at a time of a gradient on all, unless the run says otherwise
_MOST = 16  # more gain little, and their weights leave the cache
_MOST_ON_ACCELERATOR, _OPERATIONS_OF_ALL = 256, 2e10
_NUMBERS = 2**27  # of all replicas' weights; a step needs about eight matrices of so many


def kind(config: RunConfig) -> Hashable:
    """Equal for runs that differ in seed, learning rate, parameters and label alone."""
    return repr(replace(config, seed=0, lr=None, params={}, label=None))


class Limit(NamedTuple):
    """How many runs of one kind may be trained as one; if it is 1, why."""

    most: int
    reason: str | None = None


def limit(config: RunConfig, problem: Problem) -> Limit:
    """How many runs of this kind gain by being replicas."""
    if not isinstance(problem.train[0], Tensor):
        return Limit(1, "its samples are read when they are needed")
    most = most_replicas(config, problem)
    if most == 1:
        return Limit(1, "a step is so much arithmetic that many at once gain nothing")
    reason = reason_against(config, problem)
    return Limit(1 if reason else most, reason)


def reason_against(config: RunConfig, problem: Problem) -> str | None:
    """Why runs of this kind cannot be replicas, as the end of a sentence; None if they can."""
    if config.precision != "float32":
        return f"its products are rounded to {config.precision}"
    if reason := reason_against_method(config.method):
        return reason
    if config.track is not None:
        return "--track measures each run by itself"
    return reason_in_trial(problem)


def reason_against_method(name: str) -> str | None:
    """Why replicas cannot take this method's steps."""
    method = find_method(name)
    if type(method) is not Method:
        return f"{name} has a loop of its own"
    if not any(method.estimate is own.estimate for own in BUILT_IN):
        return f"{name} has an estimator of its own"
    if not any(method.step_rule is own.step_rule for own in BUILT_IN):
        return f"{name} has a step rule of its own"
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return "hooks are registered for the steps of all optimizers"
    return None


def most_replicas(config: RunConfig, problem: Problem) -> int:
    """The number of replicas up to which a step of each takes less time; 1 if there is none.

    On a CPU, replicas share the time that Python and torch take to start an operation, about half a millisecond a
    step. So they gain where the arithmetic of a step takes no longer than a few milliseconds. ``results/replicas.json``
    has the ratios that the limit follows from, of a step as one of 2, 4, 8 and 16 replicas to a step by itself, as
    ``benchmarks/replicas.py`` measured them.

    On an accelerator the number is bounded by the arithmetic that keeps a large one busy for a millisecond. A step of
    64 small perceptrons took an H100 1.6 times as long as a step of one, and of 256 2.5 times (results/gpu.json).
    """
    batch = config.batch_size_or_default
    if find_method(config.method).estimate.cost_text == "n":
        batch = int(config.params.get("chunk_size", _CHUNK))
    cost = operations(problem, min(batch, problem.n))
    with torch.random.fork_rng(devices=[]):
        numbers = sum(param.numel() for param in seeded(problem, 0).parameters())
    if torch.device(config.device).type == "cpu":
        most = _MOST if cost <= _OPERATIONS else 1
    else:
        most = min(_MOST_ON_ACCELERATOR, int(_OPERATIONS_OF_ALL / max(1.0, cost)))
    return max(1, min(most, _NUMBERS // numbers))


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
        model = seeded(problem, 0)
        model.eval()  # which need not return the model, if it has a ``train`` of its own
        for module in model.modules():
            module.register_forward_hook(count)
        inputs, _ = a_batch(problem, 0)
        problem.outputs(model, inputs)
    return total / len(inputs) * batch
