"""A problem of one's own: tell the arms of two spirals apart. Try it with

    sngd train examples/my_problem.py:spirals --method sngd

`spirals` is the factory that the command line calls: it takes no arguments and returns a Problem.
"""

import math

import torch
from torch import Tensor, nn

from sngd.problems import Problem


def spirals() -> Problem:
    return Problem(build_model, nn.functional.cross_entropy, train=points(4000, seed=1), test=points(500, seed=2))


def build_model() -> nn.Module:
    """A new model at each call, so that every run starts from weights of its own."""
    return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n points in the plane and the arm, 0 or 1, that each is on; the same points at every call."""
    generator = torch.Generator().manual_seed(seed)
    radius = torch.rand(n, generator=generator)
    arm = torch.randint(2, (n,), generator=generator)
    angle = 2 * math.pi * radius + math.pi * arm
    noise = 0.02 * torch.randn(n, 2, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1) + noise, arm
