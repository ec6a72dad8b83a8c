"""One file of CIFAR-10, in its binary or in its Python layout.

    binary      one record after the other: 1 byte of label, 3072 bytes of pixels
    Python      a pickle of Python 2: {b"labels": list of n, b"data": uint8 array of shape (n, 3072), …}

The pixels of an image are 1024 red, 1024 green, 1024 blue ones, each colour row-major.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and its data set's page.
"""

import io
import os
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sngd.files import NotRegular, open_file
from sngd.problems.files import check_labels
from sngd.problems.problem import DataError, Samples

_SHAPE = (3, 32, 32)
_PIXELS = 3072
_RECORD = 1 + _PIXELS
_MOST = 60_000  # images in one file: all that CIFAR-10 has


def read_binary(path: Path) -> Samples:
    """Reads a batch in the binary layout.

    Returns:
        Images, uint8 of shape (n, 3, 32, 32), and labels, int64 in 0 … 9 of shape (n,), with 1 ≤ n ≤ 60000.

    Raises:
        DataError: the file cannot be read, is no whole number of records, holds too many of them, or has a label
            out of range.
    """
    content = _content(path, _MOST * _RECORD)
    if not content or len(content) % _RECORD:
        raise DataError(f"{path}: {len(content)} bytes, must be {_RECORD} for each image and at least one image")
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, _RECORD)
    return _samples(records[:, 1:], records[:, 0], path)


def read_pickle(path: Path) -> Samples:
    """Reads a batch in the Python layout. No code runs, whatever the pickle contains.

    Time and memory are at most proportional to the file's size, which is at most 246 MB.

    Returns:
        As `read_binary`.

    Raises:
        DataError: the file cannot be read, is too large, is no pickle, or asks for, holds or lacks what an official
            one does not.
    """
    match _unpickle(path):
        case {
            b"labels": list(labels),
            b"data": _Made(
                "numpy.core.multiarray _reconstruct",
                state=(_, (rows, 3072), _Made("numpy dtype", (b"u1", *_)), by_column, bytes(pixels)),
            ),
        }:
            pass
        case _:
            raise DataError(f"{path}: must be a dict of b'labels', a list, and b'data', a uint8 array of 3072 columns")
    count = len(labels)
    if rows != count or len(pixels) != count * _PIXELS or count == 0:
        raise DataError(
            f"{path}: {len(pixels)} bytes of pixels for {count} labels, "
            f"must be {_PIXELS} for each image and at least one image"
        )
    try:
        label_bytes = bytearray(labels)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: labels must be whole numbers from 0 to 9") from error
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
    images = images.view(_PIXELS, count).T if by_column else images.view(count, _PIXELS)
    return _samples(images, torch.frombuffer(label_bytes, dtype=torch.uint8), path)


def _samples(images: Tensor, labels: Tensor, path: Path) -> Samples:
    check_labels(labels, path)
    return images.reshape(-1, *_SHAPE), labels.to(torch.int64)


def _content(path: Path, most: int) -> bytearray:
    """All bytes of a file, whose size is checked before any of them is read."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise DataError(f"{path}: {size} bytes, must be at most {most}, as for {_MOST} images")
            content = bytearray(size)
            del content[file.readinto(content) :]
            return content
    except NotRegular as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True, eq=False)
class _Name:
    """One of the names of numpy that a pickle may hold; it is never imported."""

    name: str


@dataclass(eq=False)
class _Made:
    """Stands for an object that the pickle asks numpy to make. It keeps arguments and state, and runs nothing."""

    by: str
    arguments: tuple[object, ...]
    state: object = None


_NAMES = frozenset({"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"})


def _unpickle(path: Path) -> object:
    content = _content(path, _MOST * 4096)  # 3073 for pixels and label, the rest for a file name
    try:
        return _value(content)
    except Exception as error:  # bytes that are no pickle can raise any type of error
        reason = str(error)[:120] if type(error) is ValueError else type(error).__name__  # it may quote all the file
        raise DataError(f"{path}: is no pickle as CIFAR-10 has them ({reason})") from error


def _value(content: bytearray) -> object:
    """The value of a pickle, computed by an interpreter that knows only the instructions in the official files.

    No instruction takes more time or memory than its own bytes and the values it consumes. No value is examined inside:
    the keys of a dict are bytes, so hashing one does not descend into hostile nested values. An official file has three
    instructions for the more than 3000 bytes of an image, so the number of instructions is limited. This bounds the
    memory for what small instructions build.
    """
    most = 1000 + len(content) // 256
    outer: list[list[object]] = []  # the stacks below each mark
    stack: list[object] = []
    memo: dict[int, object] = {}
    instructions: Iterator[Any] = pickletools.genops(io.BytesIO(content))
    for count, (opcode, argument, position) in enumerate(instructions):
        if count >= most:
            raise ValueError(f"more than {most} instructions in {len(content)} bytes")
        match opcode.name:
            case "PROTO":
                if argument != 2:
                    raise ValueError(f"protocol {argument}, must be 2")
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING":
                stack.append(argument.encode("latin-1"))  # which pickletools has decoded so
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(_pop(stack, int(opcode.name[-1]))))
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "APPEND":
                _extend(_pop(stack, 1), stack)
            case "APPENDS":
                items, stack = stack, outer.pop()
                _extend(items, stack)
            case "SETITEM":
                _update(_pop(stack, 2), stack)
            case "SETITEMS":
                items, stack = stack, outer.pop()
                _update(items, stack)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                if argument not in _NAMES:
                    raise ValueError(f"it asks for {', '.join(map(ascii, argument.split(' ')))}")
                stack.append(_Name(argument))
            case "REDUCE":
                stack.append(_call(*_pop(stack, 2)))
            case "BUILD":
                _build(_pop(stack, 1)[0], stack[-1])
            case "STOP":
                if len(stack) != 1 or outer:
                    raise ValueError("it ends before its value does")
                if position + 1 != len(content):
                    raise ValueError("more data follows it")
                return stack[0]
            case name:
                raise ValueError(f"instruction {name} at byte {position} is none of an official file")
    raise AssertionError("genops ends with STOP or an error")


def _pop(stack: list[object], count: int) -> list[object]:
    if len(stack) < count:
        raise IndexError
    items = stack[-count:]
    del stack[-count:]
    return items


def _extend(items: list[object], stack: list[object]) -> None:
    target = stack[-1]
    if not isinstance(target, list):
        raise TypeError
    target.extend(items)


def _update(items: list[object], stack: list[object]) -> None:
    target, keys = stack[-1], items[::2]
    if not isinstance(target, dict) or not all(isinstance(key, bytes) for key in keys):
        raise TypeError
    if len(items) % 2:
        raise ValueError("a key without a value")
    target.update(zip(keys, items[1::2], strict=True))


def _call(name: object, arguments: object) -> _Made:
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise TypeError
    return _Made(name.name, arguments)


def _build(state: object, made: object) -> None:
    if not isinstance(made, _Made):
        raise TypeError
    made.state = state
