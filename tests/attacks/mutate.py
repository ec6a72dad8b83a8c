"""Valid documents made invalid, on two levels: the values of a tree, and the bytes of a file."""

from __future__ import annotations

import json
from typing import Any

import torch

from attacks.target import Chance

_HERE = "@@here@@"

_RAW = {  # what a JSON file can say beyond the values below, by name
    "10^400": "1" + "0" * 400,
    "10^5000": "1" + "0" * 5000,
    "1e400": "1e400",
    "-1e400": "-1e400",
    "1e-400": "1e-400",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "deep lists": "[" * 2000 + "]" * 2000,
    "very deep lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 2000 + "1" + "}" * 2000,
    "half deep": "[" * 5000,
    "a lone surrogate": '"\\ud800"',
    "a zero byte": '"\\u0000"',
    "a newline": '"a\\nb"',
    "a long text": '"' + "x" * 100_000 + '"',
    "many numbers": "[" + "0," * 20_000 + "0]",
}
_PLAIN: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 2**31, 2**63, -(2**63), 2**64, 10**18, 10**30, 0.0, -0.0, 0.5, 1.5,
    -0.5, 1e-320, 1e-300, 1e300, 1e308, "", "x", "sgd", "0", "1.5", "nan", "inf", "1e999", "é", "../..", "/", "\u202e",
    [], {}, [1], [None], [[]], {"": 0}, {"a": None}, [0.1, 10, 1.0], ["sgd"], {"lr": 0.1},
]  # fmt: skip


def json_text(chance: Chance, content: Any) -> bytes:
    """``content`` as JSON with one to three values replaced, taken away, added, or said twice."""
    tree = json.loads(json.dumps(content))
    raw: list[str] = []
    notes = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        tree, note = _change(chance, tree, lambda: _raw(chance, raw))
        notes.append(note)
    text = json.dumps(tree, ensure_ascii=False)
    for part in raw:
        text = text.replace(f'"{_HERE}"', part, 1)
    if chance.random() < 0.1:
        text, note = _twice(chance, text)
        notes.append(note)
    chance.note = "; ".join(notes)
    return text.encode("utf-8", "surrogatepass")


def _raw(chance: Chance, raw: list[str]) -> tuple[Any, str]:
    if chance.random() < 0.35:
        name = chance.choice(list(_RAW))
        raw.append(_RAW[name])
        return _HERE, name
    value = chance.choice(_PLAIN)
    return value, repr(value)[:40]


def _twice(chance: Chance, text: str) -> tuple[str, str]:
    """A key of the outermost object said again."""
    tree_keys = [part.split('"')[1] for part in text.split(", ") if part.startswith('"') and '": ' in part]
    key = chance.choice(tree_keys or ["x"])
    end = text.rfind("}")
    return (text[:end] + f', "{key}": 0' + text[end:], f"{key} twice") if end >= 0 else (text, "")


def _change(chance: Chance, tree: Any, value: Any) -> tuple[Any, str]:
    """One change at a random place, the root seldom; containers on the way are copied."""
    if chance.random() < 0.02 or not (isinstance(tree, dict | list | tuple) and tree):
        new, what = value()
        return new, f"= {what}"
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    keys = list(copy) if isinstance(copy, dict) else list(range(len(copy)))
    key = chance.choice(keys)
    inside = isinstance(copy[key], dict | list | tuple) and len(copy[key]) > 0
    what = chance.random()
    if inside and what < 0.7:
        copy[key], note = _change(chance, copy[key], value)
        note = f".{key}{note}"
    elif what < 0.8:
        copy[key], note = value()
        note = f".{key} = {note}"
    elif what < 0.9:
        del copy[key]
        note = f" without .{key}"
    elif isinstance(copy, dict):
        new, note = value()
        name = chance.choice(["", "x", "final", "é", "0", "lr", "method", "label", "rows", "state"])
        copy[name] = new
        note = f" with .{name} = {note}"
    else:
        copy.insert(key, copy[chance.choice(keys)])
        note = f".{key} twice"
    return (tuple(copy) if isinstance(tree, tuple) else copy), note


