"""What other libraries' loops do to an optimizer, seen from the optimizer; and the examples as modules."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import sngd

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}  # read when imported


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Steps:
    """Every step that an SNGD took: its learning rate, and how far the weights moved."""

    lrs: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def assert_played(self, plan: sngd.stages.StagePlan, steps: range) -> None:
        """Those steps of the plan and no others were taken, each of them normalized."""
        assert self.lrs == [plan.lr_at(step) for step in steps]
        torch.testing.assert_close(torch.tensor(self.lengths), torch.tensor(self.lrs), rtol=1e-4, atol=0)


@contextmanager
def observed_steps() -> Iterator[Steps]:
    steps, before = Steps(), {}

    def start(optimizer: Optimizer, *_: object) -> None:
        if type(optimizer) is sngd.SNGD:  # not a library's wrapper around it
            steps.lrs.append(optimizer.param_groups[0]["lr"])
            before["weights"] = _weights(optimizer)

    def end(optimizer: Optimizer, *_: object) -> None:
        if type(optimizer) is sngd.SNGD:
            steps.lengths.append(torch.dist(_weights(optimizer), before["weights"]).item())

    hooks = [register_optimizer_step_pre_hook(start), register_optimizer_step_post_hook(end)]
    yield steps
    for hook in hooks:
        hook.remove()


def _weights(optimizer: Optimizer) -> Tensor:
    return torch.cat([p.detach().double().flatten() for group in optimizer.param_groups for p in group["params"]])


def assert_same_weights(model: nn.Module, other: nn.Module, atol: float = 0.0) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=atol)
