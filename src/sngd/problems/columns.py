"""Samples that are read when they are needed, from a ``Dataset`` that may be larger than memory.

``columns_of`` makes of it the inputs and the targets as two ``Column``s, which can be indexed, sliced and split as the
two tensors of a problem can. Which samples are read, and in which order, is for the reader to say. So runs on a
``Dataset`` draw, count and resume as runs on tensors do.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data import default_collate as collate_tensors

Pair = tuple[Tensor, Tensor]


class Column:
    """The inputs (part 0) or the targets (part 1) of samples of a dataset, with as much of a tensor as a run needs.

    A slice, or a tensor of indices in brackets, gives another ``Column``. An int in brackets, ``index_select``,
    ``split`` and ``tensor`` read samples.
    """

    def __init__(self, reader: "Reader", part: int, indices: Tensor, device: torch.device) -> None:
        self.reader, self.part, self.indices, self.device = reader, part, indices, device

    def __len__(self) -> int:
        return len(self.indices)

    def dim(self) -> int:
        return int(self[0].dim()) + 1

    def to(self, device: torch.device) -> "Column":
        return Column(self.reader, self.part, self.indices, device)

    def __getitem__(self, which: Any) -> Any:
        chosen = self.indices[which.cpu() if isinstance(which, Tensor) else which]
        if chosen.dim() == 0:
            return self._read(chosen[None])[0]
        return Column(self.reader, self.part, chosen, self.device)

    def index_select(self, _dim: int, indices: Tensor) -> Tensor:
        return self._read(self.indices[indices.cpu()])

    def split(self, size: int) -> Iterator[Tensor]:
        """One part after the other, each read when it is its turn."""
        return (self._read(indices) for indices in self.indices.split(size))

    def tensor(self) -> Tensor:
        """All of it."""
        return self._read(self.indices)

    def _read(self, indices: Tensor) -> Tensor:
        return self.reader.read(indices)[self.part].to(self.device)


class Reader:
    """Reads samples of a dataset by their indices. The last ones are kept: inputs and targets are asked for apart."""

    def __init__(self, dataset: Any, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate
        self._indices, self._samples = torch.empty(0, dtype=torch.int64), (torch.empty(0), torch.empty(0))

    def read(self, indices: Tensor) -> Pair:
        """Inputs and targets.

        Raises:
            TypeError: the dataset gives something else than pairs that collate to two tensors.
            ValueError: the tensors do not have as many samples as there are indices.
        """
        if len(indices) == 0 or not torch.equal(indices, self._indices):
            wanted = indices.tolist()
            several = getattr(self.dataset, "__getitems__", None)  # torch's own protocol of reading several at once
            self._samples = self._checked(self.collate(several(wanted) if several else list(map(self._one, wanted))))
            if any(len(part) != len(indices) for part in self._samples):
                counts = " and ".join(str(len(part)) for part in self._samples)
                raise ValueError(f"a batch of {len(indices)} samples of the dataset has {counts} inputs and targets")
            self._indices = indices
        return self._samples

    def _one(self, index: int) -> Any:
        return self.dataset[index]

    def _checked(self, samples: Any) -> Pair:
        if not isinstance(samples, tuple | list) or [isinstance(part, Tensor) for part in samples] != [True, True]:
            kinds = [type(part).__name__ for part in samples] if isinstance(samples, tuple | list) else samples
            got = ", ".join(kinds) if isinstance(kinds, list) else type(kinds).__name__
            raise TypeError(f"samples of a dataset must collate to two tensors (inputs, targets), got {got}")
        return samples[0], samples[1]


def columns_of(field: str, data: Any) -> Any:
    """Two columns of a ``Dataset``, or of a ``DataLoader``'s with its ``collate_fn``; other data as they are.

    Raises:
        ValueError: there is no sample of a given index, or the loader draws samples with other chances.
    """
    collate: Any = collate_tensors
    indexed = isinstance(data, Dataset)
    if isinstance(data, DataLoader):
        _check_loader(field, data)
        data, collate, indexed = data.dataset, data.collate_fn, True  # the dataset may be a list
    if isinstance(data, IterableDataset):
        raise ValueError(
            f"{field} is an IterableDataset, whose samples have no index: F(w) = (1/n) Σ f(w; a_i) could not be "
            "evaluated, nor a run resumed at the same sample; give a Dataset with __len__ and __getitem__"
        )
    if not indexed:
        return data
    if not hasattr(data, "__len__"):
        raise ValueError(f"{field} is a Dataset without __len__, which says how many samples there are")
    n = len(data)
    reader = Reader(data, collate)
    if n > 0:
        reader.read(torch.tensor([0]))  # an error now, with the user's own line, not in the middle of a run
    return tuple(Column(reader, part, torch.arange(n), torch.device("cpu")) for part in (0, 1))


def _check_loader(field: str, loader: DataLoader[Any]) -> None:
    """ValueError if runs, which draw by themselves, would draw otherwise than the loader does."""
    usual = RandomSampler, SequentialSampler
    if isinstance(loader.dataset, IterableDataset):
        return  # told by ``columns_of``
    if type(loader.sampler) not in usual or (loader.batch_sampler and type(loader.batch_sampler) is not BatchSampler):
        name = type(loader.sampler if type(loader.sampler) not in usual else loader.batch_sampler).__name__
        raise ValueError(
            f"{field} is a DataLoader with a {name}, which a run would not use, because it draws its batches itself: "
            "give a Dataset of the samples that it draws; chances of their own belong into the loss as weights"
        )


def materialized(samples: Any) -> Pair:
    """Inputs and targets as tensors, read if they are columns."""
    inputs, targets = (part.tensor() if isinstance(part, Column) else part for part in samples)
    return inputs, targets
