"""Steps of other packages, where they are installed; ``pip install 'sngd[bench]'`` installs them."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from sngd.bench.timing import Call

Build = Callable[[list[Tensor], float], Call]  # from parameters with gradients and a learning rate to a step


def plain_peers(limit: float) -> dict[str, Build]:
    """Clipping and a package's SGD: the step of SNGD while gradients are longer than the limit of clipping."""
    return {
        **_step("clip + optimi.SGD", "optimi", "SGD", limit),
        **_step("clip + pytorch_optimizer.SGDW", "pytorch_optimizer", "SGDW", limit),
    }


def other_peers(limit: float) -> dict[str, Build]:
    """Optimizers with momentum or averages that a user may take instead."""
    return {
        **_step("clip + heavyball.SGD", "heavyball", "SGD", limit, consume_grad=False),
        **_step("clip + schedulefree.SGD", "schedulefree", "SGDScheduleFree", limit),
    }


def kahan_peers(limit: float) -> dict[str, Build]:
    """Clipping and SGD with Kahan summation."""
    return _step("clip + optimi.SGD Kahan", "optimi", "SGD", limit, kahan_sum=True)


def _step(name: str, package: str, optimizer: str, limit: float, **options: Any) -> dict[str, Build]:
    """The step under its name; nothing if the package is not installed."""

    def build(params: list[Tensor], lr: float) -> Call:
        module = import_module(package)
        if package == "heavyball":
            module.utils.compile_mode = None  # compiling takes minutes, for one step
        made = getattr(module, optimizer)(params, lr=lr / limit, **options)
        if package == "schedulefree":
            made.train()

        def step() -> None:
            clip_grad_norm_(params, limit)
            made.step()

        return step

    return {name: build} if find_spec(package) else {}


def missing_peers() -> dict[str, str]:
    """The packages that are not installed, each with the reason why it is left out."""
    known = ("heavyball", "optimi", "pytorch_optimizer", "schedulefree")
    return {package: "not installed" for package in known if not find_spec(package)}
