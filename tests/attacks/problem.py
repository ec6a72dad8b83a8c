"""A problem file as a user writes one: small, with chance and with running statistics."""

import torch
from torch import nn

from sngd.problems import Problem


def _samples(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def tiny() -> Problem:
    """60 samples, two classes; dropout draws from the global generator and BatchNorm keeps running statistics."""
    return Problem(_model, nn.functional.cross_entropy, _samples(60, 0), _samples(20, 1), "tiny")
