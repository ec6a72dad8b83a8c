"""CIFAR-10: where its files are looked for, what is unpacked from a download, and the real data's constants."""

import io
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch

from sngd.problems import DataError, cifar10
from sngd.problems.cifar10 import MEAN, STD, prepare

Fill = Callable[..., Path]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
DIGITS = "run the embedded digits, which need none: sngd train digits-mlp --method sngd"
PUT = (
    "put the files of that archive, unpacked, under DIR/cifar-10-batches-bin and pass --data DIR "
    f"or set SNGD_DATA=DIR, or {DIGITS}"
)


def message_of(load: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        load()
    return str(caught.value)


# --- what is read


@pytest.mark.parametrize("layout", ["bin", "py"])
def test_shapes_types_and_the_order_of_the_batches(layout: str, cifar10_like: Fill, tmp_path: Path) -> None:
    cifar10_like(tmp_path, layout)
    (images, labels), (test_images, test_labels) = cifar10.cifar10(tmp_path)
    assert (images.shape, images.dtype) == ((6, 3, 32, 32), torch.uint8)
    assert (labels.tolist(), labels.dtype) == ([0, 1, 1, 2, 3, 4], torch.int64)
    assert (test_images.shape, test_labels.tolist()) == ((3, 3, 32, 32), [5, 6, 7])


def test_both_layouts_say_the_same(cifar10_like: Fill, tmp_path: Path) -> None:
    cifar10_like(tmp_path / "one", "bin")
    cifar10_like(tmp_path / "other", "py")
    binary, python = cifar10.cifar10(tmp_path / "one"), cifar10.cifar10(tmp_path / "other")
    for ours, theirs in zip(binary[0] + binary[1], python[0] + python[1], strict=True):
        assert torch.equal(ours, theirs)


def test_a_complete_layout_goes_before_an_incomplete_one(cifar10_like: Fill, tmp_path: Path) -> None:
    (cifar10_like(tmp_path, "bin") / "test_batch.bin").unlink()
    cifar10_like(tmp_path, "py")
    assert len(cifar10.cifar10(tmp_path)[1][0]) == 3


def test_the_variable(cifar10_like: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10_like(tmp_path)
    monkeypatch.setenv("SNGD_DATA", str(tmp_path))
    assert len(cifar10.cifar10()[0][0]) == 6


def test_a_bad_file_is_named(cifar10_like: Fill, tmp_path: Path) -> None:
    path = cifar10_like(tmp_path) / "data_batch_4.bin"
    path.write_bytes(b"\0")
    expected = f"{path}: 1 bytes, must be 3073 for each image and at least one image"
    assert message_of(lambda: cifar10.cifar10(tmp_path)) == expected


@pytest.mark.parametrize("layout", ["bin", "py"])
def test_folder_with_some_files_missing(layout: str, cifar10_like: Fill, tmp_path: Path) -> None:
    suffix = ".bin" if layout == "bin" else ""
    folder = cifar10_like(tmp_path, layout)
    for batch in ("data_batch_2", "test_batch"):
        (folder / f"{batch}{suffix}").unlink()
    assert message_of(lambda: cifar10.cifar10(tmp_path)) == (
        f"{tmp_path} (given by --data): no {folder.name}/data_batch_2{suffix}, {folder.name}/test_batch{suffix}; "
        f"put CIFAR-10's official files there, unpacked, or give no folder to have them downloaded, or {DIGITS}"
    )


def test_folder_without_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNGD_DATA", str(tmp_path))
    assert message_of(cifar10.cifar10) == (
        f"{tmp_path} (given by SNGD_DATA): no cifar-10-batches-bin and no cifar-10-batches-py with data_batch_1 to "
        "5 and test_batch; put CIFAR-10's official files there, unpacked, or give no folder to have them "
        f"downloaded, or {DIGITS}"
    )


# --- what is downloaded


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[[dict[str, bytes | str]], None]:
    """Has downloads give an archive of these files, text standing for a symbolic link."""

    def serve(members: dict[str, bytes | str]) -> None:
        def retrieve(url: str, checksum: str, *, fname: str, path: Path, progressbar: bool) -> None:
            assert (url, progressbar, fname, path) == (URL, True, "cifar-10-binary.tar.gz", cache)
            assert checksum == "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            scratch = path / f"{os.urandom(8).hex()}"
            with tarfile.open(scratch, "w:gz") as tar:
                for name, content in members.items():
                    member = tarfile.TarInfo(name)
                    if isinstance(content, str):
                        member.type, member.linkname = tarfile.SYMTYPE, content
                        tar.addfile(member)
                    else:
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
            scratch.replace(path / fname)

        monkeypatch.setattr("pooch.retrieve", retrieve)

    return serve


@pytest.fixture
def members(cifar10_like: Fill, tmp_path: Path) -> dict[str, bytes | str]:
    folder = cifar10_like(tmp_path / "original")
    return {f"{folder.name}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_downloaded_once_and_unpacked_without_what_else_is_there(
    archive: Callable[..., None], members: dict[str, bytes | str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(
        {"../outside": b"", "/tmp/outside": b"", "cifar-10-batches-bin/../../outside": b"", "readme": b"", **members}
    )
    assert len(cifar10.cifar10()[0][0]) == 6
    monkeypatch.setattr("pooch.retrieve", None)  # not called again
    assert len(cifar10.cifar10()[1][0]) == 3
    assert files_in(cache) == sorted(["cifar-10-binary.tar.gz", *members])
    assert not (cache.parent / "outside").exists()


def test_many_at_once(archive: Callable[..., None], members: dict[str, bytes | str], cache: Path) -> None:
    archive(members)
    with ThreadPoolExecutor(8) as pool:
        images = [task.result()[0][0] for task in [pool.submit(cifar10.cifar10) for _ in range(8)]]
    assert all(torch.equal(image, images[0]) for image in images)
    assert files_in(cache) == sorted(["cifar-10-binary.tar.gz", *members])


def test_archive_with_links_out_of_it(
    archive: Callable[..., None], members: dict[str, bytes | str], cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 3073)
    archive({**members, "cifar-10-batches-bin/data_batch_1.bin": str(tmp_path / "secret")})
    message = message_of(cifar10.cifar10)
    assert message.startswith(f"{cache}/cifar-10-binary.tar.gz: cannot be unpacked (")
    assert message.endswith(f"; {PUT}")
    assert files_in(cache) == ["cifar-10-binary.tar.gz"]


def test_archive_without_a_file(archive: Callable[..., None], members: dict[str, bytes | str], cache: Path) -> None:
    del members["cifar-10-batches-bin/data_batch_1.bin"]
    archive(members)
    assert message_of(cifar10.cifar10) == (
        f"{cache}/cifar-10-binary.tar.gz: cannot be unpacked "
        f"(\"filename 'cifar-10-batches-bin/data_batch_1.bin' not found\"); {PUT}"
    )


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", unreachable)
    assert message_of(cifar10.cifar10) == f"{cache}: cannot download {URL} (ConnectionError); {PUT}"
    assert files_in(cache) == []


def test_images_are_prepared_with_channels_side_by_side_in_memory() -> None:
    images = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    inputs = prepare(images)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    torch.testing.assert_close(inputs, (images / 255 - mean) / std)


# --- the real data


@pytest.mark.slow
def test_real_cifar10() -> None:
    data = os.environ.get("SNGD_DATA")
    if not data or not Path(data, "cifar-10-batches-bin").is_dir():
        pytest.skip(f"needs CIFAR-10's files under cifar-10-batches-bin/ in the folder SNGD_DATA names, now {data!r}")
    (images, labels), (test_images, test_labels) = cifar10.cifar10()
    assert (images.shape, test_images.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert labels.bincount().tolist() == [5000] * 10
    assert test_labels.bincount().tolist() == [1000] * 10

    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(3):
        share = images[:, channel].flatten().bincount(minlength=256) / images[:, channel].numel()
        mean = (share * values).sum().item()
        std = (share * (values - mean) ** 2).sum().sqrt().item()
        assert (round(mean, 4), round(std, 4)) == (MEAN[channel], STD[channel])

    inputs = prepare(images[:5000])
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), atol=0.05, rtol=0)
