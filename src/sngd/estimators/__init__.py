"""Gradient estimators: they fill ``p.grad`` from a loss over a batch and count oracle calls."""

from sngd.estimators.estimator import Estimator
from sngd.estimators.minibatch import Full, MiniBatch

__all__ = ["Estimator", "Full", "MiniBatch"]
