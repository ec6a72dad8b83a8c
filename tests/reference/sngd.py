"""Naive twin of ``sngd.SNGD``: plain Python floats, one list of numbers for all parameters, straight from the paper."""

from math import inf, isfinite, sqrt


class NaiveSNGD:
    """w ← w − min{α/‖g‖, max_scale} g over a flat list of numbers; both momentum orders; both kinds of weight decay."""

    def __init__(
        self,
        w,
        lr,
        momentum=0.0,
        normalize="gradient",
        weight_decay=0.0,
        decoupled_weight_decay=False,
        max_scale=inf,
        maximize=False,
    ):
        self.w = list(w)
        self.shrink = 1 - lr * weight_decay if decoupled_weight_decay else 1.0
        weight_decay = 0.0 if decoupled_weight_decay else weight_decay
        self.lr, self.momentum, self.normalize = lr, momentum, normalize
        self.weight_decay, self.max_scale, self.maximize = weight_decay, max_scale, maximize
        self.m = [0.0] * len(self.w)
        self.skipped = 0

    def step(self, gradient):
        d = [(-g if self.maximize else g) + self.weight_decay * w for g, w in zip(gradient, self.w, strict=True)]
        if self.normalize == "momentum" and self.momentum > 0:
            m = [self.momentum * m + (1 - self.momentum) * d for m, d in zip(self.m, d, strict=True)]
            norm = sqrt(sum(x * x for x in m))
            if norm == 0 or not isfinite(norm):
                self.skipped += 1
                return
            self.m = m
            scale = min(self.lr / norm, self.max_scale)
            self.w = [self.shrink * w - scale * m for w, m in zip(self.w, m, strict=True)]
            return
        norm = sqrt(sum(x * x for x in d))
        if norm == 0 or not isfinite(norm):
            self.skipped += 1
            return
        scale = min(self.lr / norm, self.max_scale)
        self.m = [self.momentum * m + scale * d for m, d in zip(self.m, d, strict=True)]  # αu, so that α may be 0
        self.w = [self.shrink * w - m for w, m in zip(self.w, self.m, strict=True)]
