"""Augmentation against its naive twin and the uniform distribution; normalization against its formula."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import mse_loss

from reference.augment import crop_and_flip
from sngd.problems import Problem
from sngd.problems.augment import (
    Variation,
    crop_and_flip_draws,
    cropped_and_flipped,
    normalize,
    random_crop_and_flip,
    unit_interval,
)
from sngd.problems.shakespeare import moved_on


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    padding=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_against_the_naive_twin(shape: tuple[int, int, int, int], padding: int, seed: int) -> None:
    images = torch.randint(256, shape, generator=generator(0), dtype=torch.uint8)
    expected = crop_and_flip(images, generator(seed), padding)
    random_variation = Variation(
        partial(crop_and_flip_draws, padding=padding), partial(cropped_and_flipped, padding=padding)
    )
    result = random_variation(images, generator(seed))
    assert (result.dtype, result.is_contiguous()) == (torch.uint8, True)
    assert torch.equal(result, expected)


def test_a_batch_of_cifar10s_size() -> None:
    images = torch.randint(256, (8, 3, 32, 32), generator=generator(0), dtype=torch.uint8)
    assert torch.equal(random_crop_and_flip(images, generator(1)), crop_and_flip(images, generator(1), 4))


def test_all_shifts_and_both_directions_are_equally_likely() -> None:
    n = 100 * 9 * 9 * 2
    images = torch.arange(1, 18 * 18 + 1, dtype=torch.int16).view(1, 1, 18, 18).expand(n, 1, 18, 18)
    result = random_crop_and_flip(images, generator(0))
    seen = result[:, 0, 9, 8:10]  # two neighbours say where the image lies and which way round
    kinds, counts = seen.unique(dim=0, return_counts=True)
    assert len(kinds) == 9 * 9 * 2
    assert counts.min() > 60  # expected 100 ± 10
    assert counts.max() < 140


def test_draws_come_from_the_generator_alone_and_leave_the_images_alone() -> None:
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    before, state = images.clone(), torch.get_rng_state()
    source = generator(5)
    first, second = random_crop_and_flip(images, source), random_crop_and_flip(images, source)
    assert not torch.equal(first, second)
    assert torch.equal(first, random_crop_and_flip(images, generator(5)))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_drawing_and_applying_apart_is_what_a_problem_does_at_once() -> None:
    text = torch.arange(40).view(5, 8), torch.arange(20).view(5, 4)
    photographs = torch.arange(5 * 48, dtype=torch.uint8).view(5, 3, 4, 4), torch.arange(5)
    for samples, augment in ((text, moved_on), (photographs, random_crop_and_flip), (photographs, None)):
        problem = Problem(lambda: torch.nn.Linear(1, 1), mse_loss, samples, augment=augment)
        once, source = problem.augmented(samples, generator(3)), generator(3)
        apart = problem.varied(samples, problem.drawn(samples[0].shape, source))
        assert all(map(torch.equal, once, apart))
        assert augment is None or not torch.equal(apart[0], samples[0][:, : apart[0].shape[1]])


@pytest.mark.cuda
def test_a_gpu_makes_the_same_images() -> None:
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8)
    result = random_crop_and_flip(images.cuda(), generator(0))
    assert result.is_cuda
    assert torch.equal(result.cpu(), random_crop_and_flip(images, generator(0)))
    means, stds = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    torch.testing.assert_close(normalize(images.cuda(), means, stds).cpu(), normalize(images, means, stds))


def test_normalize() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    result = normalize(images, (0.5, 0.4, 0.3), (0.25, 0.5, 2.0))
    expected = torch.tensor([(0 - 0.5) / 0.25, (0.2 - 0.4) / 0.5, (1 - 0.3) / 2.0]).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)
    assert images[0].flatten().tolist() == [0, 51, 255]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_unit_interval_leaves_its_argument_alone(dtype):
    images = torch.tensor([[0, 51, 255]], dtype=dtype)
    prepared = unit_interval(images)
    torch.testing.assert_close(prepared, torch.tensor([[0.0, 0.2, 1.0]]))
    assert images.tolist() == [[0, 51, 255]]
