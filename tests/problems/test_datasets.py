"""Data sets: where they are looked for, what is checked, and what a failing download says and leaves."""

import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pooch
import pytest
import requests
import torch
from torch import Tensor

from sngd.problems import DataError, datasets, load_problem
from sngd.problems.augment import unit_interval
from sngd.problems.datasets import _digits_of_sklearn, digits, fashion_mnist, mnist

NAMES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"
DIGITS = "run the embedded digits, which need none: sngd train digits-mlp --method sngd"
PUT = f"put {NAMES}, plain or .gz, under DIR/mnist and pass --data DIR or set SNGD_DATA=DIR, or {DIGITS}"

Encode = Callable[[Tensor], bytes]
Fill = Callable[[Path], Path]


def message_of(load: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        load()
    return str(caught.value)


# --- what is read


@pytest.mark.parametrize(("load", "name"), [(mnist, "mnist"), (fashion_mnist, "fashion-mnist")])
def test_shapes_types_and_ranges(load: Callable[..., object], name: str, mnist_like: Fill, tmp_path: Path) -> None:
    mnist_like(tmp_path / name)
    (images, labels), (test_images, test_labels) = load(tmp_path)
    assert (images.shape, images.dtype) == ((6, 784), torch.uint8)
    assert (labels.tolist(), labels.dtype) == ([0, 1, 2, 3, 4, 5], torch.int64)
    assert (test_images.shape, test_labels.tolist()) == ((3, 784), [0, 1, 2])
    assert images.min() == 0
    assert images.max() == 255


def test_pixels_are_row_major_and_divided_by_255_when_they_are_used(
    mnist_like: Fill, idx_bytes: Encode, tmp_path: Path
) -> None:
    folder = mnist_like(tmp_path / "mnist")
    image = torch.zeros(6, 28, 28, dtype=torch.uint8)
    image[2, 1, 3] = 51
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(image))  # a plain file goes before its .gz
    problem = load_problem("mnist-mlp", tmp_path)
    images = problem.prepared(problem.train[0])
    assert images.nonzero().tolist() == [[2, 31]]
    assert images[2, 31].item() == pytest.approx(0.2)


def test_the_argument_goes_before_the_variable(
    mnist_like: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist_like(tmp_path / "here" / "mnist")
    monkeypatch.setenv("SNGD_DATA", str(tmp_path / "nowhere"))
    assert len(mnist(tmp_path / "here")[0][0]) == 6
    monkeypatch.setenv("SNGD_DATA", str(tmp_path / "here"))
    assert len(mnist()[0][0]) == 6


def test_an_empty_variable_is_an_unset_one(cache: Path, mnist_like: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNGD_DATA", "")
    mnist_like(cache / "mnist")
    assert len(mnist()[0][0]) == 6


def test_real_mnist() -> None:
    data = os.environ.get("SNGD_DATA")
    if not data or not Path(data, "mnist").is_dir():
        pytest.skip(f"needs MNIST's files under mnist/ in the folder SNGD_DATA names, now {data!r}")
    (images, labels), (test_images, test_labels) = mnist()
    assert (images.shape, test_images.shape) == ((60000, 784), (10000, 784))
    pixels = unit_interval(images)
    assert pixels.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# --- what is refused


def test_label_out_of_range(mnist_like: Fill, idx_bytes: Encode, tmp_path: Path) -> None:
    path = mnist_like(tmp_path / "mnist") / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(torch.tensor([9, 10, 255])))
    assert message_of(lambda: mnist(tmp_path)) == f"{path}: label 10 at index 1, must be 0 to 9"


def test_counts_disagree(mnist_like: Fill, idx_bytes: Encode, tmp_path: Path) -> None:
    path = mnist_like(tmp_path / "mnist") / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(torch.zeros(5, dtype=torch.uint8)))
    expected = f"{path}: 5 labels, must be 6 as images in train-images-idx3-ubyte.gz"
    assert message_of(lambda: mnist(tmp_path)) == expected


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            (510_000, 28, 28),
            (510_000,),
            "train-images-idx3-ubyte: header states 510000 images, must be at most 70000, as many as MNIST has in all",
        ),
        (
            (6, 8160, 8160),
            (6,),
            "train-images-idx3-ubyte: images of 8160×8160 pixels, must be 28×28",
        ),
        (
            (6, 28, 28),
            (400_000_000,),
            "train-labels-idx1-ubyte: 400000000 labels, must be 6 as images in train-images-idx3-ubyte",
        ),
    ],
)
def test_headers_are_checked_before_any_data_are_read(
    images: tuple[int, ...],
    labels: tuple[int, ...],
    message: str,
    pack: Callable[[bytes], bytes],
    mnist_like: Fill,
    tmp_path: Path,
) -> None:
    """What 400 MB of data, of which gzip makes 0.4 MB, would take; 20 MB are here, so that the test is short."""
    folder = mnist_like(tmp_path / "mnist")
    for name, shape in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        (folder / name).write_bytes(pack(header + bytes(20_000_000)))
    tracemalloc.start()
    assert message_of(lambda: mnist(tmp_path)) == f"{folder}/{message}"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_images_of_another_size(mnist_like: Fill, idx_bytes: Encode, tmp_path: Path) -> None:
    path = mnist_like(tmp_path / "mnist") / "train-images-idx3-ubyte"
    path.write_bytes(idx_bytes(torch.zeros(6, 27, 28, dtype=torch.uint8)))
    assert message_of(lambda: mnist(tmp_path)) == f"{path}: images of 27×28 pixels, must be 28×28"


