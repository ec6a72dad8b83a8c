"""Random output: one iterate of a run, drawn at random while the run goes on.

An iterate is the value w_t of the weights before step t. Only one copy of the weights is stored.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sngd.checks import shown
from sngd.sharding import all_local, local, shared_seed
from sngd.state import check_keys, fitted, saved_generator, saved_tensors

# Any constant that makes the private stream differ from the global one; the CPU generator seeds from the low 32 bits.
_SEED_MIX = 0x9E3779B97F4A7C15


class RandomIterate:
    """Draws w̄ from {w_0, …, w_T} with P(w̄ = w_t) = q_t / Σq by weighted reservoir sampling.

    The bounds of Zhao, Xie, Li (2021) hold for a random iterate, not for the last one. Call `update(q_t)` while
    `params` hold w_t. It adds q_t to the total Q_t and, with probability q_t / Q_t, replaces the stored copy by w_t. By
    induction w_t is the stored copy at the end with probability (q_t / Q_t) Π_{s>t} (1 − q_s / Q_s) = q_t / Q_T. The
    number of steps need not be known beforehand.

    In a distributed run all ranks must draw the same, or w̄ would be made of shards of different iterates. Each rank
    copies its own part of DTensors. If a model under `fully_shard` is evaluated inside `swapped` without a backward
    pass, call `model.reshard()` before going on, or it computes with the weights that it gathered last.

    Args:
        params: tensors that make up the iterate: `model.parameters()`, or parameters and buffers together. The copies
            have their shapes, dtypes, devices and placements, and follow them to another dtype or device.
        generator: a CPU generator for the draws; in a distributed run it must have the same state on all ranks. None
            makes a private one, seeded from `torch.initial_seed()` mixed with a constant. Its draws repeat under
            `torch.manual_seed` and take nothing from the global stream, so a run is the same with and without a random
            iterate. Two instances with private generators make the same draws; to avoid this give each a generator.
            If `torch.distributed` is initialized, rank 0 sends its seed to all, so all ranks must make one.

    Raises:
        ValueError: if `params` is empty or `generator` is not on the CPU.

    Examples:
        Algorithm 1, SNGD, returns an iterate drawn uniformly. The iterate is the one at which the gradient is taken, so
        `update` comes before the optimizer's step:

        >>> iterate = RandomIterate(model.parameters())
        >>> for x, y in batches:
        ...     optimizer.zero_grad()
        ...     loss(model(x), y).backward()
        ...     iterate.update()
        ...     optimizer.step()
        >>> with iterate.swapped():
        ...     evaluate(model)

        Algorithm 2, S-SNGD, draws one iterate of every stage and then one of these with probability p_i / Σp. The
        weights `plan.iterate_weight(step)` give the same law in one draw:

        >>> for step, (x, y) in enumerate(batches):
        ...     optimizer.zero_grad()
        ...     loss(model(x), y).backward()
        ...     iterate.update(plan.iterate_weight(step))
        ...     optimizer.step()
        ...     scheduler.step()
    """

    def __init__(self, params: Iterable[Tensor], generator: torch.Generator | None = None) -> None:
        self._params = list(dict.fromkeys(params))  # a shared tensor once, or swap would exchange it twice
        if not self._params:
            raise ValueError("params must hold at least one tensor, got none")
        self._names = [f"params[{index}]" for index in range(len(self._params))]
        if generator is None:
            generator = torch.Generator().manual_seed(shared_seed(torch.initial_seed(), self._params) ^ _SEED_MIX)
        if generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
        self._generator = generator
        self._total = 0.0
        self._stored: list[Tensor] | None = None  # w̄ so far; the live weights while swapped
        self._swapped = False

    @torch.no_grad()
    def update(self, weight: float = 1.0) -> None:
        """Let the present values of `params` take part in the draw with the given weight; weight 0 is never drawn.

        The draw is made on the CPU, so that the host does not wait for a GPU.

        Raises:
            ValueError: if `weight`, or the sum of all weights, is not finite, or `weight` is negative, or a tensor of
                `params` that is drawn has another shape than at an earlier draw.
            RuntimeError: while swapped.
        """
        if self._swapped:
            raise RuntimeError("update needs the live weights, but the drawn iterate is in: call swap first")
        weight = float(weight)  # of a numpy number, which torch.load would refuse
        total = self._total + weight
        if not (weight >= 0 and math.isfinite(total)):
            raise ValueError(f"weight must be ≥ 0 and finite, and so must the sum of weights, got {weight!r}")
        if weight == 0:
            return
        draw = torch.rand((), dtype=torch.float64, device="cpu", generator=self._generator).item()
        if draw < weight / total:  # always at the first weight, where the quotient is 1
            self._store()
        self._total = total

    def _store(self) -> None:
        if self._stored is None:
            self._stored = [param.detach().clone() for param in self._params]
            return
        self._fit_params()
        torch._foreach_copy_(all_local(self._stored), all_local(self._params))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange `params` and the drawn iterate in place; the next call exchanges them back.

        Raises:
            RuntimeError: if nothing has been drawn yet.
            ValueError: if a tensor of `params` has another shape than when it was drawn.
        """
        self._fit_params()
        if self._stored is None:
            raise RuntimeError("no iterate has been drawn: call update with a positive weight before swap")
        exchange(self._params, self._stored)
        self._swapped = not self._swapped

    def _fit_params(self) -> None:
        """Convert the stored copy if the tensors were converted since the draw, by ``model.double()`` for example."""
        if self._stored is not None:
            self._stored = fitted("the drawn iterate", self._stored, self._params, self._names)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Context in which `params` hold the drawn iterate, for evaluation; the live weights return at its end."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Any]:
        """The state that continues bit for bit; `torch.load(..., weights_only=True)` reads it back.

        Like torch's own, it refers to the live tensors: save or clone it before going on. Before the first draw the
        iterate is zeros, because `torch.distributed.checkpoint` loads into existing tensors.
        """
        stored = self._stored or [torch.zeros_like(param, requires_grad=False) for param in self._params]
        return {
            "total": self._total,
            "iterate": stored,
            "swapped": self._swapped,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state; tensors are copied to the parameters' devices, dtypes and placements.

        Raises:
            ValueError: if an entry is missing or out of its range, the saved iterate has not the shapes and kinds of
                dtypes of `params`, or it is on another mesh; nothing is changed then.
        """
        check_keys(state_dict, "total", "iterate", "swapped", "generator")
        total, swapped = state_dict["total"], state_dict["swapped"]
        if not (isinstance(total, int | float) and 0 <= total < math.inf):
            raise ValueError(f"state_dict's total must be finite and at least 0, got {shown(total)}")
        if not isinstance(swapped, bool) or (swapped and total == 0):
            raise ValueError(f"state_dict's swapped must be False, or True if total > 0, got {shown(swapped)}")
        generator = saved_generator(state_dict, "generator")
        stored = saved_tensors(state_dict, "iterate", self._params, self._names)
        self._stored = stored if total > 0 else None
        self._total, self._swapped = total, swapped
        self._generator.set_state(generator)


@torch.no_grad()
def exchange(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Swap the contents of ``params`` and ``values`` in place; DTensors must be placed alike, and swap local parts."""
    for param, value in zip(map(local, params), map(local, values), strict=True):
        live = param.clone()  # one tensor at a time, to need memory for the largest only
        param.copy_(value)
        value.copy_(live)
