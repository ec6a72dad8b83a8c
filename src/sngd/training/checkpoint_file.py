"""Read a checkpoint's bytes safely: no code is run, and time and memory are in proportion to the file's size.

``torch.load(…, weights_only=True)`` runs no code. But a small hostile file can make it unpack gigabytes. It can also
nest tuples that each hold the same tuple twice, and hashing these takes years. ``torch.save`` writes no such file, so
such files are refused before torch reads them.
"""

import pickletools
import zipfile
from io import BytesIO
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_MANY = 1000
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_GETS, _PUTS = {"BINGET", "LONG_BINGET"}, {"BINPUT", "LONG_BINPUT"}
_ALLOCATING = {"builtins bytearray", "__builtin__ bytearray"}


def load(content: bytes) -> Any:
    """What ``torch.save`` wrote into ``content``, on the CPU.

    Raises:
        Exception: of any type: it is damaged, hostile, or no such file.
    """
    _check_archive(content)
    loaded = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(loaded)):
        raise ValueError("a tensor in it has no numbers")
    return loaded


def _check_archive(content: bytes) -> None:
    """``torch.save`` compresses nothing and writes each name once; its records are no larger than the file."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("a record in it is compressed")
        if sum(record.file_size for record in records) > len(content):
            raise ValueError("its records are larger than the file")
        if len({record.filename for record in records}) < len(records):
            raise ValueError("a record is in it twice")
        for record in records:
            if record.filename.endswith("/data.pkl"):
                _check_pickle(archive.read(record))


def _check_pickle(content: bytes) -> None:
    """ValueError if a tuple has far more parts than are written, because hashing it visits each of them.

    A pickle writes a repeated value once, and then refers to it. For each value on the stack this keeps how many parts
    it has in all, and how many of them are written in place. Lists and dicts have no hash, so they count as one part.
    """
    stack: list[tuple[int, int] | None] = []  # None marks where a tuple, or the items of a list, begin
    memo: dict[Any, tuple[int, int] | None] = {}
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL" and argument in _ALLOCATING:
            raise ValueError(f"it asks for {argument}")
        if opcode.name in _PUTS:
            memo[argument] = stack[-1]
            continue
        if opcode.name in _GETS:
            value = memo[argument]
            stack.append(value and (value[0], 1))
            continue
        parts = _taken(stack, opcode.stack_before)
        if opcode.name in _TUPLES:
            size, written = (1 + sum(counts) for counts in zip((0, 0), *parts, strict=True))
            if size > _MANY * (1 + written):
                raise ValueError(f"a tuple of more than {_MANY} times as many parts as are written")
            stack.append((size, written))
        else:
            stack += [None if after is pickletools.markobject else (1, 1) for after in opcode.stack_after]


def _taken(stack: list[tuple[int, int] | None], before: list[Any]) -> list[tuple[int, int]]:
    """Take from ``stack`` what an opcode does; of what lies above the mark, or else of all that is taken, the parts."""
    count = len(before)
    if pickletools.markobject in before:
        above = []
        while (value := stack.pop()) is not None:
            above.append(value)
        count = before.index(pickletools.markobject)
    else:
        above = [value for value in stack[len(stack) - count :] if value is not None]
    if count > len(stack):
        raise ValueError("it takes more than it has")
    del stack[len(stack) - count :]
    return above
