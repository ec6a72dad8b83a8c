"""Gaussian noise on top of any optimizer: Saddle-NGD and Noisy-GD."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sngd.checks import count, non_negative
from sngd.norms.global_norm import global_norm
from sngd.optim.options import is_zero
from sngd.sharding import gradient, local, own_generator, placed_like, refuse_flat_shards
from sngd.state import check_keys, saved_count, saved_generator

_SHARED = (
    "param_groups",
    "state",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Perturbed(Optimizer):
    """Adds ξ ~ N(0, std² I) to the weights after every ``every``-th step of another optimizer, the first included.

    * Saddle-NGD (eq. 4, Levy 2016): ``Perturbed(SNGD(params, lr), std, every=q)`` on full gradients;
    * Noisy-GD (Ge et al. 2015), w ← w − α(∇F + ζ): ``Perturbed(SGD(params, lr), std=lr * std_of_ζ)``.

    It shares param groups, state and state-dict hooks with the wrapped optimizer, so schedulers, added groups and
    checkpoints work as without it.

    In a distributed run every rank draws the noise of whole parameters, one at a time on the CPU, and adds its own part
    of it. So replicas stay equal, and the noise does not depend on the number of ranks.

        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = Perturbed(torch.optim.SGD(model.parameters(), lr=0.1), std=1e-3, every=10)

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        std: standard deviation of each entry of ξ, ≥ 0; with 0 nothing is drawn.
        every: q ≥ 1; step t = 0, 1, … is perturbed when mod(t, q) = 0.
        generator: CPU generator of the noise, so that it is the same on every device; in a distributed run it must have
            the same state on all ranks. Default: a new one, seeded from torch's global generator (rank 0's).

    Raises:
        ValueError: std or every is out of its range, or ``FullyShardedDataParallel`` flattened the parameters.
    """

    def __init__(
        self, optimizer: Optimizer, std: float, every: int = 1, generator: torch.Generator | None = None
    ) -> None:
        self.optimizer, self.std, self.every = optimizer, non_negative("std", std), count("every", every)
        self.generator = generator or own_generator([p for g in optimizer.param_groups for p in g["params"]])
        self.steps = 0
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share()

    @property
    def skipped_steps(self) -> int:
        """Steps that the wrapped optimizer skipped, if it counts them as ``SNGD`` does, else 0."""
        return int(getattr(self.optimizer, "skipped_steps", 0))

    def _share(self) -> None:
        for name in _SHARED:
            setattr(self, name, getattr(self.optimizer, name))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let the wrapped optimizer take its step, then add noise if this is a perturbed step."""
        self._share()  # again, for a state that was loaded into the wrapped optimizer
        if closure is None and self._is_void():
            return self.optimizer.step()
        loss = self.optimizer.step(closure)
        if self.std > 0 and self.steps % self.every == 0:
            self._perturb()
        self.steps += 1
        return loss

    def _is_void(self) -> bool:
        """Whether the step only creates state, as ``torch.distributed.checkpoint`` does: lr 0, zero gradients."""
        if not all(is_zero(group["lr"]) for group in self.param_groups):
            return False
        grads = [gradient(p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        return not global_norm(grads)

    @torch.no_grad()
    def _perturb(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    noise = torch.randn(param.shape, generator=self.generator, dtype=param.dtype, device="cpu")
                    local(param).add_(local(placed_like(noise, param)), alpha=self.std)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group to the wrapped optimizer, and so to this one."""
        if not any(group is param_group for group in self.optimizer.param_groups):  # the constructor's are there
            self.optimizer.add_param_group(param_group)
        refuse_flat_shards(param_group["params"])

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict, with the step count and the generator's state in the first param group.

        They are in a param group because ``torch.distributed.checkpoint.state_dict`` keeps only groups and state.
        """
        state = self.optimizer.state_dict()
        own = {"steps": self.steps, "generator": bytes(self.generator.get_state().tolist()).hex()}
        first, *others = state["param_groups"]
        return {**state, "param_groups": [{**first, "perturbed": own}, *others]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned. The wrapped optimizer's own state dict leaves steps and generator alone.

        Raises:
            ValueError: the saved steps or generator are missing or out of range; nothing is changed then.
        """
        check_keys(state_dict, "param_groups")
        first, *others = state_dict["param_groups"]
        wrapped = {name: value for name, value in first.items() if name != "perturbed"}
        saved = _saved_noise(own) if (own := first.get("perturbed")) else None
        self.optimizer.load_state_dict({**state_dict, "param_groups": [wrapped, *others]})
        self._share()
        if saved is not None:
            self.steps = saved[0]
            self.generator.set_state(saved[1])

    def __getstate__(self) -> dict[str, Any]:
        names = "defaults", "optimizer", "std", "every", "generator", "steps"
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()


def _saved_noise(own: Any) -> tuple[int, Tensor]:
    """Step count and generator's state of a state dict, checked."""
    what = "state_dict's perturbed"
    check_keys(own, "steps", "generator", what=what)
    try:
        content = list(bytes.fromhex(own["generator"]))
    except (TypeError, ValueError):
        raise ValueError(f"{what}'s generator must be a generator's state in hexadecimal digits") from None
    state = {"generator": torch.tensor(content, dtype=torch.uint8)}
    return saved_count(own, "steps", what=what), saved_generator(state, "generator", what=what)