def test_folder_given_without_the_files(tmp_path: Path) -> None:
    assert message_of(lambda: mnist(tmp_path)) == (
        f"{tmp_path}/mnist (given by --data): no {NAMES}; put MNIST's official files there, plain or .gz, "
        f"or give no folder to have them downloaded, or {DIGITS}"
    )


def test_folder_named_by_the_variable_with_one_file_missing(
    mnist_like: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mnist_like(tmp_path / "fashion-mnist") / "t10k-labels-idx1-ubyte").unlink()
    monkeypatch.setenv("SNGD_DATA", str(tmp_path))
    assert message_of(fashion_mnist) == (
        f"{tmp_path}/fashion-mnist (given by SNGD_DATA): no t10k-labels-idx1-ubyte; put Fashion-MNIST's "
        f"official files there, plain or .gz, or give no folder to have them downloaded, or {DIGITS}"
    )


# --- what is downloaded


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = requests.ConnectionError("no route to host")

    def unreachable(*_: object, **__: object) -> None:
        raise cause

    monkeypatch.setattr(requests, "get", unreachable)
    with pytest.raises(DataError) as caught:
        mnist()
    assert str(caught.value) == (
        f"{cache}/mnist: cannot download https://ossci-datasets.s3.amazonaws.com/mnist/"
        f"train-images-idx3-ubyte.gz (ConnectionError); {PUT}"
    )
    assert caught.value.__cause__ is cause
    assert list((cache / "mnist").iterdir()) == []


def test_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file where the folder should be: even root cannot create a folder in it")
    assert message_of(mnist) == f"{cache}/mnist: cannot write to the cache (Not a directory); {PUT}"


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the four files; `promise` says how many bytes to announce beyond those that are sent."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    requests: list[str] = []  # noqa: RUF012
    promise = 0

    def do_GET(self) -> None:
        body = self.files[self.path]
        self.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + self.promise))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(mnist_like: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mirror]]:
    """A mirror on this machine in place of the official one; yields its handler."""
    originals = mnist_like(tmp_path / "mirror")
    handler = type("Handler", (Mirror,), {"files": {}, "requests": []})
    checksums = {}
    for name in datasets._MNIST.checksums:
        packed, plain = originals / f"{name}.gz", originals / name
        body = packed.read_bytes() if packed.exists() else gzip.compress(plain.read_bytes())
        handler.files[f"/{name}.gz"] = body
        checksums[name] = f"sha256:{hashlib.sha256(body).hexdigest()}"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(
            datasets, "_MNIST", datasets._Source(title="MNIST", folder="mnist", mirror=url, checksums=checksums)
        )
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield handler
        server.shutdown()


