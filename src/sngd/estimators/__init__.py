"""Gradient estimators: they compute ``p.grad`` from a loss over a batch, and count oracle calls.

An oracle call is the gradient ∇f(w; a) of one sample a at one point w. A variance-reduced estimator now and then
computes a gradient on many samples, the anchor. Between anchors it uses differences of gradients on small batches. The
number of steps from one anchor to the next is the period.
"""

from sngd.estimators.estimator import Estimator
from sngd.estimators.minibatch import Full, MiniBatch
from sngd.estimators.spider import Spider
from sngd.estimators.svrg import SCSG, SVRG

__all__ = ["SCSG", "SVRG", "Estimator", "Full", "MiniBatch", "Spider"]
