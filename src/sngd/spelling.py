"""Names that are not known: said what is, and what was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(name: str, known: Iterable[str]) -> str:
    """``, did you mean 'NEAREST'?`` to put behind the wrong name, or nothing if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def check_one_of(option: str, name: str, known: Iterable[str]) -> None:
    """ValueError that names the option and what is allowed, if ``name`` is not."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {name!r}")
