"""SPIDER: a recursive estimator that adds up differences between consecutive iterates."""

import torch
from torch import Tensor, nn

from sngd.estimators.difference import DifferenceEstimator
from sngd.estimators.estimator import Batch, Loss
from sngd.sharding import all_local


class Spider(DifferenceEstimator):
    """μ_m = ∇f_I(w_m) − ∇f_I(w_{m−1}) + μ_{m−1}; every ``period`` steps it starts at an anchor μ = ∇f_J(w), |J| = B.

    Algorithm 3 of Zhao, Xie and Li (2021), from Fang et al. 2018. A period costs B + 2b(M − 1) oracle calls: at the
    anchor both points are the same, so the difference is zero and is neither evaluated nor counted. The variance grows
    with the number of steps: E‖μ_m − ∇F(w_m)‖² ≤ M α² L²/b + σ²/B for steps of length α (eq. 15).

    After an estimate that is not finite the next one is an anchor, and a new period begins.

    Args:
        model: its trainable parameters' ``.grad`` is filled.
        anchor_batch_size: B ≥ 1.
        batch_size: b ≥ 1.
        period: M ≥ 1 steps between anchors; the paper's experiments have M = B/(2b).
        chunk_size: samples of an anchor evaluated at a time, ≥ 1; None: all at once. ``Full`` says what chunks change.

    Raises:
        ValueError: a size is no whole number of at least 1.
    """

    def __init__(
        self, model: nn.Module, *, anchor_batch_size: int, batch_size: int, period: int, chunk_size: int | None = None
    ) -> None:
        super().__init__(model, anchor_batch_size, batch_size, period, chunk_size)

    @property
    def next_batch_size(self) -> int:
        return self.anchor_batch_size if self.age == 0 else self.batch_size

    def _build(self, loss: Loss, batch: Batch) -> Tensor:
        value, difference = self._difference(loss, batch)
        torch._foreach_add_(all_local(self._gradient), difference)
        self._move_reference()
        self._set_grad()
        self._note_failure()
        return value
