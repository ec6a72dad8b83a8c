"""Random variations and normalization of images before they enter a model.

A variation is drawn from a generator and applied in one call. Its result is used for the whole step: a method that
evaluates at two weights (SPIDER, SVRG, SCSG) uses the same tensor for both.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def random_crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Moves each image by up to `padding` pixels in both directions and mirrors every other one, at random.

    An image is padded with zeros on all sides, cut back to its size at a uniformly random place, and with
    probability 1/2 flipped left to right (He et al., "Deep Residual Learning", 2016, section 4.2).

    Args:
        images: shape (n, channels, height, width), any dtype, any device.
        generator: where the 3n draws come from. A CPU generator gives the same ones whatever the images' device.
        padding: in pixels, ≥ 0.

    Returns:
        New images of the same shape, dtype and device.
    """
    n, channels, height, width = images.shape
    padded_width = width + 2 * padding
    top, left, flip = (
        torch.randint(most + 1, (n, 1), generator=generator, device=generator.device)
        for most in (2 * padding, 2 * padding, 1)
    )
    # at once, and without waiting for the device: where an image begins, and from which of its columns it is counted
    draws = torch.stack([top * padded_width, left, flip * (width - 1)])
    top, left, flip = draws.to(images.device, non_blocking=True)
    columns = left + (_count(width, 1, images.device) - flip).abs()
    rows = top + _count(height, padded_width, images.device)
    pixels = rows.unsqueeze(2) + columns.unsqueeze(1)  # (n, height, width)
    padded = pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, pixels.view(n, 1, -1).expand(-1, channels, -1)).view_as(images)


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


@cache  # because a copy to a GPU waits for all of its work
def _per_channel(fractions: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor([255 * fraction for fraction in fractions], dtype=torch.float32, device=device).view(-1, 1, 1)
