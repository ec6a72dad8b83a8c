"""IDX, the file format of MNIST: a magic number, the sizes, then the bytes of one array.

    2 bytes         zero
    1 byte          type of the elements, here always 0x08, unsigned byte
    1 byte          number of dimensions d
    d × 4 bytes     sizes, big-endian, the slowest-varying dimension first
    the rest        the elements, row-major

Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from sngd.files import NotRegular, open_file
from sngd.problems.problem import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
_CHUNK = 1 << 20  # bytes


def idx_shape(path: str | os.PathLike[str], *, ndim: int) -> tuple[int, ...]:
    """The shape that an IDX file's header states; of the data, nothing is read.

    Args, and raises, as `read_idx`.
    """
    with _opened(Path(path)) as stream:
        return _read_shape(stream, Path(path), ndim)


def read_idx(path: str | os.PathLike[str], *, ndim: int) -> Tensor:
    """Reads one IDX file of unsigned bytes, plain or gzip-compressed. The content decides which, not the file's name.

    The memory needed is the size in the header, if the file holds as much. Check it with `idx_shape` first.

    Args:
        path: the file.
        ndim: number of dimensions the array must have, for instance 3 for images and 1 for labels.

    Returns:
        uint8 tensor of the shape that the header states.

    Raises:
        DataError: the file cannot be read, is empty, or truncated, is no IDX file of unsigned bytes with
            `ndim` dimensions, has a size of zero, holds fewer or more elements than its header promises,
            or is a corrupt gzip stream.
    """
    with _opened(Path(path)) as stream:
        return _read_array(stream, Path(path), ndim)


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The file's content, unpacked if it is compressed; errors of reading become a DataError."""
    try:
        with open_file(path) as file:
            compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            with gzip.open(file) if compressed else nullcontext(file) as stream:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: corrupt or truncated gzip stream ({error})") from error
    except NotRegular as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _read_array(stream: io.BufferedIOBase, path: Path, ndim: int) -> Tensor:
    shape = _read_shape(stream, path, ndim)
    sizes = "×".join(map(str, shape))
    promised = math.prod(shape)

    # Read in chunks, because read(promised) would allocate any size that a wrong header gives. One byte more
    # than promised is read to notice data that is too long; at the end of its stream gzip compares the checksum.
    data = bytearray()
    while len(data) <= promised and (chunk := stream.read(min(_CHUNK, promised + 1 - len(data)))):
        data += chunk
    if len(data) < promised:
        raise DataError(f"{path}: {len(data)} bytes of data, its header promises {promised} ({sizes})")
    if len(data) > promised:
        raise DataError(f"{path}: more data than the {promised} bytes its header promises ({sizes})")
    return torch.frombuffer(data, dtype=torch.uint8).reshape(shape)


def _read_shape(stream: io.BufferedIOBase, path: Path, ndim: int) -> tuple[int, ...]:
    length = 4 + 4 * ndim
    header = stream.read(length)
    if not header:
        raise DataError(f"{path}: is empty, must be an IDX file with {ndim} dimensions")
    expected = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if len(header) >= 4 and header[:4] != expected:
        raise DataError(
            f"{path}: magic number 0x{header[:4].hex()}, must be 0x{expected.hex()} "
            f"(IDX, unsigned bytes, dimensions: {ndim})"
        )
    if len(header) < length:
        raise DataError(f"{path}: header ends after {len(header)} bytes, must have {length}")
    shape = struct.unpack(f">{ndim}I", header[4:])
    if 0 in shape:
        raise DataError(f"{path}: header states sizes {'×'.join(map(str, shape))}, each must be at least 1")
    return shape
