"""Variations of a problem, spelled after its name: ``mnist-mlp:6000``, ``cifar10-resnet8:5000:unaugmented``.

These are variations of any problem. A built-in problem may have others of its own, such as
``shakespeare-gpt:width-256``, see `sngd.problems.registry`.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from sngd.problems.augment import unit_interval
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
    if problem.prepare not in (None, unit_interval):
        raise ValueError("has inputs that are prepared already")
    plain = prepared(problem)
    if not plain.train[0].is_floating_point():
        raise ValueError("has inputs that are no floats")
    mean, std = plain.train[0].mean(), plain.train[0].std(correction=0)
    return _changed(plain, lambda inputs: (inputs - mean) / std)


def prepared(problem: Problem) -> Problem:
    """The same with inputs kept as the model takes them, instead of being prepared at every evaluation."""
    return replace(_changed(problem, problem.prepared), prepare=None)


def _changed(problem: Problem, change: Callable[[Tensor], Tensor]) -> Problem:
    """Other inputs, in training and test."""
    train, test = (samples and (change(samples[0]), samples[1]) for samples in (problem.train, problem.test))
    return replace(problem, train=train, test=test)


def unnormalized(problem: Problem) -> Problem:
    """Pixels scaled to [0, 1], and no more."""
    if problem.train[0].dtype != torch.uint8:
        raise ValueError("has inputs that are no bytes")
    if problem.prepare is unit_interval:
        raise ValueError("has pixels in [0, 1] already")
    return replace(problem, prepare=unit_interval)


VARIANTS: dict[str, Callable[[Problem], Problem]] = {
    "unaugmented": unaugmented,
    "normalized": normalized,
    "unnormalized": unnormalized,
}
