"""Evaluate the same samples again at other weights, with the same random numbers and unchanged buffers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sngd.iterates import exchange


def generator_state(device: torch.device) -> Tensor:
    """The state of torch's random generator for this device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


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


def buffers_kept(model: nn.Module) -> AbstractContextManager[None]:
    """At the end, restore the model's buffers, such as BatchNorm's running statistics."""
    return tensors_kept([module._buffers for module in model.modules() if module._buffers])


@contextmanager
def tensors_kept(places: Iterable[dict[Any, Any]]) -> Iterator[None]:
    """At the end, the dicts hold the same tensors as before, with the same numbers, or None; the rest is left alone."""
    entries = ((place, key, value) for place in places for key, value in place.items())
    held = [(place, key, value) for place, key, value in entries if value is None or isinstance(value, Tensor)]
    before = [(value, value.detach().clone()) for _, _, value in held if value is not None]
    try:
        yield
    finally:
        for place, key, value in held:
            if place[key] is not value:
                place[key] = value
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
