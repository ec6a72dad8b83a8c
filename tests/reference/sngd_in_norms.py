"""Naive twin of ``sngd.SNGD`` in any norms: one array for each tensor, straight from the definition of the product."""

from math import inf, isfinite

import numpy as np

from reference.norms import NaiveNorm


class NaiveSNGDInNorms:
    """w_i ← w_i − α_i c unit_i(v_i) with c = min{1, max_scale ‖v‖*/α_i} and ‖v‖* the sum over all balls.

    ``norms`` names the norm of each tensor; all tensors with "l2" are one ball.
    """

    def __init__(
        self,
        ws,
        norms,
        lrs,
        momentum=0.0,
        normalize="gradient",
        weight_decay=0.0,
        decoupled_weight_decay=False,
        max_scale=inf,
        maximize=False,
    ):
        self.ws = [np.asarray(w, dtype=np.longdouble) for w in ws]
        self.norms, self.lrs = [NaiveNorm(*norm) for norm in norms], lrs
        self.decay = 0.0 if decoupled_weight_decay else weight_decay
        self.shrink = weight_decay if decoupled_weight_decay else 0.0
        self.momentum, self.averages = momentum, normalize == "momentum" and momentum > 0
        self.max_scale, self.maximize = max_scale, maximize
        self.ms = [np.zeros_like(w) for w in self.ws]
        self.skipped, self.last_norm = 0, float("nan")

    def step(self, gradients):
        vs = [(-g if self.maximize else g) + self.decay * w for g, w in zip(gradients, self.ws, strict=True)]
        if self.averages:
            vs = [self.momentum * m + (1 - self.momentum) * v for m, v in zip(self.ms, vs, strict=True)]
        joint = [v for v, norm in zip(vs, self.norms, strict=True) if norm.name == "l2"]
        l2 = np.sqrt(sum(np.sum(v**2) for v in joint))
        duals = [norm.dual(v) for v, norm in zip(vs, self.norms, strict=True) if norm.name != "l2"]
        whole = l2 + sum(duals)
        self.last_norm = float(whole)
        if whole == 0 or not isfinite(whole):
            self.skipped += 1
            return
        for i, (v, norm, lr) in enumerate(zip(vs, self.norms, self.lrs, strict=True)):
            length = min(lr, self.max_scale * whole)
            unit = (v / l2 if l2 > 0 else 0 * v) if norm.name == "l2" else norm.unit(v)
            self.ws[i] = (1 - lr * self.shrink) * self.ws[i]
            if self.averages:
                self.ms[i] = v
                self.ws[i] = self.ws[i] - length * unit
            else:
                self.ms[i] = self.momentum * self.ms[i] + length * unit  # α u
                self.ws[i] = self.ws[i] - self.ms[i]
