"""Models of the built-in problems, with PyTorch's default initialization."""

from torch import nn


def mlp(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """One hidden layer with ELU; the paper's network for MNIST is `mlp(784, 100, 10)`.

    Maps float inputs of shape (batch, inputs) to scores of shape (batch, classes).
    """
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, classes))
