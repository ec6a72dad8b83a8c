"""The gradient estimates of all replicas at once, as the estimators of ``sngd.estimators`` make them one at a time.

The estimators keep the counts: oracle calls, ages, periods. The tensors that they keep are rows of matrices here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sngd.estimators import SCSG, Full, MiniBatch, Spider
from sngd.estimators.difference import DifferenceEstimator
from sngd.training.replicas.losses import Batch, Losses


class Draw(Protocol):
    """Draws samples."""

    def __call__(self, rows: Sequence[int], size: int | None, part: slice = slice(None)) -> Batch:
        """The next ``size`` samples (None: all) of each of ``rows``, for every row that is in ``part``.

        A row that draws none gets a copy of another one's, so that all rows can be evaluated together.
        """


class Estimates(Protocol):
    """Fills the rows of the gradients' matrix."""

    matrices: list[Tensor]  # beside weights and gradients, what a step changes
    in_step: bool  # whether all replicas have spent as many oracle calls after as many steps

    def estimate(self, rows: Sequence[int]) -> Callable[[], Tensor]:
        """Estimate all rows, of which only ``rows`` draw samples and count. Returns what computes the losses, (R,)."""


class Means:
    """Of ``MiniBatch`` and ``Full``: the mean gradient over a batch."""

    def __init__(
        self, estimators: Sequence[MiniBatch | Full], losses: Losses, weights: Tensor, gradient: Tensor, draw: Draw
    ) -> None:
        self.estimators, self.losses, self.draw, self.in_step = estimators, losses, draw, True
        self.weights, self.gradient = losses.layout.pieces(weights), losses.layout.pieces(gradient)
        self.matrices: list[Tensor] = []

    def estimate(self, rows: Sequence[int]) -> Callable[[], Tensor]:
        first = self.estimators[rows[0]]
        batch = self.draw(rows, first.next_batch_size)
        chunk_size = first.chunk_size if isinstance(first, Full) else None
        for row in rows:
            self.estimators[row].oracle_calls += first.next_cost
        return self.losses.gradient(self.weights, batch, self.gradient, chunk_size)


class Differences:
    """Of ``Spider``, ``SVRG`` and ``SCSG``: anchors, and between them differences of gradients at two points.

    Replicas whose periods are random, or of different lengths, take their anchors at different steps. Then each anchor
    is evaluated by itself, while the other rows take a difference.
    """

    def __init__(
        self,
        estimators: Sequence[DifferenceEstimator],
        losses: Losses,
        weights: Tensor,
        gradient: Tensor,
        draw: Draw,
    ) -> None:
        self.estimators, self.losses, self.weights, self.gradient = estimators, losses, weights, gradient
        self.draw, layout = draw, losses.layout
        self.reference = layout.matrix([estimator._reference for estimator in estimators])
        self.stored = layout.matrix([estimator._gradient for estimator in estimators])
        self.matrices = [self.reference, self.stored]
        for row, estimator in enumerate(estimators):
            estimator._reference = layout.views(self.reference[row])
            estimator._gradient = layout.views(self.stored[row])
        plans = {(e.anchor_batch_size, e.period, e.chunk_size) for e in estimators}
        self.in_step = len(plans) == 1 and not isinstance(estimators[0], SCSG)
        self._there = torch.zeros_like(gradient)
        self._pieces = [layout.pieces(matrix) for matrix in (weights, gradient, self.reference, self._there)]

    def estimate(self, rows: Sequence[int]) -> Callable[[], Tensor]:
        anchors = {row: self.estimators[row].age == 0 for row in rows}
        anchoring, between = ([row for row in rows if anchors[row] is yes] for yes in (True, False))
        losses = self._build(between) if between else partial(self.weights.new_zeros, len(self.weights))
        if self.in_step and not between:
            losses = self._anchor(anchoring, slice(None))
        elif anchoring:
            each = losses()
            for row in anchoring:
                each[row] = self._anchor([row], slice(row, row + 1))()[0]
            losses = each.clone  # they are computed already
        self._count(anchoring, between)
        return losses

    def _anchor(self, rows: Sequence[int], part: slice) -> Callable[[], Tensor]:
        """Evaluate the rows in ``part`` on the anchor's samples; store weights and gradients."""
        first = self.estimators[rows[0]]
        weights, gradient = self.weights[part], self.gradient[part]
        batch = self.draw(rows, first.next_batch_size, part)
        pieces = self.losses.layout.pieces
        losses = self.losses.gradient(pieces(weights), batch, pieces(gradient), first.chunk_size)
        self.stored[part] = gradient
        self.reference[part] = weights
        return losses

    def _build(self, rows: Sequence[int]) -> Callable[[], Tensor]:
        """g ← ∇f_I(w) − ∇f_I(w_ref) + the stored gradient; Spider stores the sum, and the weights as w_ref."""
        batch = self.draw(rows, self.estimators[rows[0]].batch_size)
        here, gradient, reference, there = self._pieces
        losses = self.losses.gradient(here, batch, gradient)
        self.losses.gradient(reference, batch, there)
        self.gradient.sub_(self._there)
        self.gradient.add_(self.stored)
        if isinstance(self.estimators[0], Spider):
            self.stored.copy_(self.gradient)
            self.reference.copy_(self.weights)
        return losses

    def _count(self, anchoring: Sequence[int], between: Sequence[int]) -> None:
        for row in anchoring:
            estimator = self.estimators[row]
            estimator.oracle_calls += estimator.anchor_batch_size
            if isinstance(estimator, SCSG):
                estimator.period = estimator._draw_period()
        for row in between:
            self.estimators[row].oracle_calls += 2 * self.estimators[row].batch_size
        failed = self._failed() if anchoring or isinstance(self.estimators[0], Spider) else []
        for row in (*anchoring, *between):
            estimator = self.estimators[row]
            estimator._age = 0 if row in failed else (estimator._age + 1) % estimator.period

    def _failed(self) -> list[int]:
        """Rows whose stored gradient is not finite: no difference may be added to it."""
        doubtful = (~self.losses.layout.norms(self.stored).isfinite()).nonzero().flatten().tolist()
        return [row for row in doubtful if not self.stored[row].isfinite().all()]


def estimates_of(estimators: Sequence[Any], *arguments: Any) -> Estimates:
    """The estimates of estimators of one kind."""
    kind = Differences if isinstance(estimators[0], DifferenceEstimator) else Means
    return kind(estimators, *arguments)
