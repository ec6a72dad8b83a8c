"""Checks of SNGD's options, buffers and tensors, and what several options mean together."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from sngd.checks import non_negative, shown
from sngd.norms import find_norm
from sngd.state import check_fits

Number = float | Tensor

BUFFERS = ("momentum_buffer", "kahan_buffer")


def check_options(options: dict[str, Any]) -> None:
    """ValueError for an option of a param group that is out of its range."""
    momentum, decay, cap = (options[k] for k in ("momentum", "weight_decay", "max_scale"))
    if not isinstance(options["lr"], Tensor) or options["lr"].device.type != "meta":
        check_lr(options["lr"])
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    if options["normalize"] not in ("gradient", "momentum"):
        raise ValueError(f"normalize must be 'gradient' or 'momentum', got {options['normalize']!r}")
    non_negative("weight_decay", decay)
    if not cap > 0:
        raise ValueError(f"max_scale must be greater than 0 (inf: no cap), got {cap}")
    if options["foreach"] and options["fused"]:
        raise ValueError("foreach and fused cannot both be True: choose one")


def check_saved(groups: Sequence[dict[str, Any]], saved: Mapping[str, Any]) -> None:
    """ValueError if a saved optimizer's norms or buffers do not fit these param groups."""
    check_norms(groups, saved)
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    params = [param for group in groups for param in group["params"]]
    if len(indices) == len(params):  # else torch refuses it
        state = {param: saved["state"].get(index, {}) for index, param in zip(indices, params, strict=True)}
        check_buffers(groups, state)  # before torch casts them


def check_norms(groups: Sequence[dict[str, Any]], saved: Mapping[str, Any]) -> None:
    """ValueError if a saved param group was made with another norm.

    A group without a norm is one that SNGD saved when it had the l2 norm alone, or another optimizer's. All of these
    lack ``skipped_steps``, and fit every norm.
    """
    default = "l2" if "skipped_steps" in saved else None
    pairs = zip(groups, saved["param_groups"], strict=False)  # torch checks their number
    for index, (group, other) in enumerate(pairs):
        own, loaded = str(find_norm(group["norm"])), other.get("norm", default)
        if loaded is not None and str(loaded) != own:
            raise ValueError(f"the norm of param group {index} is {own}, but the saved one's is {shown(loaded)}")


def check_lr(lr: Number) -> None:
    """ValueError unless ``lr`` is one finite number ≥ 0. Reading a tensor on an accelerator waits for it."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a number or a one-element tensor, got a tensor of shape {tuple(lr.shape)}")
    non_negative("lr", float(lr) if isinstance(lr, Tensor) else lr)


def check_lrs(groups: Sequence[dict[str, Any]]) -> None:
    """ValueError for a learning rate out of range, because a nan would reach every weight.

    Only learning rates that the host can read without waiting are checked.
    """
    if not torch.compiler.is_compiling():
        for group in groups:
            lr = group["lr"]
            if type(lr) is float and 0 <= lr < inf:  # as nearly always, and soon known
                continue
            if not isinstance(lr, Tensor) or lr.device.type == "cpu":
                check_lr(lr)


def feels_the_scale(group: dict[str, Any]) -> bool:
    """Whether the step changes if all gradients are multiplied by a constant."""
    return bool(averages(group) or coupled_decay(group) or group["max_scale"] < inf)


def averages(group: dict[str, Any]) -> bool:
    """Whether the vector that is normalized is a running mean of gradients."""
    return bool(group["momentum"] and group["normalize"] == "momentum")


def coupled_decay(group: dict[str, Any]) -> float:
    """λ in g + λw; 0 if weight decay is decoupled."""
    return 0.0 if group["decoupled_weight_decay"] else float(group["weight_decay"])


def is_zero(lr: Number) -> bool:
    """Whether ``lr`` is 0; False if the host would have to wait for an accelerator to know."""
    on_host = not isinstance(lr, Tensor) or (lr.device.type == "cpu" and not torch.compiler.is_compiling())
    return on_host and float(lr) == 0


def check_buffers(groups: Sequence[dict[str, Any]], state: Any) -> None:
    """ValueError for a saved buffer that has not its parameter's shape and kind of dtype."""
    for param in (param for group in groups for param in group["params"]):
        for name in BUFFERS:
            buffer = state.get(param, {}).get(name)
            if buffer is not None:
                check_fits(f"the {name}", name_of(param, groups), buffer, param)


def name_of(param: Tensor, groups: Sequence[dict[str, Any]]) -> str:
    """``parameter 3 (head.weight)``: its index over all groups and its name, if the optimizer has names."""
    index = 0
    for group in groups:
        for position, other in enumerate(group["params"]):
            if other is param:
                names = group.get("param_names")
                return f"parameter {index + position}" + (f" ({names[position]})" if names else "")
        index += len(group["params"])
    return "a parameter"


def check_shapes(
    params: Sequence[Tensor], lists: Mapping[str, Sequence[Tensor]], groups: Sequence[dict[str, Any]]
) -> None:
    """ValueError for a tensor that does not have its parameter's shape, because some of torch's kernels do not check.

    Args:
        params: the parameters, which errors name.
        lists: from a name that errors use ("gradient", …) to one tensor for each parameter, or to none. "weights" are
            the tensors that the step changes.
        groups: all param groups.
    """
    shapes = [weight.shape for weight in lists["weights"]]
    compiling = torch.compiler.is_compiling()  # torch 2.6 cannot compile a comparison of lists
    for name, tensors in lists.items():
        if name == "weights":
            continue
        if not compiling and [tensor.shape for tensor in tensors] == shapes:  # quicker than one by one
            continue
        for index, tensor in enumerate(tensors):
            if compiling and tensor.shape == shapes[index]:
                continue
            check_fits(f"the {name}", name_of(params[index], groups), tensor, lists["weights"][index])
