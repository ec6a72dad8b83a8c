"""Evaluate the same samples again at other weights, as if nothing but the weights had changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sngd.iterates import exchange


class Chance:
    """The state of torch's random generators at one moment, on the CPU and on a model's device.

    A second evaluation that starts from the same state draws the same dropout masks and the same augmentation.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._cpu_state = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(d) for d in self._cuda]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, draws repeat what followed the recorded moment; outside, the generators go on as if it never was."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._cpu_state)
            for device, state in zip(self._cuda, self._cuda_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@contextmanager
def at_weights(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, ``params`` hold ``values``; ``values`` keep the live weights meanwhile."""
    exchange(params, values)
    try:
        yield
    finally:
        exchange(params, values)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Whatever happens to the model's buffers inside (BatchNorm's running statistics) is undone."""
    buffers = list(model.buffers())
    before = [b.detach().clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
