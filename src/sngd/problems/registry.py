"""The built-in problems, one row each, and the one way to get a problem by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

from sngd.checks import suggestion
from sngd.problems import cifar10, datasets
from sngd.problems.analytic import Analytic, relaxed_smooth, sharp_and_flat, strict_saddle, tensor_decomposition
from sngd.problems.augment import random_crop_and_flip, unit_interval
from sngd.problems.imbalanced import imbalanced
from sngd.problems.models import mlp
from sngd.problems.problem import Problem, Samples
from sngd.problems.resnet import cifar_resnet
from sngd.problems.shakespeare import SMALL, Size, resized, shakespeare_gpt
from sngd.problems.user import load_user_problem
from sngd.problems.variants import vary

BATCH_SIZE = 128  # of a run that states none, on a problem that has no own


class Row(NamedTuple):
    """One line of the table: `load` takes the folder of data sets, or None for the default.

    A problem can have variants of its own, beside those that all problems have, see `sngd.problems.variants`: `variant`
    maps a word to the row of that variant, or to None if the word is none of `own_words`, which errors list. A run that
    states no batch size takes `batch_size`.
    """

    name: str
    summary: str
    load: Callable[[Path | None], Problem]
    variant: Callable[[str], "Row | None"] = lambda _: None
    own_words: tuple[str, ...] = ()
    batch_size: int = BATCH_SIZE


def _classification(build_model: Callable[[], nn.Module], samples: tuple[Samples, Samples]) -> Problem:
    train, test = samples
    return Problem(build_model, nn.functional.cross_entropy, train, test)


def _bytes_mlp(samples: tuple[Samples, Samples]) -> Problem:
    return replace(_classification(partial(mlp, 784, 100, 10), samples), prepare=unit_interval)


def _cifar10_resnet(depth: int, data: Path | None) -> Problem:
    problem = _classification(partial(cifar_resnet, depth), cifar10.cifar10(data))
    return replace(problem, augment=random_crop_and_flip, prepare=cifar10.prepare)


def _shakespeare_gpt(size: Size) -> Row:
    def variant(word: str) -> Row | None:
        other = resized(size, word)
        return _shakespeare_gpt(other) if other else None

    return Row(
        "shakespeare-gpt",
        "Shakespeare character by character, GPT of 4 layers, 128 wide, context 64; larger: shakespeare-gpt:large and "
        "shakespeare-gpt:width-256",
        partial(shakespeare_gpt, size),
        variant,
        ("large", "width-N"),
        size.batch_size,
    )


def _imbalanced() -> Problem:
    inputs, labels = imbalanced()
    classes = int(labels.max()) + 1
    return Problem(partial(nn.Linear, inputs.shape[1], classes), nn.functional.cross_entropy, (inputs, labels))


ANALYTIC: dict[str, Callable[[], Analytic]] = {
    "saddle": strict_saddle,
    "sharp-flat": sharp_and_flat,
    "relaxed-smooth": relaxed_smooth,
    "tensor-decomposition": tensor_decomposition,
}
"""The built-in problems whose constants are known."""


def _analytic(name: str, summary: str) -> Row:
    return Row(name, summary, lambda _: ANALYTIC[name]().problem)


PROBLEMS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "digits-mlp",
            "8×8 handwritten digits (embedded, no network), perceptron 64–100–10 with ELU",
            lambda _: _classification(partial(mlp, 64, 100, 10), datasets.digits()),
        ),
        Row(
            "mnist-mlp",
            "MNIST handwritten digits, perceptron 784–100–10 with ELU, as in the paper",
            lambda data: _bytes_mlp(datasets.mnist(data)),
        ),
        Row(
            "fashion-mlp",
            "Fashion-MNIST clothes, perceptron 784–100–10 with ELU",
            lambda data: _bytes_mlp(datasets.fashion_mnist(data)),
        ),
        Row(
            "cifar10-resnet8",
            "CIFAR-10 photographs with random crops and flips, residual network of 8 layers, 0.08 M parameters",
            partial(_cifar10_resnet, 8),
        ),
        Row(
            "cifar10-resnet20",
            "CIFAR-10 likewise, residual network of 20 layers, 0.27 M parameters, as in the paper",
            partial(_cifar10_resnet, 20),
        ),
        Row(
            "cifar10-resnet56",
            "CIFAR-10 likewise, residual network of 56 layers, 0.85 M parameters, as in the paper",
            partial(_cifar10_resnet, 56),
        ),
        _shakespeare_gpt(SMALL),
        Row(
            "imbalanced",
            "255 classes of frequency ∝ 1/k (generated, no network), linear model, as in Kunstner et al. 2024",
            lambda _: _imbalanced(),
        ),
        _analytic("saddle", "strict saddle in 10 dimensions, κ = 10, noise of σ = 0.1"),
        _analytic("sharp-flat", "a sharp minimum beside a flat one, both global"),
        _analytic("relaxed-smooth", "Σ cosh w_i: (L0, L1)-smooth, L-smooth for no L"),
        _analytic(
            "tensor-decomposition", "independent components from samples: known saddles, all local minima global"
        ),
    )
}


def load_problem(spec: str, data: Path | None = None) -> Problem:
    """Loads a problem with its data, named `spec` unless it has a name of its own.

    Args:
        spec: a name in `PROBLEMS`, or `path/to/file.py:factory` for the user's own, see `sngd.problems.user`. A name
            may be followed by variations, see `sngd.problems.variants`: `mnist-mlp:6000` has its first 6000 samples.
        data: folder of data sets; by default SNGD_DATA, else a cache that is filled by a download.

    Raises:
        ValueError: unknown name or variation, or a user's file that does not give a problem.
        DataError: (a ValueError) data that is absent or broken.
    """
    name, *words = spec.split(":")
    if name in PROBLEMS:
        problem = _varied(name, words, data)
    elif ":" in spec or spec.endswith(".py"):
        problem = load_user_problem(spec)
    else:
        meant = suggestion(spec, PROBLEMS) or ","
        raise ValueError(
            f"unknown problem {spec!r}{meant} must be one of {', '.join(PROBLEMS)}, or path/to/file.py:factory"
        )
    return problem if problem.name else replace(problem, name=spec)


def default_batch_size(spec: str) -> int:
    """The batch size of a run on the problem that states none: the built-in problem's own, else 128.

    Raises:
        ValueError: a variant that the problem cannot have.
    """
    name, *words = spec.split(":")
    return _own_variant(name, words)[0].batch_size if name in PROBLEMS else BATCH_SIZE


def _varied(name: str, words: list[str], data: Path | None) -> Problem:
    row, general = _own_variant(name, words)
    problem = row.load(data)
    with _naming(name, words):
        for word in general:
            problem = replace(vary(problem, word, row.own_words), name="")
    return problem


def _own_variant(name: str, words: list[str]) -> tuple[Row, list[str]]:
    """The row of the problem's own variant, and the words that all problems understand."""
    row, general = PROBLEMS[name], []
    with _naming(name, words):
        for word in words:
            if own := row.variant(word):
                row = own
            else:
                general.append(word)
    return row, general


@contextmanager
def _naming(name: str, words: list[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"problem {':'.join([name, *words])!r}: {error}") from None