def test_downloaded_once_then_read_from_the_cache(
    mirror: type[Mirror], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(mnist()[0][0]) == 6
    assert mirror.requests == [f"/{name}.gz" for name in NAMES.split(", ")]
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert len(mnist()[1][0]) == 3
    assert len(mirror.requests) == 4
    assert sorted(os.listdir(cache / "mnist")) == sorted(f"{name}.gz" for name in NAMES.split(", "))


@pytest.mark.usefixtures("mirror", "cache")
def test_many_at_once_never_read_half_a_file() -> None:
    with ThreadPoolExecutor(8) as pool:
        images = [task.result()[0][0] for task in [pool.submit(mnist) for _ in range(8)]]
    assert all(torch.equal(image, images[0]) for image in images)


def test_wrong_checksum(mirror: type[Mirror], cache: Path) -> None:
    mirror.files["/train-images-idx3-ubyte.gz"] += b"\0"
    url = f"{datasets._MNIST.mirror}train-images-idx3-ubyte.gz"
    assert message_of(mnist) == f"{cache}/mnist: {url} has the wrong checksum; {PUT}"
    assert os.listdir(cache / "mnist") == []


def test_connection_lost_halfway_leaves_nothing(mirror: type[Mirror], cache: Path) -> None:
    mirror.promise = 1
    url = f"{datasets._MNIST.mirror}train-images-idx3-ubyte.gz"
    assert message_of(mnist) == f"{cache}/mnist: cannot download {url} (ChunkedEncodingError); {PUT}"
    assert os.listdir(cache / "mnist") == []


def test_every_official_file_has_a_checksum_of_full_length() -> None:
    for source in (datasets._MNIST, datasets._FASHION):
        assert list(source.checksums) == NAMES.split(", ")
        for checksum in source.checksums.values():
            algorithm, _, value = checksum.partition(":")
            assert len(bytes.fromhex(value)) == hashlib.new(algorithm).digest_size
            assert algorithm in pooch.hashes.ALGORITHMS_AVAILABLE


# --- the embedded digits


def test_digits() -> None:
    (images, labels), (test_images, test_labels) = digits()
    assert (images.shape, images.dtype, labels.dtype) == ((1437, 64), torch.float32, torch.int64)
    assert (test_images.shape, test_labels.shape) == ((360, 64), (360,))
    assert (images.min().item(), images.max().item()) == (0, 1)
    assert sorted(set(labels.tolist())) == list(range(10))


def test_digits_are_those_of_scikit_learn_whether_or_not_its_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from_file = _digits_of_sklearn()
    monkeypatch.setattr(datasets, "find_spec", lambda _: None)
    for ours, theirs in zip(from_file, _digits_of_sklearn(), strict=True):
        assert (ours == theirs).all()


def test_digits_are_read_without_importing_scikit_learn() -> None:
    code = "import sys; from sngd.problems.datasets import digits; digits(); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digits_are_split_evenly_over_the_classes() -> None:
    (_, labels), (_, test_labels) = digits()
    total = labels.bincount() + test_labels.bincount()
    assert ((test_labels.bincount() - total / 5).abs() <= 1).all()


def test_digits_are_disjoint_complete_and_always_the_same() -> None:
    from sklearn.datasets import load_digits

    (images, labels), (test_images, test_labels) = digits()
    rows = [tuple(row) for row in torch.cat([images, test_images]).mul(16).int().tolist()]
    assert len(set(rows)) == 1797  # scikit-learn's images are all different, so none is on both sides
    assert set(rows) == {tuple(row) for row in load_digits().data.astype(int).tolist()}
    again = digits()
    assert torch.equal(again[0][0], images)
    assert torch.equal(again[1][1], test_labels)
    assert labels[:12].tolist() == digits()[0][1][:12].tolist()
