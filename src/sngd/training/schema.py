"""Read files strictly: a type declares what a file may hold, and a file that differs gets a one-line error.

A schema is a ``TypedDict``, a dataclass, or any type made of these and of numbers, strings, lists and dicts;
``Annotated[int, Declared(ge=0)]`` adds a range. Values are not converted: a bool or a string is no number, 1.0 is no
int (but 1 is a float), a number is finite, an int has 64 bits, and a key that is not declared is an error.

Reading needs msgspec, which ``sngd[lab]`` installs. Declaring does not, so a new run needs torch and numpy alone.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from sngd.checks import cut, shown, suggestion
from sngd.files import NotRegular, read_file

T = TypeVar("T")

_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Declared:
    """The range, help and option names of a value, beside its type.

    A number is greater than ``gt``, at least ``ge``, at most ``le``. A string is ``one_of`` some, or ``one_line``:
    without control characters and ends of lines. ``length`` is the least and the largest number of entries of a list,
    or of characters of a string. ``help`` says in a line what it is. ``options`` are its spellings on the command line,
    "--" before the name if None; with none it has no option there.
    """

    gt: float | None = None
    ge: float | None = None
    le: float | None = None
    one_of: tuple[str, ...] = ()
    one_line: bool = False
    length: tuple[int, int] | None = None
    help: str = ""
    options: tuple[str, ...] | None = None

    def range(self) -> str:
        """Of a number, as ``> 0``; "" if it may be any."""
        ends = [f"{sign} {end:g}" for sign, end in ((">", self.gt), ("≥", self.ge), ("≤", self.le)) if end is not None]
        return " and ".join(ends)


Count = Annotated[int, Declared(ge=0)]
Positive = Annotated[float, Declared(gt=0)]
NonNegative = Annotated[float, Declared(ge=0)]
ONE_LINE = Declared(one_line=True, length=(0, 1000))
Line = Annotated[str, ONE_LINE]  # a name, a path: what messages, tables and folders are called by

# neither control characters, nor what str.splitlines() takes for an end of a line, nor half a character
_LINE = "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]*$"


class Malformed(ValueError):
    """A document is not what its schema declares."""


class NotJSON(Malformed):
    """A document is damaged as a whole, or cut short."""


class UnknownKey(ValueError):
    """A document has a key that its schema does not declare; another version of the project may have written it."""


# ---- reading -------------------------------------------------------------------------------------------------


def read(path: Path, schema: type[T]) -> T:
    """The JSON document in ``path``, plain dicts and lists, checked by ``schema``.

    Raises:
        FileNotFoundError: no such file.
        Malformed, UnknownKey: (ValueErrors) it does not hold what ``schema`` declares; the message names the file and
            the place in it.
        ValueError: msgspec is not installed.
    """
    return decode(content_of(path), schema, str(path))


def content_of(path: Path) -> bytes:
    """The file's bytes; Malformed if ``path`` is a folder, a pipe or a device."""
    try:
        return read_file(path)
    except NotRegular as error:
        raise Malformed(str(error)) from None


def decode(content: bytes, schema: type[T], where: str) -> T:
    """The JSON document ``content``, checked by ``schema``; ``where`` it comes from begins the messages.

    Raises:
        Malformed, UnknownKey: (ValueErrors) it is not what ``schema`` declares; NotJSON: it is not even JSON.
        ValueError: msgspec is not installed.
    """
    msgspec = _msgspec(where)
    try:
        _decoder(cast(Any, schema)).decode(content)
        return cast(T, msgspec.json.decode(content))
    except msgspec.ValidationError as error:
        raise _named(error, schema, where) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise NotJSON(f"{where}: not JSON ({reason})") from None
    except RecursionError:
        raise NotJSON(f"{where}: not JSON (nested too deep)") from None


