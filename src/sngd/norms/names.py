"""Norms by name, as users and saved states spell them: ``spectral``, ``row(table=True)``."""

import re
from dataclasses import fields
from typing import Any

from sngd.checks import shown, suggestion
from sngd.norms.col import Col
from sngd.norms.l2 import L2
from sngd.norms.layer import Layer
from sngd.norms.norm import Norm
from sngd.norms.row import Row
from sngd.norms.sign import Sign
from sngd.norms.spectral import Spectral

NORMS: dict[str, type[Norm]] = {norm.name: norm for norm in (L2, Layer, Sign, Spectral, Row, Col)}

_FOUND: dict[str, Norm] = {}  # by spelling, because every step asks and a compiled graph cannot parse
_SPELLING = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


def find_norm(norm: "str | Norm") -> Norm:
    """The norm of this spelling, NAME or NAME(option=value, …); a ``Norm`` is returned as it is.

        >>> find_norm("spectral(steps=7, coefficients=polar-express)")
        Spectral(scaled=True, table=False, steps=7, coefficients='polar-express')

    Raises:
        ValueError: there is no such norm or option, or a value is not allowed.
        TypeError: ``norm`` is neither a text nor a ``Norm``.
    """
    if isinstance(norm, Norm):
        return norm
    if not isinstance(norm, str):
        raise TypeError(f"norm must be a name or a sngd.norms.Norm, got {shown(norm)}")
    if norm not in _FOUND:
        _FOUND[norm] = _parsed(norm)
    return _FOUND[norm]


def spelled(norm: Norm) -> "str | Norm":
    """The spelling of a norm of this library; a norm of somebody else's as it is, for it has none."""
    return str(norm) if type(norm) in NORMS.values() else norm


def _parsed(norm: str) -> Norm:
    match = _SPELLING.fullmatch(norm)
    name = match[1] if match else norm
    if not match or name not in NORMS:
        meant = suggestion(name, NORMS) or ";"
        raise ValueError(f"unknown norm {shown(norm)}{meant} must be one of {', '.join(NORMS)}")
    kind = NORMS[name]
    options: dict[str, Any] = {}
    for option, value in (_option(kind, text) for text in (match[2] or "").split(",") if text.strip()):
        if option in options:
            raise ValueError(f"norm {name}: {option} is given twice")
        options[option] = value
    return kind(**options)


def _option(kind: type[Norm], text: str) -> tuple[str, Any]:
    name, _, value = (part.strip() for part in text.partition("="))
    known = [field.name for field in fields(kind)]
    if name not in known or not value:
        raise ValueError(f"norm {kind.name} takes {', '.join(f'{k}=…' for k in known)}, got {shown(text.strip())}")
    if value in ("True", "False"):
        return name, value == "True"
    return name, int(value) if value.isdecimal() and len(value) < 10 else value
