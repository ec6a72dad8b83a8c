"""Checkpoints that are cut, flipped, or made to take all memory or time."""

import io
import struct
import tracemalloc
import zipfile

import pytest
import torch

from sngd.training.checkpoint_file import load


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def with_pickle(text, compression=zipfile.ZIP_STORED):
    """An archive as torch writes it, whose values ``text`` says."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({}))) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for name in old.namelist():
            new.writestr(name, text if name.endswith("/data.pkl") else old.read(name))
    return buffer.getvalue()


def test_what_is_saved_is_loaded():
    shared = (0.9, 0.999)
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{"betas": shared}, {"betas": shared}]}
    many = tuple((k, shared) for k in range(2000))  # an extra state of somebody's module
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    state = load(
        saved({"model": model, "optimizer": optimizer, "many": many, "set": {1, "a"}, "size": torch.Size([2])})
    )
    assert torch.equal(state["model"]["0.weight"], model["0.weight"])
    assert (state["optimizer"], state["many"], state["set"]) == (optimizer, many, {1, "a"})


@pytest.mark.parametrize("content", [b"", b"nonsense", saved({"a": 1})[:-40], b"\x80\x02}."])
def test_what_is_no_archive_is_refused(content):
    with pytest.raises(zipfile.BadZipFile):
        load(content)


def test_zeros_in_a_small_archive_are_refused_before_they_are_unpacked():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(ValueError, match="a record in it is compressed"):
        load(buffer.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_a_record_that_lies_about_its_size_is_refused():
    content = bytearray(saved({"a": torch.ones(3)}))
    at = content.rfind(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    with pytest.raises(ValueError, match="its records are larger than the file"):
        load(bytes(content))


def test_a_record_that_is_there_twice_is_refused():
    buffer = io.BytesIO(saved({"a": 1}))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"x")
    with pytest.raises(ValueError, match="a record is in it twice"):
        load(buffer.getvalue())


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "where", [b"}%sK\x01s", b"}(%sK\x01u", b"]%sa", b"cbuiltins\nset\n](%se\x85R", b"}X\x01\x00\x00\x00a%ss"]
)
def test_a_tuple_that_says_itself_twice_again_and_again_is_refused(where):
    doubled = b")" + b"q\x00h\x00\x86" * 60
    with pytest.raises(ValueError, match="a tuple of more than 1000 times as many parts as are written"):
        load(with_pickle(b"\x80\x02" + where.replace(b"%s", doubled) + b"."))


@pytest.mark.parametrize("module", ["builtins", "__builtin__"])
def test_bytes_made_by_their_number_are_refused(module):
    with pytest.raises(ValueError, match=f"it asks for {module} bytearray"):
        load(with_pickle(b"\x80\x02c%s\nbytearray\nJ\x00\x00\x00\x7f\x85R." % module.encode()))


def test_a_tensor_without_numbers_is_refused():
    with pytest.raises(ValueError, match="a tensor in it has no numbers"):
        load(saved({"lr": torch.zeros((), device="meta")}))
