"""One wording for every argument that is out of its range, and for names that are not known."""

import operator
from collections.abc import Iterable
from difflib import get_close_matches
from math import inf


def positive(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite and > 0."""
    if not hasattr(value, "__float__") or not 0 < float(value) < inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return float(value)


def non_negative(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite and ≥ 0."""
    if not hasattr(value, "__float__") or not 0 <= float(value) < inf:
        raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
    return float(value)


def finite(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite."""
    if not hasattr(value, "__float__") or not -inf < float(value) < inf:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def count(name: str, value: int) -> int:
    """`value` as an int; ValueError unless it is an integer ≥ 1."""
    if not hasattr(value, "__index__") or operator.index(value) < 1:
        raise ValueError(f"{name} must be an integer ≥ 1, got {value!r}")
    return operator.index(value)


def suggestion(name: str, known: Iterable[str]) -> str:
    """``, did you mean 'NEAREST'?`` to put behind the wrong name, or nothing if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def check_one_of(option: str, name: str, known: Iterable[str]) -> None:
    """ValueError that names the option and what is allowed, if ``name`` is not."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {name!r}")