def check(value: object, schema: type[T], where: str, place: str = "") -> T:
    """``value``, which some other file held, checked by ``schema``; ``place`` is where in ``where`` it was.

    Raises:
        Malformed, UnknownKey: (ValueErrors) it is not what ``schema`` declares.
        ValueError: msgspec is not installed.
    """
    msgspec = _msgspec(where)
    try:
        msgspec.convert(value, _strict(cast(Any, schema)))
    except msgspec.ValidationError as error:
        raise _named(error, schema, where, place) from None
    except (RecursionError, AttributeError, TypeError, RuntimeError) as error:  # a tensor where a dict must be
        reason = "nested too deep" if isinstance(error, RecursionError) else f"not plain values ({cut(str(error))})"
        raise Malformed(f"{where}: {place or 'its content is'} {reason}") from None
    return cast(T, value)


def _msgspec(where: str) -> Any:
    try:
        import msgspec
    except ImportError:
        raise ValueError(f"{where}: reading it needs the package msgspec: pip install 'sngd[lab]'") from None
    return msgspec


def _named(error: Exception, schema: object, where: str, place: str = "") -> Malformed | UnknownKey:
    """msgspec's words behind ``where``: ``FILE: expected `float`, got `str` - at `$.lr` ``, $ being the document."""
    reason, _, inside = str(error).partition(" - at `")
    reason = reason[0].lower() + reason[1:]
    inside = cut(inside.removesuffix("`").replace("$", f"$.{place}" if place else "$", 1))
    at = f" - at `{inside}`" if inside else f" - at `$.{place}`" if place else ""
    if unknown := re.search(r"unknown field `(.*)`", reason):
        meant = suggestion(unknown[1], sorted(set(_names(schema))))
        return UnknownKey(f"{where}: {cut(reason)}{at}{meant}")
    reason = reason.replace(f"matching regex {_LINE!r}", "of one line, without control characters")
    return Malformed(f"{where}: {cut(reason)}{at}")


def _names(schema: object) -> Iterator[str]:
    """All keys that a schema knows, at any depth."""
    if _is_record(schema):
        hints = get_type_hints(schema, include_extras=True)
        yield from hints
        for hint in hints.values():
            yield from _names(hint)
    for part in get_args(schema):
        yield from _names(part)


# ---- schemas for msgspec -------------------------------------------------------------------------------------


@cache
def _decoder(schema: object) -> Any:
    import msgspec

    return msgspec.json.Decoder(_strict(schema))


@cache
def _strict(schema: object, limits: Declared = Declared()) -> Any:
    """``schema`` in msgspec's types, which refuse what it does not declare."""
    import msgspec

    if _is_record(schema):
        return msgspec.defstruct(
            cast(type, schema).__name__,
            [(name, _strict(hint), *absent) for name, hint, absent in _entries(schema, msgspec.UNSET)],
            forbid_unknown_fields=True,
            kw_only=True,
        )
    origin, parts = get_origin(schema), get_args(schema)
    if origin is Annotated:
        marks = [mark for mark in parts[1:] if isinstance(mark, Declared)]
        return _strict(parts[0], *marks)
    if origin in (Union, UnionType):
        return Union[tuple(_strict(part, limits) for part in parts)]  # noqa: UP007
    if schema is int:
        least = -_LARGEST if limits.ge is None else int(limits.ge)
        return Annotated[int, msgspec.Meta(ge=least, le=_LARGEST)]
    if schema is float:
        ends: dict[str, Any] = {"gt": limits.gt, "ge": limits.ge, "le": limits.le}
        return Annotated[float, msgspec.Meta(**ends)]
    if schema is str and limits.one_of:
        return Literal[limits.one_of]
    if schema is str and limits.one_line:
        least, most = limits.length or (0, None)
        return Annotated[str, msgspec.Meta(pattern=_LINE, min_length=least, max_length=most)]
    if parts and origin is not Literal:
        made = cast(Any, origin)[tuple(part if part is ... else _strict(part) for part in parts)]
        if limits.length is None:
            return made
        return Annotated[made, msgspec.Meta(min_length=limits.length[0], max_length=limits.length[1])]
    return schema


