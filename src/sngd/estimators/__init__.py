"""Gradient estimators: they fill ``p.grad`` from a loss over a batch and count oracle calls."""

from sngd.estimators.minibatch import Full, MiniBatch

__all__ = ["Full", "MiniBatch"]
