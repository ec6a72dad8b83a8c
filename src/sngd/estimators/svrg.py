"""SVRG and SCSG: the gradient at a fixed anchor point, on many samples, plus a difference on a mini-batch."""

from typing import Any

import torch
from torch import Tensor, nn

from sngd.cost import Cost, differences_of_random_periods
from sngd.estimators.difference import DifferenceEstimator
from sngd.estimators.estimator import Batch, Loss
from sngd.sharding import all_local, own_generator
from sngd.state import check_keys, saved_count, saved_generator


class SVRG(DifferenceEstimator):
    """g = ∇f_I(w) − ∇f_I(w̃) + ∇F(w̃); every ``period`` steps the anchor w̃ becomes w (Johnson and Zhang 2013).

    A period costs n + 2b(M − 1) oracle calls: at the anchor itself the difference is zero, and is neither evaluated nor
    counted.

    If an anchor's gradient is not finite the next estimate is an anchor again. If a mini-batch's gradient is not finite
    only this estimate is affected, and the anchor stays.

    Args:
        model: its trainable parameters' ``.grad`` is filled.
        n: number of samples; an anchor takes them all.
        batch_size: b ≥ 1.
        period: M ≥ 1 steps between anchors.
        chunk_size: samples of an anchor evaluated at a time, ≥ 1; None: all at once. ``Full`` says what chunks change.

    Raises:
        ValueError: a size is no whole number of at least 1.
    """

    _anchor_argument = "n"

    def __init__(
        self, model: nn.Module, *, n: int, batch_size: int, period: int, chunk_size: int | None = None
    ) -> None:
        super().__init__(model, n, batch_size, period, chunk_size)

    @property
    def next_batch_size(self) -> int | None:
        return None if self.age == 0 else self.batch_size

    def _build(self, loss: Loss, batch: Batch) -> Tensor:
        value, difference = self._difference(loss, batch)
        self._set_grad()
        torch._foreach_add_(all_local(p.grad for p in self.params if p.grad is not None), difference)
        return value


class SCSG(SVRG):
    """SVRG with an anchor gradient on a batch of B samples and a random period N, geometric with mean B/b.

    The method is from Lei et al. 2017. Here N is drawn from {1, 2, …}. The original allows N = 0, an anchor that costs
    B calls without a step. A period costs B + 2b(N − 1) oracle calls.

    Args:
        model: its trainable parameters' ``.grad`` is filled.
        anchor_batch_size: B ≥ b.
        batch_size: b ≥ 1.
        generator: CPU generator of the periods; in a distributed run it must have the same state on all ranks. Default:
            a new one, seeded from torch's global one. In a distributed run rank 0 sends the seed, so all ranks must
            make the estimator.
        chunk_size: samples of an anchor evaluated at a time, ≥ 1; None: all at once. ``Full`` says what chunks change.

    Raises:
        ValueError: a size is no whole number of at least 1, or B < b.
    """

    _anchor_argument = "anchor_batch_size"

    def __init__(
        self,
        model: nn.Module,
        *,
        anchor_batch_size: int,
        batch_size: int,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(model, n=anchor_batch_size, batch_size=batch_size, period=1, chunk_size=chunk_size)
        differences_of_random_periods(self.anchor_batch_size, self.batch_size)  # a ValueError if B < b
        self.generator = generator or own_generator(self.params)

    @property
    def next_batch_size(self) -> int:
        return self.anchor_batch_size if self.age == 0 else self.batch_size

    def _anchor(self, loss: Loss, batch: Batch) -> Tensor:
        self.period = self._draw_period()
        return super()._anchor(loss, batch)

    @property
    def _cost(self) -> Cost:
        return differences_of_random_periods(self.anchor_batch_size, self.batch_size)

    def _draw_period(self) -> int:
        chance = self.batch_size / self.anchor_batch_size  # of each step to be the period's last
        if chance == 1:
            return 1
        return int(torch.empty((), dtype=torch.float64, device="cpu").geometric_(chance, generator=self.generator))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "period": self.period, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_keys(state, "period", "generator")
        period, generator = saved_count(state, "period", 1), saved_generator(state, "generator")
        self._load(state, period)
        self.period = period
        self.generator.set_state(generator)
