"""Evaluate the same samples again at other weights, with the same random numbers and unchanged buffers."""

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
        """Inside, draws repeat those that followed the recorded moment. Afterwards the generators are as before."""
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
    """At the end, restore the model's buffers, such as BatchNorm's running statistics."""
    buffers = list(model.buffers())
    before = [b.detach().clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
