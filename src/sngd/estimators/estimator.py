"""The base of all gradient estimators: batches of any shape, the gradient at a point, the count of oracle calls."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sngd.checks import count
from sngd.state import check_keys, saved_count, trainable

Batch = Any  # a tensor, or tensors in tuples, lists and dicts; the first dimension of each counts samples
Loss = Callable[[Batch], Tensor]  # mean loss over a batch at the model's present weights, a scalar with a graph


class Estimator:
    """Fills ``p.grad`` of a model's trainable parameters with an estimate of ∇F(w), for any optimizer to use.

    In a loop of your own:

        batch = draw(estimator.next_batch_size)     # None: all samples
        loss = estimator.estimate(lambda batch: loss_fn(model(batch[0]), batch[1]), batch)
        optimizer.step()

    In a distributed run every rank has its own estimator and gives it its own samples, the same number on all ranks.
    ``loss`` calls the wrapped model, which averages gradients over the ranks. Batch sizes and oracle calls are those of
    one rank.

    Parameters may be frozen or unfrozen between two estimates, by ``requires_grad``. Frozen ones have no ``grad``.

    Examples:
        A ``DataLoader`` gives batches of one size, here 20. SPIDER's anchor takes 100 samples, five of them:

        >>> import torch
        >>> from itertools import count
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from sngd import SNGD
        >>> from sngd.estimators import Spider
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(1000, 5)
        >>> loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=20, shuffle=True, drop_last=True)
        >>> batches = (batch for _ in count() for batch in loader)  # pass after pass, without end
        >>> def draw(size):
        ...     parts = zip(*(next(batches) for _ in range(size // 20)))
        ...     return [torch.cat(part) for part in parts]
        >>> model = torch.nn.Linear(5, 2)
        >>> def loss(batch):
        ...     inputs, targets = batch
        ...     return torch.nn.functional.cross_entropy(model(inputs), targets)
        >>> estimator = Spider(model, anchor_batch_size=100, batch_size=20, period=10)
        >>> optimizer = SNGD(model.parameters(), lr=0.05)
        >>> for step in range(100):
        ...     batch = draw(estimator.next_batch_size)
        ...     value = optimizer.step(lambda: estimator.estimate(loss, batch))  # fills p.grad, returns the loss
        >>> bool(value < 0.2), estimator.oracle_calls
        (True, 4600)

        The closure makes one estimate each time it is called. So it is for optimizers that call it once a step, as all
        of torch's do but LBFGS.

    Attributes:
        oracle_calls: number of gradients ∇f(w; a), each of one sample at one point, evaluated so far on this rank.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.params, self._names = trainable(model)
        self._every = list(model.parameters())
        self._trained = [p.requires_grad for p in self._every]
        self.oracle_calls = 0

    @property
    def next_batch_size(self) -> int | None:
        """Number of samples that the next estimate takes; None means all of them."""
        raise NotImplementedError

    @property
    def next_cost(self) -> int:
        """Number of oracle calls of the next estimate."""
        raise NotImplementedError

    @property
    def mean_cost(self) -> float:
        """Mean number of oracle calls of an estimate over a period."""
        return self.next_cost

    def estimate(self, loss: Loss, batch: Batch) -> Tensor:
        """Set ``p.grad`` to the estimate at the present weights.

        Args:
            loss: maps a batch, or a part of it, to the mean loss over it.
            batch: ``next_batch_size`` samples: a tensor, or tensors in tuples, lists and dicts, whose first dimension
                counts samples.

        Returns:
            The mean loss over the batch at the present weights, detached.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a bit-for-bit continuation needs beside the weights. Like torch's, it refers to the live tensors."""
        return {"oracle_calls": self.oracle_calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; its tensors are copied to the parameters' dtypes, devices and placements.

        Raises:
            ValueError: an entry is missing, out of its range, or does not fit the model; nothing is changed then.
        """
        check_keys(state, "oracle_calls")
        self.oracle_calls = saved_count(state, "oracle_calls")

    def _follow_freezing(self) -> bool:
        """Let ``params`` be those that are trained now; returns whether some were frozen or unfrozen meanwhile."""
        trained = [p.requires_grad for p in self._every]
        if trained == self._trained:
            return False
        for param in self._every:  # an optimizer would go on to move a frozen one by the gradient that it has
            param.grad = None
        self.params, self._names = trainable(self.model)
        self._trained = trained
        return True

    def _backward(self, loss: Loss, batch: Batch, chunk_size: int | None = None) -> Tensor:
        """Set ``p.grad`` to the mean gradient over ``batch``, evaluated in chunks of ``chunk_size`` if it is larger."""
        self._follow_freezing()
        for param in self.params:
            param.grad = None
        n = size_of(batch)
        self.oracle_calls += n
        if chunk_size is None or n <= chunk_size:
            value = loss(batch)
            value.backward()
            return value.detach()
        values = []
        for chunk, size in chunks(batch, chunk_size):
            value = loss(chunk) * (size / n)
            value.backward()
            values.append(value.detach())
        return sum(values[1:], start=values[0])


def check_chunk_size(value: int | None) -> int | None:
    """``value`` as an int, or None as it is; ValueError if it is no whole number of at least 1."""
    return None if value is None else count("chunk_size", value)


def check_size_of(batch: Batch, name: str, size: int, advice: str = "") -> None:
    """ValueError if a batch has not the number of samples, ``size``, that the argument ``name`` gave."""
    if size_of(batch) != size:
        raise ValueError(f"batch must have {name} = {size} samples, got {size_of(batch)}{advice}")


def size_of(batch: Batch) -> int:
    """Number of samples in a batch."""
    return len(tree_leaves(batch)[0])


def chunks(batch: Batch, size: int) -> Iterator[tuple[Batch, int]]:
    """Parts of ``size`` samples, the last one perhaps smaller, each with its size."""
    for start in range(0, size_of(batch), size):
        chunk = tree_map(lambda part, start=start: part[start : start + size], batch)
        yield chunk, size_of(chunk)
