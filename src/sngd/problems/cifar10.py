"""CIFAR-10 as tensors: find its files, read and normalize its images.

Files are looked for in the same folders as MNIST's, see `sngd.problems.datasets`.
"""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from sngd.problems.augment import normalize
from sngd.problems.cifar10_batch import read_binary, read_pickle
from sngd.problems.files import WITHOUT_FILES, data_folder, download
from sngd.problems.problem import DataError, Samples

_BATCHES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
_BINARY = [f"cifar-10-batches-bin/{batch}.bin" for batch in _BATCHES]
_PYTHON = [f"cifar-10-batches-py/{batch}" for batch in _BATCHES]

_ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CHECKSUM = "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

MEAN = (0.4914, 0.4822, 0.4465)  # of the training images' red, green and blue
STD = (0.2470, 0.2435, 0.2616)


def prepare(images: Tensor) -> Tensor:
    """Normalized float32 of the same shape, with an image's channels side by side in memory where that is quicker.

    On the CPU torch's convolutions then need not rearrange their inputs: a training step of ResNet20 takes a fifth less
    time. On a GPU it is quicker for products in bfloat16 (autocast), and slower in float32. Values and weights are the
    same, sums in convolutions are rounded in another order.
    """
    last = not images.is_cuda or torch.is_autocast_enabled("cuda")
    return normalize(images.contiguous(memory_format=torch.channels_last) if last else images, MEAN, STD)


def cifar10(data: str | os.PathLike[str] | None = None) -> tuple[Samples, Samples]:
    """CIFAR-10's photographs of ten classes (Krizhevsky 2009), officially 50000 and 10000 of them.

    Args:
        data: folder of data sets, with the six official files under `cifar-10-batches-bin/`, else under
            `cifar-10-batches-py/`. By default the one SNGD_DATA names; if unset, a cache folder that is
            filled by a checksummed download.

    Returns:
        (train, test), each a pair of images, uint8 of shape (n, 3, 32, 32), and labels, int64 in 0 … 9 of
        shape (n,). Of the images, `prepare` makes normalized float32.

    Raises:
        DataError: files are absent and cannot be downloaded, or hold something else.
    """
    paths = _locate(data)
    read = read_binary if paths[0].suffix else read_pickle
    *train, test = [read(path) for path in paths]
    images, labels = zip(*train, strict=True)
    return (torch.cat(images), torch.cat(labels)), test


def _locate(data: str | os.PathLike[str] | None) -> list[Path]:
    """Paths of the six files in one of the layouts, the test batch last."""
    folder, by = data_folder(data)
    for layout in (_BINARY, _PYTHON):
        if not _absent(folder, layout):
            return [folder / name for name in layout]
    if by:
        raise DataError(
            f"{folder} (given by {by}): {_what_is_missing(folder)}; put CIFAR-10's official files there, "
            f"unpacked, or give no folder to have them downloaded, or {WITHOUT_FILES}"
        )
    _fill(folder)
    return [folder / name for name in _BINARY]


def _absent(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).is_file()]


def _what_is_missing(folder: Path) -> str:
    for layout in (_BINARY, _PYTHON):
        absent = _absent(folder, layout)
        if len(absent) < len(layout):
            return f"no {', '.join(absent)}"
    return "no cifar-10-batches-bin and no cifar-10-batches-py with data_batch_1 to 5 and test_batch"


def _fill(folder: Path) -> None:
    """Downloads the archive into the cache, and unpacks the six files and nothing else.

    They get the names above, whatever names the archive has, and each appears whole or not at all.
    """
    archive = folder / _ARCHIVE.rpartition("/")[2]
    otherwise = (
        f"put the files of that archive, unpacked, under DIR/cifar-10-batches-bin and pass --data DIR "
        f"or set SNGD_DATA=DIR, or {WITHOUT_FILES}"
    )
    download(_ARCHIVE, _CHECKSUM, archive, otherwise)
    try:
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=folder) as scratch:
            for name in _BINARY:
                target = folder / name
                target.parent.mkdir(exist_ok=True)
                source = tar.extractfile(name)
                if source is None:
                    raise KeyError(f"{name} is no file")
                unpacked = Path(scratch, target.name)
                with unpacked.open("wb") as file:
                    shutil.copyfileobj(source, file)
                unpacked.replace(target)
    except (OSError, KeyError, tarfile.TarError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); {otherwise}") from error
