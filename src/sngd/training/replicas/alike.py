"""Which runs can be replicas, and how many of them gain by it."""

from collections.abc import Hashable
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sngd.problems import Problem
from sngd.problems.eval_mode import in_eval_mode
from sngd.training.config import RunConfig
from sngd.training.evaluate import chunk_size
from sngd.training.methods import BUILT_IN, CHUNK, Method, find_method
from sngd.training.replicas.trial import a_batch, not_batched, reason_in_trial, seeded

_OPERATIONS = 9e7  # of a forward pass: with more, less than a tenth of the time is saved
_MOST = 16  # more gain little, and their weights leave the cache
_MOST_ON_ACCELERATOR, _OPERATIONS_OF_ALL = 256, 2e10
_OPERATIONS_OF_CONVOLUTIONS, _LEAST_OF_CONVOLUTIONS = 1e7, 4
_OPERATIONS_IN_EVALUATION = 1e7
_FEW = 3  # samples, of which operations are counted
_NUMBERS = 2**27  # of all replicas' weights; a step needs about eight matrices of so many


def kind(config: RunConfig) -> Hashable:
    """Equal for runs that differ in seed, learning rate, parameters and label alone.

    All replicas evaluate chunks of as many samples: in chunks of other sizes, BatchNorm or a loss with weights of
    classes has another gradient.
    """
    return repr(replace(config, seed=0, lr=None, params={"chunk_size": _chunk_size(config)}, label=None))


def _chunk_size(config: RunConfig) -> int:
    return int(config.params.get(CHUNK.name, cast(float, CHUNK.default)))


class Limit(NamedTuple):
    """How many runs of one kind may be trained as one, at most and at least; if the first is 1, why."""

    most: int
    reason: str | None = None
    least: int = 2


def limit(config: RunConfig, problem: Problem) -> Limit:
    """How many runs of this kind gain by being replicas."""
    if not all(isinstance(part, Tensor) for part in (*problem.train, *(problem.test or ()))):
        return Limit(1, "its samples are read when they are needed")
    try:
        most = most_replicas(config, problem)
    except Exception as error:  # of a model that takes no hooks, for example
        return Limit(1, not_batched(error))
    if most == 1:
        return Limit(1, "a step is so much arithmetic that many at once gain nothing")
    if reason := reason_against(config, problem):
        return Limit(1, reason)
    return Limit(most, least=_LEAST_OF_CONVOLUTIONS if _convolves_on_cpu(config, problem) else 2)


def reason_against(config: RunConfig, problem: Problem) -> str | None:
    """Why runs of this kind cannot be replicas, as the end of a sentence; None if they can."""
    if config.precision != "float32":
        return f"its products are rounded to {config.precision}"
    if reason := reason_against_method(config.method):
        return reason
    if config.track is not None:
        return "--track measures each run by itself"
    return reason_in_trial(problem, min(config.batch_size_or_default, _chunk_size(config), problem.n))


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
    ``benchmarks/replicas.py`` measured them. Convolutions of several models at once take a slower way there, so that
    models with them gain only in small steps, and only four or more.

    On an accelerator the number is bounded by the arithmetic that keeps a large one busy for a millisecond. A step of
    64 small perceptrons took an H100 1.6 times as long as a step of one, and of 256 2.5 times (results/gpu.json).
    """
    batch = config.batch_size_or_default
    if find_method(config.method).estimate.cost_text == "n":
        batch = _chunk_size(config)
    cost = operations(problem, min(batch, problem.n))
    with torch.random.fork_rng(devices=[]):
        numbers = sum(param.numel() for param in seeded(problem, 0).parameters())
    if torch.device(config.device).type == "cpu":
        limit_of_cost = _OPERATIONS_OF_CONVOLUTIONS if _convolves_on_cpu(config, problem) else _OPERATIONS
        most = _MOST if cost <= limit_of_cost else 1
    else:
        most = min(_MOST_ON_ACCELERATOR, int(_OPERATIONS_OF_ALL / max(1.0, cost)))
    return max(1, min(most, _NUMBERS // numbers))


def _convolves_on_cpu(config: RunConfig, problem: Problem) -> bool:
    if torch.device(config.device).type != "cpu":
        return False
    with torch.random.fork_rng(devices=[]):
        return any(isinstance(module, _ConvNd) for module in seeded(problem, 0).modules())


def gains_in_evaluation(problem: Problem) -> bool:
    """Whether it takes less time to evaluate replicas through ``torch.func.vmap`` at once than one after the other.

    Many samples are evaluated at a time, so that on a CPU only the smallest models gain.
    """
    on_cpu = problem.train[0].device.type == "cpu"
    return not on_cpu or operations(problem, min(problem.n, chunk_size(*problem.train))) <= _OPERATIONS_IN_EVALUATION


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
        inputs, _ = a_batch(problem, _FEW)
        hooks = [module.register_forward_hook(count) for module in model.modules()]
        try:
            with in_eval_mode(model):
                problem.outputs(model, inputs)
        finally:  # modules may belong to other models too
            for hook in hooks:
                hook.remove()
    return total / len(inputs) * batch
