"""Makes files of IDX and CIFAR-10, and a world without SNGD_DATA where the cache is a folder of the test's own."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def idx_bytes() -> Callable[[Tensor], bytes]:
    def encode(array: Tensor) -> bytes:
        header = bytes([0, 0, 8, array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape)
        return header + bytes(array.flatten().tolist())

    return encode


@pytest.fixture
def mnist_like(idx_bytes: Callable[[Tensor], bytes]) -> Callable[[Path], Path]:
    """Fills a folder with the four files, of 6 training and 3 test samples: half of them plain, half .gz."""

    def fill(folder: Path) -> Path:
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(0)
        for part, n in (("train", 6), ("t10k", 3)):
            images = torch.randint(256, (n, 28, 28), generator=generator, dtype=torch.uint8)
            labels = torch.arange(n, dtype=torch.uint8)
            (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        return folder

    return fill


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.delenv("SNGD_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda _: folder)
    return folder


@pytest.fixture(scope="session")
def python2_pickle() -> Callable[[Tensor, list[int]], bytes]:
    """A batch in CIFAR-10's Python layout, opcode for opcode as Python 2's cPickle writes it, protocol 2."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text

    def encode(images: Tensor, labels: list[int]) -> bytes:
        dtype = (
            b"cnumpy\ndtype\nq\x0dU\x02u1K\x00K\x01\x87Rq\x0e(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        shape = b"M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
        array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x0b(K\x01" + (
            shape + dtype + b"\x89" + string(bytes(images.flatten().tolist())) + b"tb"
        )
        numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        names = b"](" + b"".join(string(b"image_%d.png" % i) for i in range(len(labels))) + b"e"
        pairs = {b"batch_label": string(b"training batch"), b"labels": numbers, b"data": array, b"filenames": names}
        return b"\x80\x02}q\x01(" + b"".join(string(key) + value for key, value in pairs.items()) + b"u."

    return encode


@pytest.fixture
def cifar10_like(python2_pickle: Callable[[Tensor, list[int]], bytes]) -> Callable[..., Path]:
    """Fills `folder` with the six files of either layout, of 2 + 1 + 1 + 1 + 1 training and 3 test samples."""

    def fill(folder: Path, layout: str = "bin") -> Path:
        folder = folder / f"cifar-10-batches-{layout}"
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(0)
        for k, n in enumerate([2, 1, 1, 1, 1, 3]):
            batch = f"data_batch_{k + 1}" if k < 5 else "test_batch"
            images = torch.randint(256, (n, 3072), generator=generator, dtype=torch.uint8)
            labels = torch.arange(k, k + n, dtype=torch.uint8)
            if layout == "bin":
                (folder / f"{batch}.bin").write_bytes(bytes(torch.cat([labels[:, None], images], 1).flatten().tolist()))
            else:
                (folder / batch).write_bytes(python2_pickle(images, labels.tolist()))
        return folder

    return fill
