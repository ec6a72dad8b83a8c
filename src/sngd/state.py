"""State kept beside a model: it must fit the model's tensors, and saved state is checked before it is loaded.

Each check raises a ValueError that names the entry, what is allowed, and what was found. A ``load_state_dict`` makes
all of its checks first, so that it changes nothing if one fails.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sngd.checks import shown
from sngd.sharding import is_plain, placed_like

_MOST = 2**63 - 1  # of what is counted: no float holds much larger numbers, and no run counts so far


def trainable(model: nn.Module) -> tuple[list[Tensor], list[str]]:
    """The model's parameters that require a gradient, and what errors call them: "parameter '0.weight'"."""
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    return [param for _, param in named], [f"parameter {name!r}" for name, _ in named]


def fitted(what: str, tensors: Sequence[Tensor], params: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """``tensors`` with the dtypes, devices and placements of ``params``. Tensors that fit already are not copied.

    Args:
        what: the name of ``tensors`` in errors.
        tensors: one for each of ``params``, of its shape and kind of dtype (floating-point, complex, …).
        params: the tensors to fit.
        names: the name of each of ``params`` in errors.

    Raises:
        ValueError: the number of tensors, a shape or the kind of a dtype is another one, or a tensor is a DTensor on
            another mesh.
    """
    if len(tensors) != len(params):
        raise ValueError(f"{what} must hold {len(params)} tensors, got {len(tensors)}")
    for tensor, param, name in zip(tensors, params, names, strict=True):
        check_fits(what, name, tensor, param)
    return [t if _alike(t, p) else placed_like(t, p) for t, p in zip(tensors, params, strict=True)]


def check_fits(what: str, name: str, value: object, param: Tensor) -> Tensor:
    """``value``; ValueError unless it is a tensor of the shape and kind of dtype of ``param``, which ``name`` names."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} must be a tensor for {name}, got {shown(value)}")
    if value.shape != param.shape:
        raise ValueError(f"{what} must have shape {tuple(param.shape)} for {name}, got {tuple(value.shape)}")
    if value.dtype != param.dtype and _kind(value) != _kind(param):
        raise ValueError(f"{what} must be {_kind(param)} ({param.dtype}) for {name}, got {value.dtype}")
    return value


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "floating-point"
    return "boolean" if tensor.dtype == torch.bool else "integer"


def _alike(tensor: Tensor, param: Tensor) -> bool:
    """Whether both are plain tensors of one dtype and device. The check is quick, because every step makes it."""
    plain = is_plain(tensor) and is_plain(param)
    return plain and tensor.dtype == param.dtype and tensor.device == param.device


def saved_tensors(
    state: Mapping[str, Any], key: str, params: Sequence[Tensor], names: Sequence[str], what: str = "state_dict"
) -> list[Tensor]:
    """Copies of the tensors under ``key``, placed as ``params`` are; see ``fitted`` for what is refused."""
    return [tensor.detach().clone() for tensor in fitted(f"{what}'s {key}", state[key], params, names)]


def check_keys(state: Any, *keys: str, what: str = "state_dict") -> None:
    """ValueError if ``state`` is no dict, or lacks one of ``keys``."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} must be a dict, got {type(state).__name__}")
    if missing := [key for key in keys if key not in state]:
        raise ValueError(f"{what} lacks {', '.join(map(repr, missing))}")


def saved_count(state: Mapping[str, Any], key: str, least: int = 0, most: int = _MOST, what: str = "state_dict") -> int:
    """The int under ``key``; ValueError if it is no int from ``least`` to ``most``."""
    value = state[key]
    if type(value) is not int or not least <= value <= most:
        allowed = f"of at least {least}" if most == _MOST else f"from {least} to {most}"
        raise ValueError(f"{what}'s {key} must be a whole number {allowed}, got {shown(value)}")
    return value


def saved_generator(state: Mapping[str, Any], key: str, what: str = "state_dict") -> Tensor:
    """The state of a CPU generator under ``key``, moved to the CPU (``map_location`` may have put it elsewhere).

    ValueError if a generator does not accept it.
    """
    what, value = f"{what}'s {key}", state[key]
    length = torch.Generator().get_state().shape
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.shape != length:
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{what} must be a uint8 tensor of shape {tuple(length)}, got {got}")
    moved = value.cpu()
    try:
        torch.Generator().set_state(moved)
    except RuntimeError as error:
        raise ValueError(f"{what} must be a generator's state: {str(error).splitlines()[0]}") from None
    return moved
