"""Arguments are checked once, with one wording."""

import operator
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
