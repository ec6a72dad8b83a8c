"""F(w) at a model's weights, for measurements: repeatable gradients and Hessian-vector products, counted in calls."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sngd.checks import count
from sngd.estimators.estimator import Batch, Loss, chunks, size_of
from sngd.estimators.replay import at_weights, buffers_kept


class Objective:
    """F(w) = (1/n) Σ f(w; a_i) over ``samples``, at the model's present weights.

    It is a *function*: evaluated twice at the same weights on the same samples it gives the same gradient, because
    every evaluation starts from the same random state (dropout masks) and undoes what it does to buffers (BatchNorm's
    statistics). The model, its mode, its ``.grad`` and torch's generators are left as they were.

    Args:
        model: its trainable parameters are w. Its mode counts: in training mode BatchNorm normalizes each chunk by
            itself, in eval mode by its running statistics.
        loss: maps a batch to the mean loss over it, as an estimator's ``loss``.
        samples: all n samples: a tensor, or tensors in tuples, lists and dicts, whose first dimension counts samples.
        chunk_size: samples evaluated at a time, ≥ 1.
        seed: of the random state that evaluations start from; change it for other masks.

    Attributes:
        params: the d trainable numbers, in tensors.
        oracle_calls: ∇f(w; a) evaluated so far; a Hessian-vector product counts as two.

    Raises:
        ValueError: chunk_size is no whole number of at least 1, or the model has nothing to train.
    """

    def __init__(self, model: nn.Module, loss: Loss, samples: Batch, *, chunk_size: int = 512, seed: int = 0) -> None:
        self.model, self.loss, self.samples, self.seed = model, loss, samples, seed
        self.chunk_size = count("chunk_size", chunk_size)
        self.params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        if not self.params:
            raise ValueError("model has no trainable parameters, must have at least one")
        self.oracle_calls = 0

    @property
    def n(self) -> int:
        """Number of samples."""
        return size_of(self.samples)

    @property
    def dim(self) -> int:
        """d, number of weights."""
        return sum(p.numel() for p in self.params)

    @property
    def device(self) -> torch.device:
        return self.params[0].device

    def batch(self, indices: Tensor) -> Batch:
        """The samples at ``indices``, an int64 tensor of shape (size,)."""
        return tree_map(lambda part: part.index_select(0, indices.to(part.device)), self.samples)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """``size`` ≤ n different samples, drawn uniformly by a CPU generator."""
        return self.batch(torch.randperm(self.n, generator=generator, device="cpu")[:size])

    def gradient(self, batch: Batch | None = None) -> Tensor:
        """Mean gradient over ``batch`` (None: all samples), of shape (d,): one oracle call a sample."""
        return self._mean(self._gradient, self.samples if batch is None else batch, calls=1)

    def hessian_vector(self, vector: Tensor, batch: Batch | None = None) -> Tensor:
        """∇²F(w) v over ``batch`` (None: all samples), v and result of shape (d,): two oracle calls a sample."""
        parts = self.split(vector)
        return self._mean(
            lambda chunk: self._hessian_vector(chunk, parts), self.samples if batch is None else batch, calls=2
        )

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector of shape (d,) as tensors of the parameters' shapes."""
        pieces = vector.split([p.numel() for p in self.params])
        return [piece.view_as(p).to(p.dtype) for piece, p in zip(pieces, self.params, strict=True)]

    @contextmanager
    def moved(self, offset: Tensor) -> Iterator[None]:
        """Inside, the weights are w + offset; afterwards w again, bit for bit."""
        target = [p.detach() + part for p, part in zip(self.params, self.split(offset), strict=True)]
        with at_weights(self.params, target):
            yield

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """Inside, random generators start from ``seed``; afterwards generators and buffers are as they were."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), buffers_kept(self.model):
            torch.default_generator.manual_seed(self.seed)
            for device in cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self.seed)
            yield

    def _mean(self, evaluate: Callable[[Batch], Sequence[Tensor]], batch: Batch, calls: int) -> Tensor:
        n = size_of(batch)
        self.oracle_calls += calls * n
        total = torch.zeros(self.dim, dtype=_dtype(self.params), device=self.device)
        with self.repeatable(), torch.enable_grad():
            for chunk, size in chunks(batch, self.chunk_size):
                total += (size / n) * torch.cat([part.reshape(-1) for part in evaluate(chunk)]).to(total)
        return total

    def _gradient(self, chunk: Batch) -> Sequence[Tensor]:
        return torch.autograd.grad(self.loss(chunk), self.params, materialize_grads=True)

    def _hessian_vector(self, chunk: Batch, vector: Sequence[Tensor]) -> Sequence[Tensor]:
        gradient = torch.autograd.grad(self.loss(chunk), self.params, create_graph=True, materialize_grads=True)
        slope = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
        if not (isinstance(slope, Tensor) and slope.requires_grad):  # F is linear
            return [torch.zeros_like(p) for p in self.params]
        return torch.autograd.grad(slope, self.params, materialize_grads=True)


def _dtype(params: Sequence[Tensor]) -> torch.dtype:
    """The widest of the parameters' types, float32 at least: sums over chunks must not be lost in half precision."""
    dtype = torch.float32
    for p in params:
        dtype = torch.promote_types(dtype, p.dtype)
    return dtype
