"""Which training samples come next: shuffled passes, as in practice, or independent draws, as in the theory."""

from typing import Any, Protocol

import torch
from torch import Tensor

from sngd.state import check_keys, saved_count, saved_generator


class Sampler(Protocol):
    """A stream of sample indices, resumable anywhere."""

    def draw(self, size: int) -> Tensor:
        """Next ``size`` indices: int64 tensor of shape (size,) on the device."""

    def state_dict(self) -> dict[str, Any]:
        """For ``torch.load(…, weights_only=True)``."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError, and nothing is changed, if it is none."""


class Shuffled:
    """Shuffled passes: the first n drawn are one permutation of the data, the next n another.

    Batches of any size are cut from this stream, and may cross the border of two passes. So every batch has exactly the
    requested size, and methods with unequal batches still see each sample once a pass.

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
        parts = []
        while size > 0:
            start = self.drawn % self.n
            if start == 0 and self.drawn > 0:
                self._shuffle()
            taken = min(size, self.n - start)
            parts.append(self._pass[start : start + taken])
            size -= taken
            self.drawn += taken
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shuffle(self) -> None:
        self._before_pass = self.generator.get_state()
        self._pass = torch.randperm(self.n, generator=self.generator).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Position, and the generator's state before this pass: the permutation is drawn again, not stored."""
        return {"drawn": self.drawn, "before_pass": self._before_pass}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_keys(state, "drawn", "before_pass")
        drawn, generator = saved_count(state, "drawn"), saved_generator(state, "before_pass")
        self.drawn = drawn
        self.generator.set_state(generator)
        self._shuffle()


class Independent:
    """Every index is drawn uniformly and independently of all others, as the theorems assume.

    Args:
        n: number of samples, ≥ 1.
        generator: CPU generator that the indices are drawn from.
        device: where the indices are wanted.
    """

    def __init__(self, n: int, generator: torch.Generator, device: torch.device) -> None:
        self.n, self.generator, self.device = n, generator, device

    def draw(self, size: int) -> Tensor:
        return torch.randint(self.n, (size,), generator=self.generator).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_keys(state, "generator")
        self.generator.set_state(saved_generator(state, "generator"))


SAMPLERS: dict[str, type[Shuffled] | type[Independent]] = {"shuffled": Shuffled, "independent": Independent}
