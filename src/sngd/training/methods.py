"""The methods, one readable row each: estimator × step rule × stage plan × output rule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sngd.estimators import Estimator, Full, MiniBatch
from sngd.optim import SNGD

Estimate = Callable[[nn.Module, int, int], Estimator]  # (model, batch size, n)
StepRule = Callable[[Iterable[Tensor], float, float], Optimizer]  # (params, lr, weight decay)


def minibatch(model: nn.Module, batch_size: int, _n: int) -> Estimator:
    """g = (1/b) Σ ∇f(w; a) over b samples: b oracle calls a step."""
    return MiniBatch(model, batch_size)


def full(model: nn.Module, _batch_size: int, n: int) -> Estimator:
    """g = ∇F(w) over all n samples: n oracle calls a step."""
    return Full(model, n)


def gradient(params: Iterable[Tensor], lr: float, weight_decay: float) -> Optimizer:
    """w ← w − α(g + λw)"""
    return torch.optim.SGD(params, lr, weight_decay=weight_decay)


def normalized(params: Iterable[Tensor], lr: float, weight_decay: float) -> Optimizer:
    """w ← w − α(g + λw)/‖g + λw‖"""
    return SNGD(params, lr, weight_decay=weight_decay)


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    ``lr`` is the default learning rate α (of the first stage), ``plan`` the default stage plan, as ``sngd train
    --plan`` spells it; ``paper`` says where the method is defined.
    """

    name: str
    estimator: Estimate
    step_rule: StepRule
    plan: str
    lr: float
    summary: str
    paper: str


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("gd", full, gradient, "constant", 0.1, "gradient descent on all samples", "eq. 2"),
        Method("ngd", full, normalized, "constant", 0.1, "normalized gradient descent on all samples", "eq. 3"),
        Method("sgd", minibatch, gradient, "constant", 0.1, "stochastic gradient descent", "eq. 2"),
        Method("s-sgd", minibatch, gradient, "poly", 0.5, "stagewise SGD", "[27]"),
        Method("sngd", minibatch, normalized, "constant", 0.1, "stochastic normalized gradient descent", "Algorithm 1"),
        Method("s-sngd", minibatch, normalized, "poly", 0.5, "stagewise SNGD", "Algorithm 2"),
    )
}


def find_method(name: str) -> Method:
    """The row called ``name``; ValueError with the nearest name if there is none."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"unknown method {name!r}{meant} must be one of {', '.join(METHODS)}")
    return METHODS[name]
