"""Handwritten digits and clothes as tensors: MNIST, Fashion-MNIST, and the small digits of scikit-learn.

Files are looked for in the folder given as `data`, else in the one that the environment variable SNGD_DATA
names, else in the user's cache folder. Only the cache is ever filled by a download.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sngd.problems.files import WITHOUT_FILES, check_labels, data_folder, download
from sngd.problems.idx import idx_shape, read_idx
from sngd.problems.problem import DataError, Samples

_MOST = 70_000  # images in one file: all that either of the two sets has, training and test


@dataclass(frozen=True)
class _Source:
    title: str
    folder: str
    mirror: str
    checksums: dict[str, str]  # by file name; of the .gz files as the mirror serves them


_MNIST = _Source(
    title="MNIST",
    folder="mnist",
    mirror="https://ossci-datasets.s3.amazonaws.com/mnist/",
    checksums={
        "train-images-idx3-ubyte": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
)
_FASHION = _Source(
    title="Fashion-MNIST",
    folder="fashion-mnist",
    mirror="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    checksums={
        "train-images-idx3-ubyte": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
)


def mnist(data: str | os.PathLike[str] | None = None) -> tuple[Samples, Samples]:
    """MNIST's handwritten digits (LeCun, Cortes, Burges), officially 60000 and 10000 of them.

    Args:
        data: folder of data sets, with the four official files, plain or .gz, under `mnist/`. By default
            the one SNGD_DATA names; if unset, a cache folder that is filled by a checksummed download.

    Returns:
        (train, test), each a pair of images, uint8 of shape (n, 784), and labels, int64 in 0 … 9 of shape (n,).

    Raises:
        DataError: files are absent and cannot be downloaded, or hold something else, or more than 70000 images.
    """
    return _load(_MNIST, data)


def fashion_mnist(data: str | os.PathLike[str] | None = None) -> tuple[Samples, Samples]:
    """Fashion-MNIST's clothes (Xiao, Rasul, Vollgraf 2017); in all as `mnist`, files under `fashion-mnist/`."""
    return _load(_FASHION, data)


def digits() -> tuple[Samples, Samples]:
    """The handwritten digits that scikit-learn carries: 1797 images of 8×8 pixels, no file and no network.

    Ordered by class, every fifth image is a test image: a stratified split, the same on every machine.

    Returns:
        (train, test) of 1437 and 360 samples, each a pair of images, float32 in [0, 1] of shape (n, 64),
        and labels, int64 in 0 … 9 of shape (n,).
    """
    images, labels = _digits_of_sklearn()
    inputs = torch.from_numpy(images).to(torch.float32) / 16
    targets = torch.from_numpy(labels).to(torch.int64)
    by_class = targets.argsort(stable=True)
    is_test = torch.zeros(len(targets), dtype=torch.bool)
    is_test[by_class[::5]] = True
    return (inputs[~is_test], targets[~is_test]), (inputs[is_test], targets[is_test])


def _digits_of_sklearn() -> tuple[Any, Any]:
    """Images and labels of ``sklearn.datasets.load_digits``: from its file, since importing sklearn takes a second."""
    import numpy as np

    spec = find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or []:
        if (path := Path(folder, "datasets", "data", "digits.csv.gz")).is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images, labels


def _load(source: _Source, data: str | os.PathLike[str] | None) -> tuple[Samples, Samples]:
    train_images, train_labels, test_images, test_labels = _locate(source, data)
    return _read_samples(train_images, train_labels), _read_samples(test_images, test_labels)


def _read_samples(images_path: Path, labels_path: Path) -> Samples:
    """Images and labels. Both headers are checked before data are read, because a small .gz can unpack to any size."""
    count, height, width = idx_shape(images_path, ndim=3)
    (labels_count,) = idx_shape(labels_path, ndim=1)
    if (height, width) != (28, 28):
        raise DataError(f"{images_path}: images of {height}×{width} pixels, must be 28×28")
    if count > _MOST:
        raise DataError(
            f"{images_path}: header states {count} images, must be at most {_MOST}, as many as MNIST has in all"
        )
    if labels_count != count:
        raise DataError(f"{labels_path}: {labels_count} labels, must be {count} as images in {images_path.name}")
    images = read_idx(images_path, ndim=3)
    labels = read_idx(labels_path, ndim=1)
    check_labels(labels, labels_path)
    return images.reshape(count, 784), labels.to(torch.int64)


def _locate(source: _Source, data: str | os.PathLike[str] | None) -> list[Path]:
    """Paths of the source's files, in the order of its checksums."""
    parent, by = data_folder(data)
    folder = parent / source.folder
    if absent := [name for name in source.checksums if not _find(folder, name)]:
        if by:
            raise DataError(
                f"{folder} (given by {by}): no {', '.join(absent)}; put {source.title}'s official files there, "
                f"plain or .gz, or give no folder to have them downloaded, or {WITHOUT_FILES}"
            )
        otherwise = (
            f"put {', '.join(absent)}, plain or .gz, under DIR/{source.folder} and pass --data DIR "
            f"or set SNGD_DATA=DIR, or {WITHOUT_FILES}"
        )
        for name in absent:
            download(f"{source.mirror}{name}.gz", source.checksums[name], folder / f"{name}.gz", otherwise)
    return [path for name in source.checksums if (path := _find(folder, name))]


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
