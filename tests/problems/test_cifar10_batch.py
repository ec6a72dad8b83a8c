"""One file of CIFAR-10: good ones are read, bad ones refused in one exact line, hostile ones run nothing."""

import contextlib
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sngd.problems import DataError
from sngd.problems.cifar10_batch import read_binary, read_pickle
from sngd.problems.problem import Samples

Encode = Callable[[Tensor, list[int]], bytes]
Read = Callable[[Path], Samples]

IMAGES = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
RECORD = b"\x07" + bytes(3072)


def refused(read: Read, path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def check(samples: Samples, images: Tensor, labels: list[int]) -> None:
    assert (samples[0].dtype, samples[1].dtype) == (torch.uint8, torch.int64)
    assert torch.equal(samples[0], images)
    assert samples[1].tolist() == labels


# --- the binary layout


def test_records_are_a_label_and_three_planes_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "batch.bin"
    path.write_bytes(b"".join(bytes([k, *IMAGES[k].flatten().tolist()]) for k in range(3)))
    check(read_binary(path), IMAGES, [0, 1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, must be 3073 for each image and at least one image"),
        (RECORD[:-1], "3072 bytes, must be 3073 for each image and at least one image"),
        (RECORD * 2 + b"\0", "6147 bytes, must be 3073 for each image and at least one image"),
        (RECORD + b"\x0a" + RECORD[1:], "label 10 at index 1, must be 0 to 9"),
    ],
)
def test_bad_binary_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "batch.bin"
    path.write_bytes(content)
    assert refused(read_binary, path) == message


@pytest.mark.parametrize("read", [read_binary, read_pickle])
def test_unreadable(read: Read, tmp_path: Path) -> None:
    assert refused(read, tmp_path / "batch") == "cannot be read (No such file or directory)"
    assert refused(read, tmp_path) == "cannot be read (Is a directory)"


# --- the Python layout


def test_a_pickle_of_python_2(python2_pickle: Encode, tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(python2_pickle(IMAGES, [9, 0, 4]))
    check(read_pickle(path), IMAGES, [9, 0, 4])
    theirs = pickle.loads(path.read_bytes(), encoding="bytes")  # the format is the real one: numpy reads it alike
    assert (theirs[b"data"] == IMAGES.flatten(1).numpy()).all()
    assert theirs[b"labels"] == [9, 0, 4]


def test_an_array_stored_column_by_column(python2_pickle: Encode, tmp_path: Path) -> None:
    path = tmp_path / "batch"
    content = python2_pickle(IMAGES.flatten(1).T.contiguous().view_as(IMAGES), [9, 0, 4])
    path.write_bytes(content.replace(b"\x89T\x00\x24", b"\x88T\x00\x24"))
    check(read_pickle(path), IMAGES, [9, 0, 4])
    assert (pickle.loads(path.read_bytes(), encoding="bytes")[b"data"] == IMAGES.flatten(1).numpy()).all()


FORM = "must be a dict of b'labels', a list, and b'data', a uint8 array of 3072 columns"
SIZES = "9216 bytes of pixels for {} labels, must be 3072 for each image and at least one image"
NO_PICKLE = "is no pickle as CIFAR-10 has them"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"U\x06labels", b"U\x06lapels", FORM),
        (b"U\x04data", b"U\x04date", FORM),
        (b"U\x02u1", b"U\x02i1", FORM),
        (b"M\x00\x0c", b"M\x01\x0c", FORM),
        (b"](K\x09K\x00K\x04e", b"K\x09", FORM),
        (b"](K\x09K\x00K\x04e", b"](K\x09K\x00e", SIZES.format(2)),
        (b"](K\x09K\x00K\x04e", b"](K\x09K\x00K\x04K\x04e", SIZES.format(4)),
        (b"](K\x09K\x00K\x04e", b"]", SIZES.format(0)),
        (b"(K\x01M\x03\x00", b"(K\x01M\x02\x00", SIZES.format(3)),
        (b"K\x04e", b"K\x0ae", "label 10 at index 2, must be 0 to 9"),
        (b"K\x04e", b"J\xff\xff\xff\xffe", "labels must be whole numbers from 0 to 9"),
        (b"K\x04e", b"U\x014e", "labels must be whole numbers from 0 to 9"),
        (b"K\x04e", b"\x8a\xff" + b"\x7f" * 255 + b"e", "labels must be whole numbers from 0 to 9"),
        (b"u.", b"u.\n", f"{NO_PICKLE} (more data follows it)"),
        (b"u.", b"u", f"{NO_PICKLE} (EOFError)"),
        (b"\x80\x02", b"\x80\x09", f"{NO_PICKLE} (ValueError)"),
        (b"\x80\x02", b"<html>", f"{NO_PICKLE} (KeyError)"),
        (b"numpy\ndtype", b"numpy\nload", f"{NO_PICKLE} (it asks for 'numpy', 'load')"),
    ],
)
def test_bad_pickles(old: bytes, new: bytes, message: str, python2_pickle: Encode, tmp_path: Path) -> None:
    path = tmp_path / "batch"
    good = python2_pickle(IMAGES, [9, 0, 4])
    assert good.count(old) == 1
    path.write_bytes(good.replace(old, new))
    assert refused(read_pickle, path) == message


