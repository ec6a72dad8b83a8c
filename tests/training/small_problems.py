"""Small problems that exercise what a run can meet."""

import torch
from torch import nn

from sngd.problems import Problem


def _samples(n, seed):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def tiny_problem():
    """60 samples, two classes; dropout draws from the global generator and BatchNorm keeps running statistics."""
    return Problem(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)),
        nn.functional.cross_entropy,
        _samples(60, 0),
        _samples(20, 1),
        "tiny",
    )


def plain_problem():
    """The same without chance or statistics, in float64."""
    (x, y), (u, v) = _samples(60, 0), _samples(20, 1)
    return Problem(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 2)).double(),
        nn.functional.cross_entropy,
        (x.double(), y),
        (u.double(), v),
        "plain",
    )
