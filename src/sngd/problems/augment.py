"""Random variations and normalization of images before they enter a model.

A variation is drawn once a step and used for the whole of it: a method that evaluates at two weights (SPIDER, SVRG,
SCSG) uses the same inputs for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Variation:
    """A random variation of a batch in two parts, of which the second can be a part of a CUDA graph.

    It is called as every ``augment`` of a problem is, with inputs and a generator.

    Args:
        draw: maps the inputs' shape and a generator to random numbers, one tensor on the generator's device. Its shape
            depends on the inputs' shape alone.
        apply: maps the inputs and these numbers, on the inputs' device, to what the model is trained on: inputs, or
            inputs and targets. It draws nothing and does not wait for the device.
    """

    draw: Callable[[torch.Size, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor | tuple[Tensor, Tensor]:
        draws = self.draw(inputs.shape, generator)
        return self.apply(inputs, draws.to(inputs.device, non_blocking=True))


def crop_and_flip_draws(shape: torch.Size, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Where ``cropped_and_flipped`` cuts each image, and which it mirrors: uniformly random.

    Args:
        shape: (n, channels, height, width).
        generator: where the 3n draws come from. A CPU generator gives the same ones whatever the images' device.
        padding: in pixels, ≥ 0.

    Returns:
        int64 of shape (3, n, 1) on the generator's device: rows and columns in 0 … 2·padding, and 1 for a mirror image.
    """
    most = 2 * padding, 2 * padding, 1
    draws = [torch.randint(m + 1, (shape[0], 1), generator=generator, device=generator.device) for m in most]
    return torch.stack(draws)


def cropped_and_flipped(images: Tensor, draws: Tensor, padding: int = 4) -> Tensor:
    """Images that are padded with zeros on all sides, cut back to their size, and flipped left to right or not.

    Args:
        images: shape (n, channels, height, width), any dtype, any device.
        draws: of ``crop_and_flip_draws``, on the same device.
        padding: in pixels, ≥ 0.

    Returns:
        New images of the same shape, dtype and device.
    """
    n, channels, height, width = images.shape
    padded_width = width + 2 * padding
    top, left, flip = draws  # where an image begins, and from which of its columns it is counted
    top, flip = top * padded_width, flip * (width - 1)
    columns = left + (_count(width, 1, images.device) - flip).abs()
    rows = top + _count(height, padded_width, images.device)
    pixels = rows.unsqueeze(2) + columns.unsqueeze(1)  # (n, height, width)
    padded = pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, pixels.view(n, 1, -1).expand(-1, channels, -1)).view_as(images)


random_crop_and_flip = Variation(crop_and_flip_draws, cropped_and_flipped)
"""Moves each image by up to 4 pixels in both directions and mirrors every other one, at random (He et al., "Deep
Residual Learning", 2016, section 4.2)."""


@cache
def _count(size: int, step: int, device: torch.device) -> Tensor:
    """0, step, 2 step, …"""
    return torch.arange(0, size * step, step, device=device)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Bytes to floats of about mean 0 and variance 1: (images / 255 − mean) / std.

    Args:
        images: uint8 of shape (n, channels, height, width).
        mean: of each channel, as a fraction of 255.
        std: likewise, > 0.

    Returns:
        float32 of the same shape, on the same device.
    """
    shift, scale = _per_channel(mean, images.device), _per_channel(std, images.device)
    return images.to(torch.float32).sub_(shift).div_(scale)


def unit_interval(images: Tensor) -> Tensor:
    """Bytes, or other numbers from 0 to 255, to float32 in [0, 1], of any shape."""
    return images.to(torch.float32, copy=True).div_(255)


@cache  # because a copy to a GPU waits for all of its work
def _per_channel(fractions: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor([255 * fraction for fraction in fractions], dtype=torch.float32, device=device).view(-1, 1, 1)
