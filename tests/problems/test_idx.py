"""IDX files: every good one is read back, every bad one is refused in one exact line."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sngd.problems import DataError
from sngd.problems.idx import read_idx

GOOD = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])
MANY = bytes(range(256)) * 8192  # 2 MiB: a whole number of the reader's chunks


def packed(content: bytes) -> bytes:
    """Without a time stamp: it would name the tests below differently in every parallel worker."""
    return gzip.compress(content, mtime=0)


def refused(path: Path, ndim: int = 1) -> str:
    with pytest.raises(DataError) as caught:
        read_idx(path, ndim=ndim)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), compress=st.booleans(), seed=st.integers(0, 99))
def test_written_and_read_back(
    shape: list[int],
    compress: bool,
    seed: int,
    idx_bytes: Callable[[Tensor], bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    array = torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    path = tmp_path_factory.getbasetemp() / "array"  # one name for both: compression is told by content
    path.write_bytes(gzip.compress(idx_bytes(array)) if compress else idx_bytes(array))
    read = read_idx(path, ndim=len(shape))
    assert read.dtype == torch.uint8
    assert torch.equal(read, array)


@given(cut=st.integers(0, len(GOOD) - 1))
def test_every_truncation_is_refused(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(GOOD[:cut])
    with pytest.raises(DataError):
        read_idx(path, ndim=1)


@given(cut=st.integers(0, len(packed(GOOD)) - 1))
def test_every_truncation_of_a_gzip_file_is_refused(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.gz"
    path.write_bytes(packed(GOOD)[:cut])
    with pytest.raises(DataError):
        read_idx(path, ndim=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, must be an IDX file with 1 dimensions"),
        (packed(b""), "is empty, must be an IDX file with 1 dimensions"),
        (GOOD[:3], "header ends after 3 bytes, must have 8"),
        (GOOD[:6], "header ends after 6 bytes, must have 8"),
        (
            b"\0\0\x08\x03" + GOOD[4:],
            "magic number 0x00000803, must be 0x00000801 (IDX, unsigned bytes, dimensions: 1)",
        ),
        (
            b"\0\0\x0d\x01" + GOOD[4:],
            "magic number 0x00000d01, must be 0x00000801 (IDX, unsigned bytes, dimensions: 1)",
        ),
        (
            b"<html>",
            "magic number 0x3c68746d, must be 0x00000801 (IDX, unsigned bytes, dimensions: 1)",
        ),
        (GOOD[:7] + b"\0", "header states sizes 0, each must be at least 1"),
        (GOOD[:-1], "2 bytes of data, its header promises 3 (3)"),
        (GOOD + b"\0", "more data than the 3 bytes its header promises (3)"),
        (packed(GOOD + b"\0"), "more data than the 3 bytes its header promises (3)"),
        (
            packed(GOOD)[:-1],
            "corrupt or truncated gzip stream (Compressed file ended before the end-of-stream marker was reached)",
        ),
        (
            packed(GOOD)[:-8] + bytes(8),
            f"corrupt or truncated gzip stream (CRC check failed 0x0 != {zlib.crc32(GOOD):#x})",
        ),
        (
            packed(GOOD)[:10] + b"\xff" * 20,
            "corrupt or truncated gzip stream (Error -3 while decompressing data: invalid block type)",
        ),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    assert refused(path) == message


def test_sizes_are_spelled_out(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + bytes(23))
    assert refused(path, ndim=3) == "23 bytes of data, its header promises 24 (2×3×4)"


def test_absent_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "labels") == "cannot be read (No such file or directory)"


def test_folder(tmp_path: Path) -> None:
    assert refused(tmp_path) == "is a folder, must be a file"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_absurd_header_allocates_nothing(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(pack(bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"abc"))
    tracemalloc.start()
    message = refused(path, ndim=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    promised = 4294967295**3
    assert message == f"3 bytes of data, its header promises {promised} (4294967295×4294967295×4294967295)"
    assert peak < 5_000_000


def test_the_end_is_checked_where_a_chunk_ends_too(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    whole = bytes([0, 0, 8, 1]) + len(MANY).to_bytes(4, "big") + MANY
    path.write_bytes(whole)
    assert bytes(read_idx(path, ndim=1).tolist()) == MANY
    path.write_bytes(whole + b"\0")
    assert refused(path) == "more data than the 2097152 bytes its header promises (2097152)"
    path.write_bytes(gzip.compress(whole)[:-8] + bytes(8))
    assert refused(path).startswith("corrupt or truncated gzip stream (CRC check failed 0x0")
