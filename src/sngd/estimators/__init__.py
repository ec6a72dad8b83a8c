"""Gradient estimators: they fill ``p.grad`` from a loss over a batch and count oracle calls."""

from sngd.estimators.estimator import Estimator
from sngd.estimators.minibatch import Full, MiniBatch
from sngd.estimators.spider import Spider
from sngd.estimators.svrg import SCSG, SVRG

__all__ = ["SCSG", "SVRG", "Estimator", "Full", "MiniBatch", "Spider"]
