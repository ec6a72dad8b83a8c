"""Products with the Hessian of a loss through ``torch.compile``, for convolutional networks in half of the time."""

import copy
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from sngd.diagnose.objective import Objective
from sngd.estimators.estimator import Batch, chunks, size_of

Params = dict[str, Tensor]

_TOLERANCE = 0.01  # relative, of a product: a ReLU on whose edge rounding decides changes more than the last digits


class CompiledHessian:
    """∇²F(w)v is the derivative along v of the gradient (forward over reverse), which one compiled function computes.

    BatchNorm normalizes each chunk by itself, and its running statistics stay as they are. It compiles at the first
    product, in up to a minute, once for all models that differ in their weights alone.

    Args:
        model: the network, all of whose weights are trained; they are not kept.
        loss: maps the network, as a function of its inputs, and a batch to the mean loss.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Callable[[Tensor], Tensor], Batch], Tensor]) -> None:
        self._model, self._loss = copy.deepcopy(model), loss
        torch.func.replace_all_batch_norm_modules_(self._model)
        self._product = torch.compile(self._derivative, dynamic=False)

    def __call__(self, objective: Objective, batch: Batch, vector: Tensor) -> Tensor:
        """``objective.hessian_vector(vector, batch)``, at the weights of its model, another such network."""
        names = [name for name, p in objective.model.named_parameters() if p.requires_grad]
        params = dict(zip(names, (p.detach() for p in objective.params), strict=True))
        along = dict(zip(names, objective.split(vector), strict=True))
        n = size_of(batch)
        products = (
            size / n * torch.cat([part.reshape(-1) for part in self._product(params, along, chunk)])
            for chunk, size in chunks(batch, objective.chunk_size)
        )
        return reduce(torch.add, products)

    def reason_against(self, objective: Objective, batch: Batch) -> str | None:
        """Why these products cannot be used, as the end of a sentence; None if one of a chunk comes out as it should.

        Another loss, chance in the model, or buffers that it changes make a difference.
        """
        some, _ = next(chunks(batch, objective.chunk_size))
        vector = torch.randn(objective.dim, generator=torch.Generator().manual_seed(0)).to(objective.device)
        try:
            ours = self(objective, some, vector)
        except Exception as error:  # a compiler that is absent or fails may raise anything
            return f"they cannot be compiled ({str(error).strip().partition(chr(10))[0] or type(error).__name__})"
        theirs = objective.hessian_vector(vector, some)
        alike = torch.linalg.vector_norm(ours - theirs) <= _TOLERANCE * torch.linalg.vector_norm(theirs)
        return None if alike else "they come out differently when they are compiled"

    def _derivative(self, params: Params, along: Params, chunk: Batch) -> Sequence[Tensor]:
        def loss(at: Params) -> Tensor:
            return self._loss(lambda inputs: functional_call(self._model, at, (inputs,)), chunk)

        _, derivatives = jvp(grad(loss), (params,), (along,))[:2]
        return [*derivatives.values()]