def state(chance: Chance, content: Any) -> Any:
    """The tree of a checkpoint with one to three changes."""
    notes = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        content, note = _change(chance, content, lambda: _value(chance))
        notes.append(note)
    chance.note = "; ".join(notes)
    return content


def _value(chance: Chance) -> tuple[Any, str]:
    if chance.random() < 0.5:
        value = chance.choice([*_PLAIN, 10**400, -(10**400), float("nan"), float("inf"), b"x", (1, 2), {1: 2}])
        return value, repr(value)[:40]
    name = chance.choice(list(_TENSORS))
    return _TENSORS[name](), name


def _nested() -> Any:
    value: Any = []
    for _ in range(300):
        value = [value]
    return value


_TENSORS = {
    "an empty tensor": lambda: torch.empty(0),
    "a 0-d tensor": lambda: torch.tensor(1.0),
    "nan": lambda: torch.full((8, 6), torch.nan),
    "inf": lambda: torch.full((8,), torch.inf),
    "int64": lambda: torch.arange(48).reshape(8, 6),
    "bool": lambda: torch.ones(8, dtype=torch.bool),
    "uint8": lambda: torch.zeros(5056, dtype=torch.uint8),
    "ones of a generator's size": lambda: torch.full((5056,), 255, dtype=torch.uint8),
    "complex": lambda: torch.ones(8, 6, dtype=torch.complex64),
    "float64": lambda: torch.ones(8, 6, dtype=torch.float64),
    "a vast view": lambda: torch.zeros(1).expand(10**10),
    "vast indices": lambda: torch.zeros(1, dtype=torch.int64).expand(10**10),
    "sparse": lambda: torch.eye(8).to_sparse(),
    "meta": lambda: torch.ones(8, device="meta"),
    "needs a gradient": lambda: torch.ones(8, 6, requires_grad=True),
    "large indices": lambda: torch.full((60,), 10**12),
    "negative indices": lambda: torch.full((60,), -1),
    "deep lists": _nested,
}

_WORDS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80"]


def content(chance: Chance, data: bytes, ends: int = 0) -> bytes:
    """``data`` with one to four changes to its bytes; ``ends``: nine of ten within so many of either end."""
    notes = []
    new = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        note = chance.choice(list(_BYTES))
        at = _place(chance, len(new), ends)
        _BYTES[note](chance, new, at)
        notes.append(f"{note} at {at}")
    chance.note = "; ".join(notes)
    return bytes(new)


def _place(chance: Chance, length: int, ends: int) -> int:
    if ends and length > 2 * ends and chance.random() < 0.9:
        return chance.choice((0, length - ends)) + chance.randrange(ends)
    return chance.randrange(length + 1)


def _flip(chance: Chance, data: bytearray, at: int) -> None:
    if at < len(data):
        data[at] ^= 1 << chance.randrange(8)


def _set(chance: Chance, data: bytearray, at: int) -> None:
    data[at : at + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, 10, 34, chance.randrange(256)))])


def _cut(_chance: Chance, data: bytearray, at: int) -> None:
    del data[at:]


def _drop(chance: Chance, data: bytearray, at: int) -> None:
    del data[at : at + chance.choice((1, 2, 4, 30, 1000))]


def _insert(chance: Chance, data: bytearray, at: int) -> None:
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 8, 100)))


def _splice(chance: Chance, data: bytearray, at: int) -> None:
    start = chance.randrange(len(data) + 1)
    data[at:at] = data[start : start + chance.choice((1, 4, 20, 300))]


def _over(chance: Chance, data: bytearray, at: int) -> None:
    start = chance.randrange(len(data) + 1)
    part = data[start : start + chance.choice((4, 20, 300))]
    data[at : at + len(part)] = part


def _repeat(chance: Chance, data: bytearray, at: int) -> None:
    data[at:at] = data[at : at + chance.choice((1, 3, 20))] * chance.choice((2, 50, 1000))


def _word(chance: Chance, data: bytearray, at: int) -> None:
    data[at : at + 4] = chance.choice(_WORDS)


_BYTES = {
    "a bit": _flip,
    "a byte": _set,
    "cut": _cut,
    "bytes gone": _drop,
    "bytes put in": _insert,
    "a part put in": _splice,
    "a part put over": _over,
    "a part many times": _repeat,
    "a word": _word,
}
