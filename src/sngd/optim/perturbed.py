"""Gaussian noise on top of any optimizer: Saddle-NGD and Noisy-GD."""

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch.optim import Optimizer


class Perturbed(Optimizer):
    """Adds ξ ~ N(0, std² I) to the weights after every ``every``-th step of another optimizer, the first included.

    * Saddle-NGD (eq. 4, Levy 2016): ``Perturbed(SNGD(params, lr), std, every=q)`` on full gradients;
    * Noisy-GD (Ge et al. 2015), w ← w − α(∇F + ζ): ``Perturbed(SGD(params, lr), std=lr * std_of_ζ)``.

    It shares param groups and state with the wrapped optimizer, so schedulers and param groups work as ever.

        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = Perturbed(torch.optim.SGD(model.parameters(), lr=0.1), std=1e-3, every=10)

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        std: standard deviation of each entry of ξ, ≥ 0; with 0 nothing is drawn.
        every: q ≥ 1; step t = 0, 1, … is perturbed when mod(t, q) = 0.
        generator: CPU generator of the noise, so that it is the same on every device. Default: one of its own, seeded
            from torch's global generator.

    Raises:
        ValueError: std or every is out of its range.
    """

    def __init__(
        self, optimizer: Optimizer, std: float, every: int = 1, generator: torch.Generator | None = None
    ) -> None:
        if not (std >= 0 and isfinite(std)):
            raise ValueError(f"std must be finite and at least 0, got {std}")
        if every != int(every) or every < 1:
            raise ValueError(f"every must be a whole number of at least 1, got {every}")
        self.optimizer, self.std, self.every = optimizer, std, int(every)
        self.generator = generator or torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self.steps = 0
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share()

    @property
    def skipped_steps(self) -> int:
        """Steps that the wrapped optimizer skipped, if it counts them as ``SNGD`` does, else 0."""
        return int(getattr(self.optimizer, "skipped_steps", 0))

    def _share(self) -> None:
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let the wrapped optimizer take its step, then perturb if it is time."""
        loss = self.optimizer.step(closure)
        if self.std > 0 and self.steps % self.every == 0:
            self._perturb()
        self.steps += 1
        return loss

    @torch.no_grad()
    def _perturb(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    noise = torch.randn(param.shape, generator=self.generator, dtype=param.dtype)
                    param.add_(noise.to(param.device), alpha=self.std)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to both."""
        if not any(group is param_group for group in self.optimizer.param_groups):  # the constructor's are there
            self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict, with the step count and the generator's state under ``perturbed``."""
        own = {"steps": self.steps, "generator": self.generator.get_state()}
        return {**self.optimizer.state_dict(), "perturbed": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)
        self._share()
        self.steps = state_dict["perturbed"]["steps"]
        self.generator.set_state(state_dict["perturbed"]["generator"].cpu())
