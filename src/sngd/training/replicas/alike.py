"""Which runs can be replicas, and how many of them gain by it."""

from collections.abc import Hashable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sngd.problems import Problem
from sngd.problems.problem import Samples
from sngd.training.config import RunConfig
from sngd.training.methods import BUILT_IN, Method, find_method
from sngd.training.replicas.layers import without_hooks
from sngd.training.replicas.layout import apart
from sngd.training.replicas.losses import Batch, Losses

_OPERATIONS = 9e7  # of a forward pass: with more, less than a tenth of the time is saved
_CHUNK = 512  # samples at a time of a gradient on all, unless the run says otherwise
_MOST = 16  # more gain little, and their weights leave the cache
_MOST_ON_ACCELERATOR, _OPERATIONS_OF_ALL = 256, 2e10
_NUMBERS = 2**27  # of all replicas' weights; a step needs about eight matrices of so many
_SAMPLES = 3  # of the trial
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # relative, of a gradient


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
    """Why runs of this kind cannot be replicas, as the end of a sentence; None if they can.

    Two models with different weights are tried on a few samples, together and one after the other. So this finds most
    of what makes a difference, also in a model or a loss of the user's own. It does not find what only other seeds or
    other samples show, such as a model that chooses its activation at random when it is built, or an ``augment``
    whose results differ in shape.
    """
    if config.precision != "float32":
        return f"its products are rounded to {config.precision}"
    if reason := reason_against_method(config.method):
        return reason
    if config.track is not None:
        return "--track measures each run by itself"
    with torch.random.fork_rng(devices=[]):
        try:
            return _reason_in_trial(problem)
        except Exception as error:  # a user's model may raise anything, and vmap has many reasons
            first_line = str(error).strip().partition("\n")[0]
            return f"torch.func.vmap cannot batch its model or loss ({first_line or type(error).__name__})"


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


def _reason_in_trial(problem: Problem) -> str | None:
    models = [_seeded(problem, seed) for seed in (0, 1)]
    params = list(models[0].parameters())
    if not all(param.requires_grad for param in params):
        return "some of its weights are not trained"
    if len({param.dtype for param in params}) > 1 or params[0].dtype not in _TOLERANCE:
        return "its weights are not all float32 or all float64"
    if not apart(params):
        return "some of its weights share memory, or do not lie in one piece"
    if not all(map(without_hooks, params)):
        return "some of its weights have hooks"
    if _differ(*models):
        return "its models have buffers that depend on the seed"
    before, chance = _seeded(problem, 0), torch.get_rng_state()
    batches = [_batch(problem, seed) for seed in (0, 1)]
    if not torch.equal(chance, torch.get_rng_state()):
        return "its augment draws from torch's global random numbers"
    alone = [_alone(problem, model, batch) for model, batch in zip(models, batches, strict=True)]
    if _differ(models[0], before):
        return "its model changes buffers while it trains, as BatchNorm does"
    if not torch.equal(chance, torch.get_rng_state()):
        return "its model draws random numbers while it trains, as dropout does"
    if alone[0] is None or alone[1] is None:
        return "its loss does not depend on some of its weights"  # to which weight decay is then not applied
    losses = Losses(problem, models[0])
    weights = losses.layout.matrix([list(model.parameters()) for model in models])
    together = torch.zeros_like(weights)
    inputs, targets = zip(*batches, strict=True)
    pieces = losses.layout.pieces(weights)
    losses.gradient(pieces, Batch(torch.stack(inputs), torch.stack(targets)), losses.layout.pieces(together))
    for model in models:
        model.eval()
    evaluated, _ = losses.losses(pieces, Batch(*batches[0], shared=True))
    expected = torch.stack([problem.mean_loss(model, batches[0]).detach() for model in models])
    if not (_alike(together, losses.layout.matrix(alone)) and _alike(evaluated, expected)):
        return "its losses or gradients come out differently when models are batched"
    return None


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal up to rounding."""
    error = torch.linalg.vector_norm(one - other)
    return bool(error <= _TOLERANCE[one.dtype] * torch.linalg.vector_norm(other))


def _seeded(problem: Problem, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return problem.build_model()


def _batch(problem: Problem, seed: int) -> Samples:
    inputs, targets = (part[-_SAMPLES:] if seed else part[:_SAMPLES] for part in problem.train)
    return problem.augmented((inputs, targets), torch.Generator().manual_seed(seed))


def _differ(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.buffers(), other.buffers(), strict=True)
    return not all(torch.equal(own, theirs) for own, theirs in pairs)


def _alone(problem: Problem, model: nn.Module, batch: Samples) -> list[Tensor] | None:
    """The gradient of one model's loss, by parameter; None if it does not depend on one of them."""
    gradients = torch.autograd.grad(problem.mean_loss(model, batch), list(model.parameters()), allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    return found if len(found) == len(gradients) else None


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
        numbers = sum(param.numel() for param in _seeded(problem, 0).parameters())
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
        model = _seeded(problem, 0)
        model.eval()  # which need not return the model, if it has a ``train`` of its own
        for module in model.modules():
            module.register_forward_hook(count)
        inputs, _ = _batch(problem, 0)
        problem.outputs(model, inputs)
    return total / len(inputs) * batch
