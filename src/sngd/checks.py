"""Checks of arguments and names, so that all errors about them have the same wording."""

from collections.abc import Iterable
from difflib import get_close_matches
from math import inf
from reprlib import Repr

_LONGEST_QUOTE = 200  # characters
_LONGEST_NAME = 100  # no suggestion is looked for if a name is longer
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _LONGEST_QUOTE
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """``repr(value)`` for an error message: one line of at most 200 characters, made quickly for any value."""
    try:
        return cut(_REPR.repr(value))
    except Exception:  # an int with too many digits, or an object whose own repr fails
        return f"<{type(value).__name__}>"


def cut(text: str) -> str:
    """``text`` in one line, its middle left out if it is longer than 200 characters."""
    line = " ".join(text.split())
    half = _LONGEST_QUOTE // 2
    return line if len(line) <= _LONGEST_QUOTE else f"{line[: half - 2]} … {line[1 - half :]}"


def positive(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite and > 0."""
    if not hasattr(value, "__float__") or not 0 < float(value) < inf:
        raise ValueError(f"{name} must be finite and greater than 0, got {shown(value)}")
    return float(value)


def non_negative(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite and ≥ 0."""
    if not hasattr(value, "__float__") or not 0 <= float(value) < inf:
        raise ValueError(f"{name} must be finite and at least 0, got {shown(value)}")
    return float(value)


def finite(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite."""
    if not hasattr(value, "__float__") or not -inf < float(value) < inf:
        raise ValueError(f"{name} must be a finite number, got {shown(value)}")
    return float(value)


def count(name: str, value: float) -> int:
    """`value` as an int; ValueError unless it is a whole number ≥ 1, of whatever type."""
    whole = hasattr(value, "__index__") or (isinstance(value, float) and value.is_integer())
    if not whole or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {shown(value)}")
    return int(value)


def suggestion(name: str, known: Iterable[str]) -> str:
    """``, did you mean 'NEAREST'?`` to put behind the wrong name, or nothing if none is near."""
    near = get_close_matches(name, list(known), n=1) if len(name) <= _LONGEST_NAME else []
    return f", did you mean {near[0]!r}?" if near else ""


def check_one_of(option: str, name: str, known: Iterable[str]) -> None:
    """ValueError that names the option and what is allowed, if ``name`` is not."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {shown(name)}")
