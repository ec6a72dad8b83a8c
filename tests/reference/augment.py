"""Naive twin of ``sngd.problems.augment.random_crop_and_flip``: pixel by pixel."""

import torch


def crop_and_flip(images, generator, padding):
    n, channels, height, width = images.shape
    tops = torch.randint(2 * padding + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(2 * padding + 1, (n,), generator=generator).tolist()
    flips = torch.randint(2, (n,), generator=generator).tolist()
    result = torch.zeros_like(images)
    for i in range(n):
        for channel in range(channels):
            for row in range(height):
                for column in range(width):
                    cut = width - 1 - column if flips[i] else column
                    y, x = row + tops[i] - padding, cut + lefts[i] - padding
                    if 0 <= y < height and 0 <= x < width:
                        result[i, channel, row, column] = images[i, channel, y, x]
    return result
