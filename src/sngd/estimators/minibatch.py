"""The plain estimators: the mean gradient over a mini-batch, and over all samples."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class MiniBatch:
    """g = (1/b) Σ ∇f(w; a) over the batch: ``b`` oracle calls.

        >>> estimator = MiniBatch(batch_size=128)
        >>> loss = estimator.estimate(lambda batch: loss_fn(model(x[batch]), y[batch]), indices)  # doctest: +SKIP
        >>> optimizer.step()  # doctest: +SKIP

    Args:
        params: parameters whose ``.grad`` is filled.
        batch_size: b ≥ 1.

    Raises:
        ValueError: batch_size is not a whole number of at least 1.
    """

    def __init__(self, params: Iterable[Tensor], batch_size: int) -> None:
        if batch_size != int(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size}")
        self.params = list(params)
        self.next_batch_size = int(batch_size)  # samples that the next estimate wants
        self.oracle_calls = 0  # ∇f(w; a) evaluated so far

    @property
    def next_cost(self) -> int:
        """Oracle calls that the next estimate makes."""
        return self.next_batch_size

    def estimate(self, loss: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Fill ``.grad`` with the mean gradient over ``batch``.

        Args:
            loss: maps a batch to the mean loss over it, a scalar with a graph.
            batch: whatever ``loss`` takes; its first dimension counts samples.

        Returns:
            The loss, detached.
        """
        _clear(self.params)
        value = loss(batch)
        value.backward()
        self.oracle_calls += len(batch)
        return value.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"oracle_calls": self.oracle_calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.oracle_calls = state["oracle_calls"]


class Full(MiniBatch):
    """g = ∇F(w) over all ``n`` samples, taken in chunks so that it fits in memory: ``n`` oracle calls.

    Args:
        params: parameters whose ``.grad`` is filled.
        n: number of samples, ≥ 1.
        chunk_size: samples evaluated at a time, ≥ 1.
    """

    def __init__(self, params: Iterable[Tensor], n: int, chunk_size: int = 4096) -> None:
        super().__init__(params, n)
        self.chunk_size = chunk_size

    def estimate(self, loss: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        _clear(self.params)
        total = torch.zeros((), device=batch.device)
        for chunk in batch.split(self.chunk_size):
            value = loss(chunk) * (len(chunk) / len(batch))
            value.backward()
            total = total + value.detach()
        self.oracle_calls += len(batch)
        return total


def _clear(params: list[Tensor]) -> None:
    for param in params:
        param.grad = None
