"""Which training samples come next."""

from typing import Any

import torch
from torch import Tensor


class SampleStream:
    """Sample indices in shuffled passes: the first n drawn are one permutation of the data, the next n another.

    Batches of any size are cut from the one stream, across the border of two passes where need be, so every batch has
    exactly the size asked for and methods with unequal batches still see each sample once a pass.

    Args:
        n: number of samples, ≥ 1.
        generator: CPU generator that the permutations are drawn from.
        device: where the indices are wanted.
    """

    def __init__(self, n: int, generator: torch.Generator, device: torch.device) -> None:
        self.n, self.generator, self.device = n, generator, device
        self.drawn = 0  # samples so far
        self._shuffle()

    def draw(self, size: int) -> Tensor:
        """Next ``size`` indices: int64 tensor of shape (size,) on the device."""
        parts = []
        while size > 0:
            start = self.drawn % self.n
            if start == 0 and self.drawn > 0:
                self._shuffle()
            part = self._pass[start : start + size]
            parts.append(part)
            size -= len(part)
            self.drawn += len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shuffle(self) -> None:
        self._before_pass = self.generator.get_state()
        self._pass = torch.randperm(self.n, generator=self.generator).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Position, and the generator's state before this pass: the permutation is drawn again, not stored."""
        return {"drawn": self.drawn, "before_pass": self._before_pass}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]
        self.generator.set_state(state["before_pass"])
        self._shuffle()
