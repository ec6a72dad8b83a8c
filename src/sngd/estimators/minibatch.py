"""The plain estimators: the mean gradient over a mini-batch, and over all samples."""

from torch import Tensor, nn

from sngd.checks import count
from sngd.estimators.estimator import Batch, Estimator, Loss, check_chunk_size, check_size_of


class MiniBatch(Estimator):
    """g = (1/b) Σ ∇f(w; a) over the batch. It costs ``batch_size`` oracle calls, or fewer for a short last batch.

    Args:
        model: its trainable parameters' ``.grad`` is filled.
        batch_size: b ≥ 1.

    Raises:
        ValueError: batch_size is no whole number of at least 1.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        super().__init__(model)
        self.batch_size = count("batch_size", batch_size)

    @property
    def next_batch_size(self) -> int:
        return self.batch_size

    @property
    def next_cost(self) -> int:
        return self.batch_size

    def estimate(self, loss: Loss, batch: Batch) -> Tensor:
        return self._backward(loss, batch)


class Full(Estimator):
    """g = ∇F(w) over all ``n`` samples, at once or in chunks. It costs ``n`` oracle calls.

    Args:
        model: its trainable parameters' ``.grad`` is filled.
        n: number of samples, ≥ 1.
        chunk_size: samples evaluated at a time, ≥ 1; None: all at once. Chunks take less memory and give the same
            gradient up to rounding, unless the model mixes samples: BatchNorm in training mode normalizes each chunk by
            itself, which gives another gradient (2 % away on a ResNet8 with chunks of 512 of 2048 samples), and updates
            its running statistics once a chunk.

    Raises:
        ValueError: n or chunk_size is no whole number of at least 1.
    """

    def __init__(self, model: nn.Module, n: int, chunk_size: int | None = None) -> None:
        super().__init__(model)
        self.n = count("n", n)
        self.chunk_size = check_chunk_size(chunk_size)

    @property
    def next_batch_size(self) -> None:
        return None

    @property
    def next_cost(self) -> int:
        return self.n

    def estimate(self, loss: Loss, batch: Batch) -> Tensor:
        check_size_of(batch, "n", self.n)
        return self._backward(loss, batch, self.chunk_size)
