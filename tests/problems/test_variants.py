"""Slices and other variations of a problem, spelled after its name."""

import re
from dataclasses import replace

import pytest
import torch

from sngd.problems import Problem, load_problem
from sngd.problems.augment import random_crop_and_flip, unit_interval
from sngd.problems.cifar10 import prepare as cifar10_prepare
from sngd.problems.variants import VARIANTS, first, normalized, prepared, unaugmented, unnormalized, vary

WORDS = "must be a number of samples or one of unaugmented, normalized, unnormalized"


@pytest.fixture
def photographs() -> Problem:
    generator = torch.Generator().manual_seed(0)

    def samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.randint(256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8),
            torch.arange(count) % 10,
        )

    build = torch.nn.Identity
    loss = torch.nn.functional.mse_loss
    return Problem(
        lambda: build(), loss, samples(30), samples(20), augment=random_crop_and_flip, prepare=cifar10_prepare
    )


def test_a_slice_is_the_first_samples_and_a_fifth_as_many_of_the_test_set() -> None:
    whole, part = load_problem("digits-mlp"), load_problem("digits-mlp:103")
    assert part.name == "digits-mlp:103"
    assert part.n == 103
    assert len(part.test[0]) == len(part.test[1]) == 20
    for ours, theirs in zip((*part.train, *part.test), (*whole.train, *whole.test), strict=True):
        assert torch.equal(ours, theirs[: len(ours)])
    assert part.train[0].untyped_storage().nbytes() == 103 * 64 * 4  # and does not keep the rest alive
    assert set(part.train[1].tolist()) == set(part.test[1].tolist()) == set(range(10))


def test_the_smallest_slice_has_a_test_sample_and_the_largest_is_all(photographs: Problem) -> None:
    assert len(first(photographs, 1).test[0]) == 1
    assert first(photographs, 30).n == 30


def test_a_slice_of_a_problem_without_test_samples_has_none() -> None:
    assert first(load_problem("saddle"), 2).test is None


def test_normalized_inputs_have_mean_0_and_variance_1() -> None:
    plain, problem = load_problem("digits-mlp:200"), load_problem("digits-mlp:200:normalized")
    assert problem.name == "digits-mlp:200:normalized"
    inputs = problem.train[0].double()
    assert inputs.mean().item() == pytest.approx(0, abs=1e-6)
    assert inputs.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    mean, std = plain.train[0].mean(), plain.train[0].std(correction=0)
    torch.testing.assert_close(problem.test[0] * std + mean, plain.test[0])  # by the training inputs' two numbers


def test_bytes_are_normalized_as_the_numbers_that_they_stand_for(photographs: Problem) -> None:
    stored = replace(photographs, prepare=unit_interval, augment=None)
    floats = replace(stored, train=(stored.train[0] / 255, stored.train[1]), test=None, prepare=None)
    problem, expected = normalized(stored), normalized(floats)
    assert problem.prepare is None
    assert torch.equal(problem.train[0], expected.train[0])
    assert problem.test is not None


def test_inputs_prepared_once_are_those_that_the_model_takes(photographs: Problem) -> None:
    once = prepared(photographs)
    assert once.prepare is None
    for ours, theirs in ((once.train, photographs.train), (once.test, photographs.test)):
        assert torch.equal(ours[0], photographs.prepared(theirs[0]))
        assert ours[1] is theirs[1]
    assert prepared(load_problem("saddle")).test is None


def test_unnormalized_inputs_are_in_0_to_1(photographs: Problem) -> None:
    changed = unnormalized(photographs)
    torch.testing.assert_close(changed.prepare(changed.train[0]), photographs.train[0] / 255)
    assert changed.augment is photographs.augment


def test_unaugmented(photographs: Problem) -> None:
    assert unaugmented(photographs).augment is None
    assert unaugmented(photographs).prepare is photographs.prepare


def test_variations_leave_their_problem_alone(photographs: Problem) -> None:
    before = photographs.train[0].clone()
    for word in ("7", "unaugmented", "unnormalized"):
        vary(photographs, word)
    assert photographs.augment is random_crop_and_flip
    assert torch.equal(photographs.train[0], before)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits-mlp:0", "problem 'digits-mlp:0': number of samples must be in 1 … n = 1437, got 0"),
        ("digits-mlp:1438", "problem 'digits-mlp:1438': number of samples must be in 1 … n = 1437, got 1438"),
        ("digits-mlp:half", f"problem 'digits-mlp:half': 'half' {WORDS}"),
        ("digits-mlp:", f"problem 'digits-mlp:': '' {WORDS}"),
        ("digits-mlp:unaugmented", "problem 'digits-mlp:unaugmented': has no augmentation to leave out"),
        ("digits-mlp:9:unnormalized", "problem 'digits-mlp:9:unnormalized': has inputs that are no bytes"),
    ],
)
def test_mistakes_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_problem(spec)


def test_prepared_inputs_are_not_normalized_again(photographs: Problem) -> None:
    with pytest.raises(ValueError, match=r"^has inputs that are prepared already$"):
        normalized(photographs)
    with pytest.raises(ValueError, match=r"^has inputs that are no floats$"):
        normalized(replace(photographs, prepare=None))
    with pytest.raises(ValueError, match=r"^has pixels in \[0, 1\] already$"):
        unnormalized(unnormalized(photographs))


def test_every_variant_is_documented() -> None:
    assert all(variant.__doc__ for variant in VARIANTS.values())