def _is_record(schema: object) -> bool:
    return isinstance(schema, type) and (is_typeddict(schema) or is_dataclass(schema))


def _entries(schema: Any, absent: object) -> Iterator[tuple[str, object, tuple[object, ...]]]:
    """Name, type and what stands for it if it is absent, which is nothing where it must be there."""
    optional: Callable[[str], bool]
    if is_dataclass(schema):
        defaults = {f.name for f in fields(schema) if f.default is not MISSING or f.default_factory is not MISSING}
        optional = defaults.__contains__
    else:
        optional = schema.__optional_keys__.__contains__
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if get_origin(hint) is NotRequired:  # which __optional_keys__ misses where annotations are strings
            yield name, get_args(hint)[0], (absent,)
        else:
            yield name, hint, (absent,) if optional(name) else ()


# ---- values that no file held --------------------------------------------------------------------------------


def check_value(name: str, value: object, hint: Any) -> None:
    """ValueError that names the argument, its value and what is allowed, if it is not what ``hint`` declares.

    None, where ``hint`` allows it, and types other than numbers and strings ``one_of`` some pass.
    """
    kinds, limits = _kinds(hint)
    if value is None and NoneType in kinds:
        return
    if bool in kinds and not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    if limits.one_of and value not in limits.one_of:
        raise ValueError(f"{name} must be {' or '.join(map(repr, limits.one_of))}, got {shown(value)}")
    if str in kinds and not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {shown(value)}")
    if isinstance(value, str) and limits.one_line:
        longest = limits.length[1] if limits.length else len(value)
        if len(value) > longest or not re.search(_LINE, value):
            allowed = f"one line of at most {longest} characters, without control characters"
            raise ValueError(f"{name} must be {allowed}, got {shown(value)}")
    if int in kinds and not (isinstance(value, int) and _within(value, limits) and value <= _LARGEST):
        least = "" if limits.ge is None else f" of at least {limits.ge:g}"
        most = " below 2**63" if isinstance(value, int) and value > _LARGEST else ""
        raise ValueError(f"{name} must be a whole number{least}{most}, got {shown(value)}")
    if float in kinds and not _within(value, limits):
        least = f" and greater than {limits.gt:g}" if limits.gt is not None else ""
        least += f" and at least {limits.ge:g}" if limits.ge is not None else ""
        least += f" and at most {limits.le:g}" if limits.le is not None and is_finite(value) else ""
        raise ValueError(f"{name} must be finite{least}, got {shown(value)}")


def parse(name: str, text: str, hint: Any) -> object:
    """The value of the type that ``hint`` declares that ``text`` spells, its range unchecked; a bool is 0 or 1.

    Raises:
        ValueError: it spells none.
    """
    kinds, _ = _kinds(hint)
    for kind, spelled in ((bool, {"0": False, "1": True}.__getitem__), (int, int), (float, float)):
        if kind in kinds:
            try:
                return cast(Any, spelled)(text)
            except (KeyError, ValueError):
                allowed = "0 or 1" if kind is bool else "a whole number" if kind is int else "a number"
                raise ValueError(f"{name} must be {allowed}, got {text!r}") from None
    return text


def declared(hint: Any) -> tuple[Any, Declared]:
    """The type, and what is declared beside it."""
    if get_origin(hint) is not Annotated:
        return hint, Declared()
    marks = (mark for mark in hint.__metadata__ if isinstance(mark, Declared))
    return get_args(hint)[0], next(marks, Declared())


def _kinds(hint: Any) -> tuple[tuple[Any, ...], Declared]:
    plain, limits = declared(hint)
    return get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,), limits


def _within(value: object, limits: Declared) -> bool:
    if not is_finite(value):
        return False
    number = cast(float, value)
    high_enough = (limits.gt is None or number > limits.gt) and (limits.ge is None or number >= limits.ge)
    return high_enough and (limits.le is None or number <= limits.le)


def is_finite(value: object) -> bool:
    """Whether it is a number, neither infinite nor too large for a float; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False
