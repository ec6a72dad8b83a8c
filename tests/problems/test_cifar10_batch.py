"""One file of CIFAR-10: good ones are read, bad ones refused in one exact line, hostile ones run nothing."""

import contextlib
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
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
    assert refused(read, tmp_path) == "is a folder, must be a file"


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
        (b"u.", b"u", f"{NO_PICKLE} (pickle exhausted before seeing STOP)"),
        (b"\x80\x02", b"\x80\x09", f"{NO_PICKLE} (protocol 9, must be 2)"),
        (b"\x80\x02", b"<html>", f"{NO_PICKLE} (at position 0, opcode b'<' unknown)"),
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


def other(instruction: str, byte: int) -> str:
    return f"{NO_PICKLE} (instruction {instruction} at byte {byte} is none of an official file)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cbuiltins\ngetattr\n.", f"{NO_PICKLE} (it asks for 'builtins', 'getattr')"),
        (b"c__builtin__\neval\n.", f"{NO_PICKLE} (it asks for '__builtin__', 'eval')"),
        (b"(S'1'\ni__builtin__\neval\n.", other("STRING", 3)),
        (b"(i__builtin__\neval\n.", other("INST", 3)),
        (b"cnumpy\nndarray.__class__\n.", f"{NO_PICKLE} (it asks for 'numpy', 'ndarray.__class__')"),
        (b"cnumpy.core.multiarray\nfromfile\n.", f"{NO_PICKLE} (it asks for 'numpy.core.multiarray', 'fromfile')"),
        (b"cnumpy\x1b[2J\ndtype\n.", f"{NO_PICKLE} (it asks for 'numpy\\x1b[2J', 'dtype')"),
        (b"\x8c\x05numpy\x8c\x05dtype\x93.", other("SHORT_BINUNICODE", 2)),
        (b"U\x05numpyU\x05dtype\x93.", other("STACK_GLOBAL", 16)),
        (b"\x82\x01.", other("EXT1", 2)),  # the extension registry
        (b"Pfile\n.", other("PERSID", 2)),
        (b"c" + b"x" * 999 + b"\ndtype\n.", f"{NO_PICKLE} (it asks for '{'x' * 107})"),  # no message of any length
        (b"S" + b"x" * 999 + b"\n.", f"{NO_PICKLE} (no string quotes around b'{'x' * 94})"),
        (b"U\x04fileQ.", other("BINPERSID", 8)),
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
        (b"cnumpy\ndtype\n)\x81.", other("EMPTY_TUPLE", 15)),
        (b"cnumpy\ndtype\n(t\x81.", other("NEWOBJ", 17)),
        (b"cnumpy\ndtype\n(to.", other("OBJ", 17)),
        (b"]R.", f"{NO_PICKLE} (IndexError)"),
        (b"N]R.", f"{NO_PICKLE} (TypeError)"),
        (b"cnumpy\ndtype\n]R.", f"{NO_PICKLE} (TypeError)"),
        (b"(N(Ne.", f"{NO_PICKLE} (TypeError)"),
        (b"}(U\x01ku.", f"{NO_PICKLE} (a key without a value)"),
        (b"NN.", f"{NO_PICKLE} (it ends before its value does)"),
        (b"N(N.", f"{NO_PICKLE} (it ends before its value does)"),
        (b"h\x00.", f"{NO_PICKLE} (KeyError)"),
        (b"e.", f"{NO_PICKLE} (IndexError)"),
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


# Few bytes, or bytes of no pixels, that ask for more time or memory than an official file of that size.
BOMBS = {
    "a key of tuples that each hold the last one twice": b"}N" + b"q\x00h\x00\x86" * 30 + b"Ns.",
    "a key of tuples in tuples": b"}N" + b"\x85" * 200_000 + b"Ns.",
    "a value of tuples in tuples": b"}U\x01kN" + b"\x85" * 2_000_000 + b"s.",
    "lists in lists": b"]" * 2_000_000 + b"a" * 1_999_999 + b".",
    "keys that share a hash": b"}("
    + b"".join(b"\x8a\x10" + ((2**61 - 1) * k).to_bytes(16, "little") + b"N" for k in range(1, 100_000))
    + b"u.",
    "marks": b"(" * 4_000_000 + b".",
    "dicts": b"}" * 4_000_000 + b".",
    "places in the memo": b"N" + b"".join(b"r" + struct.pack("<I", k << 12) for k in range(500_000)) + b".",
    "arguments that are passed again and again": b"("
    + b"N" * 500_000
    + b"tq\x00"
    + b"cnumpy\ndtype\nh\x00R" * 50_000
    + b".",
    "a list that is added to itself": b"]q\x00" + b"(h\x00h\x00e" * 500_000 + b".",
}

READ_ALL = """
import resource, sys, tracemalloc
from pathlib import Path
from sngd.problems import DataError
from sngd.problems.cifar10_batch import read_pickle
resource.setrlimit(resource.RLIMIT_CPU, (int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 30,) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    tracemalloc.start()
    try:
        images, labels = read_pickle(path)
    except DataError as error:
        print(path.name, str(error).removeprefix(f"{path}: "), sep=": ")
    else:
        assert images.shape == (len(labels), 3, 32, 32), path
        assert 0 <= labels.min() <= labels.max() <= 9, path
    assert tracemalloc.get_traced_memory()[1] < 5 * path.stat().st_size + 1_000_000, path
    tracemalloc.stop()
"""


def read_all(folder: Path) -> list[str]:
    """Reads all pickles of a folder in a process that has 30 seconds, each with 5 bytes of memory a byte of its file.

    Returns:
        Names and messages of those that were refused.
    """
    command = [sys.executable, "-c", READ_ALL, folder]
    return subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE, text=True).stdout.splitlines()


@pytest.mark.slow
def test_bombs_take_no_more_than_their_size(tmp_path: Path) -> None:
    for name, content in BOMBS.items():
        (tmp_path / name).write_bytes(b"\x80\x02" + content)
    lines = read_all(tmp_path)
    assert len(lines) == len(BOMBS)
    assert all(f": {NO_PICKLE} (" in line for line in lines)


@pytest.mark.slow
def test_mutants_take_no_more_than_their_size(python2_pickle: Encode, tmp_path: Path) -> None:
    good, chance = python2_pickle(IMAGES[:1], [9]), random.Random(0)
    opcodes = [ord(opcode.code) for opcode in pickletools.opcodes]
    pixels = range(good.index(b"T\x00\x0c\x00\x00") + 5, good.index(b"tbU\x09filenames"))
    places = [k for k in range(len(good)) if k not in pixels]
    for k in range(400):
        mutant = bytearray(good)
        for place in sorted(chance.choices(places, k=chance.choice([1, 2, 5, 20])), reverse=True):
            replacement = [chance.choice(opcodes)] * chance.choice([0, 1, 1, 1, 2, 1000])
            mutant[place : place + chance.choice([0, 1])] = bytes(replacement)
        (tmp_path / f"{k:03}").write_bytes(mutant)
    refusals = read_all(tmp_path)
    assert 300 < len(refusals) < 400
    assert max(map(len, refusals)) < 200


@pytest.mark.parametrize(
    ("read", "most"), [(read_binary, 60_000 * 3073), (read_pickle, 60_000 * 4096)], ids=["binary", "pickle"]
)
def test_a_file_that_is_too_large_is_not_read(read: Read, most: int, tmp_path: Path) -> None:
    path = tmp_path / "batch"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    tracemalloc.start()
    message = refused(read, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message == f"{1 << 40} bytes, must be at most {most}, as for 60000 images"
    assert peak < 1_000_000
