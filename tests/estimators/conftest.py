"""A small finite sum whose per-sample gradients are cheap."""

import pytest
import torch
from torch import nn


@pytest.fixture
def finite_sum():
    """Model, loss over a batch of indices, and n; in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(40, 4, dtype=torch.float64)
    y = torch.tanh(x.sum(1, keepdim=True))
    return model, lambda batch: nn.functional.mse_loss(model(x[batch]), y[batch]), 40
