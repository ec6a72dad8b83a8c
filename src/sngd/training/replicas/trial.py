"""A trial of a problem: whether its models come out alike when they are batched as replicas."""

import torch
from torch import Tensor, nn

from sngd.problems import Problem
from sngd.problems.problem import Samples
from sngd.training.replicas.layers import without_hooks
from sngd.training.replicas.layout import apart
from sngd.training.replicas.losses import Batch, Losses

_SAMPLES = 3
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # relative, of a gradient


def reason_in_trial(problem: Problem) -> str | None:
    """Why runs on this problem cannot be replicas, as the end of a sentence; None if they can.

    Two models with different weights are tried on a few samples, together and one after the other. So this finds most
    of what makes a difference, also in a model or a loss of the user's own. It does not find what only other seeds or
    other samples show, such as a model that chooses its activation at random when it is built, or an ``augment``
    whose results differ in shape.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return _reason(problem)
        except Exception as error:  # a user's model may raise anything, and vmap has many reasons
            first_line = str(error).strip().partition("\n")[0]
            return f"torch.func.vmap cannot batch its model or loss ({first_line or type(error).__name__})"


def _reason(problem: Problem) -> str | None:
    models = [seeded(problem, seed) for seed in (0, 1)]
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
    before, chance = seeded(problem, 0), torch.get_rng_state()
    batches = [a_batch(problem, seed) for seed in (0, 1)]
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


def seeded(problem: Problem, seed: int) -> nn.Module:
    """A new model, of which torch's global random numbers are drawn with this seed."""
    torch.manual_seed(seed)
    return problem.build_model()


def a_batch(problem: Problem, seed: int) -> Samples:
    """A few of the first samples, or of the last ones if the seed is not 0, as a step would see them."""
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
