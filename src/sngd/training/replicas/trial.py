"""A trial of a problem: whether its models come out alike when they are batched as replicas."""

import random
from collections.abc import Callable, Mapping, Sequence
from types import NoneType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules  # whose private names are listed in tests/test_architecture.py
from torch.overrides import TorchFunctionMode

from sngd.problems import Problem
from sngd.problems.eval_mode import in_eval_mode
from sngd.problems.problem import Samples
from sngd.training.replicas.layers import without_hooks
from sngd.training.replicas.layout import apart
from sngd.training.replicas.losses import Batch, Losses

_GLOBAL_HOOKS = torch_modules._global_backward_hooks, torch_modules._global_backward_pre_hooks
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative, of losses and gradients
_DIFFERENT = "its losses or gradients come out differently when models are batched"


def reason_in_trial(problem: Problem, size: int) -> str | None:
    """Why runs on this problem with batches of ``size`` samples cannot be replicas; None if they can.

    Two models with different weights are tried on a batch, together and one after the other. So this finds most of what
    makes a difference, also in a model or a loss of the user's own. It does not find what only other seeds or other
    samples show, such as a model that chooses its activation at random when it is built, an ``augment`` whose results
    differ in shape, or an embedding in scripted code whose ``padding_idx`` these samples do not have.

    Returns:
        The end of a sentence.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return _reason_of_weights(problem) or _reason_of_passes(problem, size)
        except Exception as error:  # a user's model may raise anything, and vmap has many reasons
            return not_batched(error)


def not_batched(error: Exception) -> str:
    """The end of a sentence that says so."""
    first_line = str(error).strip().partition("\n")[0]
    return f"torch.func.vmap cannot batch its model or loss ({first_line or type(error).__name__})"


def seeded(problem: Problem, seed: int) -> nn.Module:
    """A new model, of which torch's global random numbers are drawn with this seed."""
    torch.manual_seed(seed)
    return problem.build_model()


def a_batch(problem: Problem, size: int, seed: int = 0) -> Samples:
    """The first samples, or the last ones if the seed is not 0, as a step would see them."""
    inputs, targets = (part[-size:] if seed else part[:size] for part in problem.train)
    return problem.augmented((inputs.clone(), targets.clone()), torch.Generator().manual_seed(seed))


def _reason_of_weights(problem: Problem) -> str | None:
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
    if any(_GLOBAL_HOOKS) or any(map(_looks_at_gradients, models[0].modules())):
        return "hooks on modules' gradients are registered"
    if not all(map(torch.equal, models[0].buffers(), models[1].buffers())):
        return "its models have buffers that depend on the seed"
    return None


def _reason_of_passes(problem: Problem, size: int) -> str | None:
    models, chance = [seeded(problem, seed) for seed in (0, 1)], _chance()
    batches = [a_batch(problem, size, seed) for seed in (0, 1)]
    if _chance() != chance:
        return "its augment draws from global random numbers"
    buffers, attributes = _state_of_buffers(models[0]), _attributes(models[0])
    with (watch := _Watch()):
        tried = [_losses_and_gradients(problem, model, batch) for model, batch in zip(models, batches, strict=True)]
    if watch.reason:
        return watch.reason
    if _state_of_buffers(models[0]) != buffers:
        return "its model changes buffers while it trains, as BatchNorm does"
    if _chance() != chance:
        return "its model draws random numbers while it trains, as dropout does"
    if any(gradient is None for _, gradients in tried for gradient in gradients):
        return "its loss does not depend on some of its weights"  # to which weight decay is then not applied
    with in_eval_mode(models[0]), in_eval_mode(models[1]):
        evaluated = [_losses_and_gradients(problem, model, batches[0]) for model in models]
    if _state_of_buffers(models[0]) != buffers:
        return "its model changes buffers while it is evaluated"
    if _attributes(models[0]) != attributes:
        return "its model changes attributes of its own, as a count of batches"
    inputs, targets = (torch.stack(part) for part in zip(*batches, strict=True))
    if not _come_out_alike(problem, models, Batch(inputs, targets), tried):
        return _DIFFERENT
    with in_eval_mode(models[0]):
        return None if _come_out_alike(problem, models, Batch(*batches[0], shared=True), evaluated) else _DIFFERENT


def _losses_and_gradients(problem: Problem, model: nn.Module, batch: Samples) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss of one model and its gradient by parameter, None if it does not depend on one of them."""
    loss = problem.mean_loss(model, batch)
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def _come_out_alike(
    problem: Problem, models: Sequence[nn.Module], batch: Batch, alone: Sequence[tuple[Tensor, Sequence[Tensor | None]]]
) -> bool:
    """Whether the batched models have the losses and gradients that they have one by one."""
    losses = Losses(problem, models[0])
    layout, params = losses.layout, [list(model.parameters()) for model in models]
    pieces, together = layout.pieces(layout.matrix(params)), layout.matrix([None] * len(models))
    beside_gradients = losses.gradient(pieces, batch, layout.pieces(together))()
    by_themselves, _ = losses.losses(pieces, batch)
    expected = torch.stack([loss for loss, _ in alone])
    gradients = layout.matrix([_filled(own, like) for (_, own), like in zip(alone, params, strict=True)])
    return _alike(beside_gradients, expected) and _alike(by_themselves, expected) and _alike(together, gradients)


def _filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Zeros in the place of None."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like, strict=True)]


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal up to rounding."""
    error = torch.linalg.vector_norm(one - other)
    return bool(error <= _TOLERANCE[one.dtype] * torch.linalg.vector_norm(other))


def _chance() -> object:
    """The states of all global generators of random numbers on the CPU."""
    of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is asked about
    return torch.get_rng_state().tolist(), random.getstate(), repr(of_numpy), of_numpy["state"]["key"].tolist()


def _state_of_buffers(model: nn.Module) -> list[tuple[int, int]]:
    """Other ones if a buffer is written, or another tensor takes its place, even if all numbers are the same."""
    return [(id(buffer), buffer._version) for buffer in model.buffers()]


def _attributes(model: nn.Module) -> str:
    """The numbers, words and switches among the attributes of its modules, as text."""
    plain = (bool, int, float, str, NoneType)
    return repr([{k: v for k, v in vars(module).items() if isinstance(v, plain)} for module in model.modules()])


def _looks_at_gradients(module: nn.Module) -> bool:
    """Whether a function of a user's looks at the gradients of its inputs or outputs."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


class _Watch(TorchFunctionMode):
    """Sees calls inside it that torch.func.vmap leaves out, or does in another way, without an error.

    It calls no hooks of activations, which in it do not require gradients. An embedding's padding_idx is heeded in the
    first model alone.

    Attributes:
        reason: what was seen, as the end of a sentence.
    """

    reason: str | None = None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook):
            self.reason = "its model registers hooks on tensors"
        if func in (nn.functional.embedding, torch.embedding):
            padding = kwargs.get("padding_idx", args[2] if len(args) > 2 else None)
            if padding is not None and not (func is torch.embedding and padding == -1):  # its word for none
                self.reason = "it has embeddings with a padding_idx"
        return func(*args, **kwargs)