@given(cut=st.integers(0, 3400))
def test_every_truncation_is_refused(
    cut: int, python2_pickle: Encode, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut"
    good = python2_pickle(IMAGES[:1], [9])
    path.write_bytes(good[: min(cut, len(good) - 1)])
    refused(read_pickle, path)


@given(changes=st.lists(st.tuples(st.integers(0, 320), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_gives_samples_or_a_dataerror(
    changes: list[tuple[int, int]], python2_pickle: Encode, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    content = bytearray(python2_pickle(IMAGES[:1], [9]))
    pixels = content.index(b"T\x00\x0c\x00\x00")
    for place, value in changes:  # all around the pixels, which are allowed to be anything
        content[place if place < pixels else place - 321] = value
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        images, labels = read_pickle(path)
        assert (images.shape, labels.shape) == ((1, 3, 32, 32), (1,))
        assert 0 <= int(labels) <= 9


# --- hostile pickles


class Payload:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_a_hostile_pickle_runs_nothing(protocol: int, tmp_path: Path) -> None:
    path, sign = tmp_path / "batch", tmp_path / "sign"
    path.write_bytes(pickle.dumps(Payload(os.system, f"touch {sign}"), protocol))
    assert refused(read_pickle, path) == f"{NO_PICKLE} (it asks for 'posix', 'system')"
    assert not sign.exists()
    pickle.loads(path.read_bytes())
    assert sign.exists()  # it would have


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_nor_in_the_words_of_python_3(protocol: int, tmp_path: Path) -> None:
    path, sign = tmp_path / "batch", tmp_path / "sign"
    path.write_bytes(pickle.dumps(Payload(os.system, f"touch {sign}"), protocol))
    assert refused(read_pickle, path).startswith(NO_PICKLE)
    assert not sign.exists()


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cbuiltins\ngetattr\n.", f"{NO_PICKLE} (it asks for 'builtins', 'getattr')"),
        (b"c__builtin__\neval\n.", f"{NO_PICKLE} (it asks for '__builtin__', 'eval')"),
        (b"(S'1'\ni__builtin__\neval\n.", f"{NO_PICKLE} (it asks for '__builtin__', 'eval')"),
        (b"cnumpy\nndarray.__class__\n.", f"{NO_PICKLE} (it asks for 'numpy', 'ndarray.__class__')"),
        (b"cnumpy.core.multiarray\nfromfile\n.", f"{NO_PICKLE} (it asks for 'numpy.core.multiarray', 'fromfile')"),
        (b"cnumpy\x1b[2J\ndtype\n.", f"{NO_PICKLE} (it asks for 'numpy\\x1b[2J', 'dtype')"),
        (b"\x8c\x05numpy\x8c\x05dtype\x93.", f"{NO_PICKLE} (KeyError)"),  # STACK_GLOBAL
        (b"\x82\x01.", f"{NO_PICKLE} (ValueError)"),  # the extension registry
        (b"Pfile\n.", f"{NO_PICKLE} (unsupported persistent id encountered)"),
        # The names that are admitted, put to other uses: an array of objects, an absurd size, a class rewritten.
        (ARRAY + b"(cnumpy\nndarray\nK\x01\x85U\x01OtR.", FORM),
        (
            ARRAY
            + b"(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x03\x85cnumpy\ndtype\n(U\x02O8K\x00K\x01tR\x89](NNNetb.",
            FORM,
        ),
        (b"}U\x06labels]sU\x04data" + ARRAY + b"(cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01btRs.", FORM),
        (b"cnumpy\ndtype\n}U\x0c__setstate__Nsb.", f"{NO_PICKLE} (TypeError)"),
        (b"cnumpy\ndtype\nN}U\x08__init__Ns\x86b.", f"{NO_PICKLE} (TypeError)"),
        (b"cnumpy\ndtype\n.", FORM),
        (b"cnumpy\ndtype\n)\x81.", FORM),
    ],
)
def test_gadgets(content: bytes, message: str, python2_pickle: Encode, tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02" + content)
    assert refused(read_pickle, path) == message
    path.write_bytes(python2_pickle(IMAGES, [9, 0, 4]))
    check(read_pickle(path), IMAGES, [9, 0, 4])  # nothing was changed for those who come after


@pytest.mark.parametrize(
    "content",
    [
        b"Nr" + b"\xff" * 4 + b".",  # the memo's last place
        b"\x96" + struct.pack("<Q", 1 << 36) + b".",  # a bytearray
        ARRAY + b"(cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01btR.",
    ],
)
def test_few_bytes_cannot_take_much_memory(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02" + content)
    tracemalloc.start()
    refused(read_pickle, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
