"""One file of CIFAR-10, in its binary or in its Python layout.

    binary      one record after the other: 1 byte of label, 3072 bytes of pixels
    Python      a pickle of Python 2: {b"labels": list of n, b"data": uint8 array of shape (n, 3072), …}

The pixels of an image are 1024 red, 1024 green, 1024 blue ones, each colour row-major.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and its data set's page.
"""

import pickle
import pickletools
from pathlib import Path

import torch
from torch import Tensor

from sngd.problems.files import check_labels
from sngd.problems.problem import DataError, Samples

_SHAPE = (3, 32, 32)
_PIXELS = 3072
_RECORD = 1 + _PIXELS


def read_binary(path: Path) -> Samples:
    """Reads a batch in the binary layout.

    Returns:
        Images, uint8 of shape (n, 3, 32, 32), and labels, int64 in 0 … 9 of shape (n,), with n ≥ 1.

    Raises:
        DataError: the file cannot be read, is no whole number of records, or has a label out of range.
    """
    try:
        content = bytearray(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not content or len(content) % _RECORD:
        raise DataError(f"{path}: {len(content)} bytes, must be {_RECORD} for each image and at least one image")
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, _RECORD)
    return _samples(records[:, 1:], records[:, 0], path)


def read_pickle(path: Path) -> Samples:
    """Reads a batch in the Python layout, whatever the pickle says without running anything.

    Returns:
        As `read_binary`.

    Raises:
        DataError: the file cannot be read, is no pickle, or asks for, holds or lacks what an official one does not.
    """
    match _unpickle(path):
        case {
            b"labels": list(labels),
            b"data": _Inert(state=(_, (rows, 3072), _Inert(arguments=(b"u1", *_)), by_column, bytes(pixels))),
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


class _Inert:
    """Stands for everything of numpy that a pickle names: keeps what it is called with, and does nothing."""

    arguments: tuple[object, ...] = ()
    state: object = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle._Unpickler):
    """Knows the opcodes of Python 2 and the three names that the official files hold, and imports not even those.

    It builds on the unpickler that is written in Python, because a few bytes can make the one in C, as well as
    some opcodes of Python 3, take any amount of memory.
    """

    names = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})
    dispatch = {  # noqa: RUF012
        ord(opcode.code): pickle._Unpickler.dispatch[ord(opcode.code)]
        for opcode in pickletools.opcodes
        if opcode.proto <= 2
    }

    def find_class(self, module: str, name: str, /) -> type[_Inert]:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(f"it asks for {module!a}, {name!a}")
        return _Inert


def _unpickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            value = _Unpickler(file, encoding="bytes").load()
            if file.read(1):
                raise pickle.UnpicklingError("more data follows it")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # on bytes that are no pickle, an unpickler raises whatever it stumbles over
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise DataError(f"{path}: is no pickle as CIFAR-10 has them ({reason})") from error
    return value
