"""A problem: the model, the loss and the samples that make F(w) = (1/n) Σ_i f(w; a_i)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sngd.problems.augment import Variation
from sngd.problems.columns import Column, columns_of

Samples = tuple[Tensor, Tensor]
CHUNK = 4096  # samples looked at together


class DataError(ValueError):
    """A data file that is absent, cannot be read or holds what it must not."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, a loss and samples: everything that a method needs to be run on it.

    Args:
        build_model: builds a *new* model with freshly drawn weights at each call; takes no arguments.
        loss: maps the model's outputs and the targets of a batch to the scalar *mean* over that batch.
        train: inputs and targets, two tensors whose first dimension counts the n samples. Or a
            ``torch.utils.data.Dataset`` of pairs, which may be larger than memory, or a ``DataLoader`` of one; see
            below.
        test: the same for held-out samples, or None.
        name: what tables and pictures call it.
        augment: random variation of a batch's inputs, or None: maps inputs and a generator to as many inputs,
            on the same device. If other inputs have other targets, it returns the pair (inputs, targets); the
            targets must then follow from the stored inputs, as the next characters follow from a piece of text.
            Drawn once a step and for training only; every evaluation of that step, at whatever weights, uses
            the same result. `sngd.problems.augment` has one for images, `sngd.problems.shakespeare` one for text.
        prepare: a fixed function from stored (and augmented) inputs to the inputs that the model takes, for
            instance bytes to normalized floats, or None if they are the same. Applied at every evaluation, in
            training and test, on the inputs' device.

    A ``Dataset`` has ``__len__`` and ``__getitem__``, and gives the same pair for the same index at every call: random
    variation belongs into `augment`, so that it can be repeated. Its samples are read when they are needed, in the
    process of the run, and never all at once: mini-batches as they are drawn, evaluations and full batches in chunks.
    Batches, oracle calls and resuming are those of a problem with tensors, bit for bit. Of a ``DataLoader`` the dataset
    and the ``collate_fn`` are used. Its batch size, order (shuffled or not) and workers are not, because a run draws
    its batches itself, by --batch-size and --sampling. A loader of an ``IterableDataset``, or with a sampler that gives
    samples other chances, is refused.

    All tensors are on the CPU; the engine moves them to its device once. When the targets are integers and the
    model's outputs have one dimension more, they are taken for class labels and for one score a class: then
    accuracy is reported too, see `classifies`.

    Raises:
        TypeError: for a field of the wrong type, or a dataset whose samples are no pairs of tensors.
        ValueError: for samples that are none, or not as many targets as inputs.

    Example, least squares in ten variables:

        x = torch.randn(100, 10)
        Problem(lambda: nn.Linear(10, 1), nn.functional.mse_loss, train=(x, x.sum(1, keepdim=True)))
    """

    build_model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    train: Any  # Samples, or two columns that stand for them
    test: Any = None
    name: str = ""
    augment: Callable[[Tensor, torch.Generator], Tensor | Samples] | None = None
    prepare: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        # A built model and the class of a loss are callable too, and are easily given by mistake.
        if isinstance(self.build_model, nn.Module) or not callable(self.build_model):
            raise TypeError(
                f"build_model must be a function that builds a new nn.Module, got {_kind(self.build_model)}"
            )
        if isinstance(self.loss, type) or not callable(self.loss):
            raise TypeError(f"loss must be a function of (outputs, targets), got {_kind(self.loss)}")
        object.__setattr__(self, "train", columns_of("train", self.train))
        object.__setattr__(self, "test", columns_of("test", self.test))
        _check_samples("train", self.train)
        if self.test is not None:
            _check_samples("test", self.test)
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a str, got {_kind(self.name)}")
        if isinstance(self.augment, type) or not (self.augment is None or callable(self.augment)):
            raise TypeError(f"augment must be a function of (inputs, generator), or None, got {_kind(self.augment)}")
        if isinstance(self.prepare, type) or not (self.prepare is None or callable(self.prepare)):
            raise TypeError(f"prepare must be a function of inputs, or None, got {_kind(self.prepare)}")

    @property
    def n(self) -> int:
        """Number of training samples."""
        return len(self.train[0])

    def chosen(self, indices: Tensor) -> Any:
        """The training samples with these indices, a tensor on the samples' device; columns stay columns."""
        inputs, targets = self.train
        return inputs.index_select(0, indices), targets.index_select(0, indices)

    def outputs(self, model: Callable[[Tensor], Any], inputs: Tensor) -> Any:
        """What ``model`` gives for inputs as they are stored; ``prepare`` comes first, if there is one."""
        return model(self.prepared(inputs))

    def mean_loss(self, model: Callable[[Tensor], Any], samples: Samples) -> Tensor:
        """``loss`` of what ``model`` gives for the samples' inputs, see `outputs`; the samples are tensors."""
        inputs, targets = samples
        return self.loss(self.outputs(model, inputs), targets)

    def prepared(self, inputs: Tensor) -> Tensor:
        """The model's inputs, made of inputs as they are stored."""
        return inputs if self.prepare is None else self.prepare(inputs)

    def augmented(self, samples: Any, generator: torch.Generator) -> Samples:
        """Training samples as `augment` varies them; without it, as they are."""
        if self.augment is None:
            return cast(Samples, samples)
        inputs = samples[0]
        if isinstance(inputs, Column):
            raise ValueError("augment varies mini-batches of a Dataset, and all its samples were asked for at once")
        if isinstance(stored := self.train[0], Tensor):
            shared = inputs.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
            inputs = inputs.clone() if shared else inputs  # `augment` may work in place
        return _with_targets(self.augment(inputs, generator), samples)

    def drawn(self, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """The random numbers of `augmented` for inputs of this shape; None if there are none.

        `augment` must be None or a `Variation`.
        """
        return self.augment.draw(shape, generator) if isinstance(self.augment, Variation) else None

    def varied(self, samples: Samples, draws: Tensor | None) -> Samples:
        """What `augmented` makes of the samples if it draws these numbers, see `drawn`."""
        if not isinstance(self.augment, Variation):
            return samples
        assert draws is not None
        return _with_targets(self.augment.apply(samples[0], draws), samples)


def _with_targets(varied: Tensor | Samples, samples: Samples) -> Samples:
    return varied if isinstance(varied, tuple) else (varied, samples[1])


def classifies(outputs: Tensor, targets: Tensor) -> bool:
    """Whether the targets are class labels and the outputs their scores, so that accuracy is defined.

    Labels are integers of any shape (n, …), scores have the shape (n, …, classes): one label a sample for images, one
    a character for text.
    """
    return _is_integer(targets) and outputs.shape[:-1] == targets.shape


def initial_loss_not_finite(problem: Problem) -> str:
    """The error message if F is not finite at the initial weights; it has the share of the data that is not finite."""
    shares = [
        f"{share:.3g}% of the numbers in train's {part}"
        for part, tensor in zip(("inputs", "targets"), problem.train, strict=True)
        if (share := 100 * share_not_finite(tensor))
    ]
    cause = f"{' and '.join(shares)} are not finite" if shares else "the data are, so look at build_model and loss"
    return f"The training loss is not finite at the initial weights: {cause}."


def share_not_finite(numbers: Tensor | Column) -> float:
    """The share, in [0, 1], of a tensor's numbers that are NaN or infinite."""
    finite = total = 0
    for part in numbers.split(CHUNK):
        finite, total = finite + int(part.isfinite().sum()), total + part.numel()
    return 1 - finite / max(1, total)


def _check_samples(field: str, samples: object) -> None:
    if not isinstance(samples, tuple) or [isinstance(part, Tensor | Column) for part in samples] != [True, True]:
        raise TypeError(
            f"{field} must be a tuple of two tensors (inputs, targets), a Dataset or a DataLoader, got {_kind(samples)}"
        )
    inputs, targets = samples
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and 0 in (inputs.dim(), targets.dim()):
        raise ValueError(f"{field} has a tensor of no dimensions, the first dimension must count samples")
    if len(inputs) != len(targets):
        raise ValueError(f"{field} has {len(inputs)} inputs and {len(targets)} targets, must be as many")
    if len(inputs) == 0:
        raise ValueError(f"{field} has no samples, must have at least 1")


def _is_integer(tensor: Tensor) -> bool:
    # bool is neither floating nor complex, and no class label either.
    return not (tensor.is_floating_point() or tensor.is_complex() or str(tensor.dtype) == "torch.bool")


def _kind(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, tuple):
        return f"the tuple ({', '.join(type(part).__name__ for part in value)})"
    return f"a value of type {type(value).__name__}"
