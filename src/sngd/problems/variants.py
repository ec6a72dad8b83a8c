"""Variations of a problem, spelled after its name: ``mnist-mlp:6000``, ``cifar10-resnet8:5000:unaugmented``.

These are variations of any problem. A built-in problem may have others of its own, such as
``shakespeare-gpt:width-256``, see `sngd.problems.registry`.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from sngd.problems.problem import Problem


def vary(problem: Problem, word: str, own_words: Iterable[str] = ()) -> Problem:
    """The problem changed as ``word`` says: a number of samples, or a name in ``VARIANTS``.

    ``own_words`` are those that the problem understands beside these; the error for an unknown word lists them.

    Raises:
        ValueError: unknown word, a number out of range, or a variation that the problem cannot have.
    """
    if word.isdecimal():
        return first(problem, int(word))
    if word not in VARIANTS:
        raise ValueError(f"{word!r} must be a number of samples or one of {', '.join([*VARIANTS, *own_words])}")
    return VARIANTS[word](problem)


def first(problem: Problem, count: int) -> Problem:
    """The first ``count`` training samples, 1 … n, and of the test samples a fifth as many, rounded down (at least 1).

    The built-in data sets come in an order that mixes the classes.
    """
    if not 1 <= count <= problem.n:
        raise ValueError(f"number of samples must be in 1 … n = {problem.n}, got {count}")
    train, test = problem.train, problem.test
    fifth = max(1, count // 5)
    return replace(
        problem,
        train=(train[0][:count].clone(), train[1][:count].clone()),  # a view would keep all samples in memory
        test=None if test is None else (test[0][:fifth].clone(), test[1][:fifth].clone()),
    )


def unaugmented(problem: Problem) -> Problem:
    """Without random variations of the inputs."""
    if problem.augment is None:
        raise ValueError("has no augmentation to leave out")
    return replace(problem, augment=None)


def normalized(problem: Problem) -> Problem:
    """Inputs shifted and scaled by two numbers, so that all of the training inputs have mean 0 and variance 1."""
    if problem.prepare is not None or not problem.train[0].is_floating_point():
        raise ValueError("has inputs that are prepared already")
    mean, std = problem.train[0].mean(), problem.train[0].std(correction=0)

    def normalize(samples: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return (samples[0] - mean) / std, samples[1]

    return replace(problem, train=normalize(problem.train), test=problem.test and normalize(problem.test))


def unnormalized(problem: Problem) -> Problem:
    """Pixels scaled to [0, 1], and no more."""
    if problem.train[0].dtype != torch.uint8:
        raise ValueError("has inputs that are no bytes")
    return replace(problem, prepare=_unit)


def _unit(images: Tensor) -> Tensor:
    return images.to(torch.float32).div_(255)


VARIANTS: dict[str, Callable[[Problem], Problem]] = {
    "unaugmented": unaugmented,
    "normalized": normalized,
    "unnormalized": unnormalized,
}
