"""Files made to harm: to run code, to take all memory or time, to write elsewhere, to wait for ever."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from attacks import samples
from attacks.target import CODE, DIFFERENCE, Chance, Found, Target, refused
from sngd.paper import claims
from sngd.problems.cifar10_batch import read_binary, read_pickle
from sngd.problems.datasets import mnist
from sngd.problems.idx import idx_shape, read_idx
from sngd.studies.runs import read_study
from sngd.training import train
from sngd.training.plan_words import inline
from sngd.training.planned import read_plan

GADGETS = (  # module, name, and what it is called with; {} stands for the file that must not appear
    ("os", "system", ("touch {}",)),
    ("posix", "system", ("touch {}",)),
    ("builtins", "eval", ("__import__('pathlib').Path('{}').touch()",)),
    ("builtins", "exec", ("open('{}', 'w')",)),
    ("__builtin__", "eval", ("open('{}', 'w')",)),
    ("builtins", "open", ("{}", "w")),
    ("io", "open", ("{}", "w")),
    ("_io", "FileIO", ("{}", "w")),
    ("os", "mkdir", ("{}",)),
    ("subprocess", "getoutput", ("touch {}",)),
    ("subprocess", "Popen", (["touch", "{}"],)),
    ("pathlib", "Path.touch", ("{}",)),
    ("runpy", "run_path", ("{}.py",)),
    ("torch.serialization", "load", ("{}",)),
    ("torch", "save", ("x", "{}")),
    ("torch.hub", "load", ("{}", "x")),
    ("numpy", "save", ("{}", "x")),
    ("numpy.core.multiarray", "fromfile", ("{}",)),
    ("numpy.testing._private.utils", "runstring", ("open('{}', 'w')", {})),
    ("code", "InteractiveInterpreter", ()),
    ("sngd.training.run_folder", "replace_file", ("{}", b"x")),
)


def targets(where: Path) -> dict[str, Target]:
    files = where / "hostile"
    return {
        "checkpoint.pt:code": _checkpoint(files / "code", _code, goal=3000),
        "checkpoint.pt:bombs": _checkpoint(files / "bombs", _bomb, goal=200),
        "checkpoint.pt:archives": _checkpoint(files / "archives", _archive, goal=1000),
        "cifar10:code": _cifar(files / "cifar", _python2_code, goal=5000),
        "cifar10:bombs": _cifar(files / "cifar-bombs", _python2_bomb, goal=200),
        "idx:bombs": _idx_bombs(files / "idx"),
        "no plain file": Target(_odd_file(files / "odd"), _odd_made(files / "odd"), goal=300),
        "links": Target(_link(files / "links"), _folder(files / "links"), goal=100),
    }


def _folder(where: Path) -> Callable[[], None]:
    return lambda: where.mkdir(parents=True, exist_ok=True)


# ---- pickles -------------------------------------------------------------------------------------------------


def _gadget(chance: Chance, canary: Path, protocol: int) -> bytes:
    """Opcodes that call a gadget and leave what it returns on the stack, in one of the ways that pickle knows."""
    module, name, arguments = chance.choice(GADGETS)
    way = chance.choice(("global", "stack global", "inst", "obj", "newobj", "build"))
    chance.note = f"{module}.{name} by {way}, protocol {protocol}"
    filled = tuple(_filled(argument, canary) for argument in arguments)
    packed = pickle.dumps(filled, protocol=min(protocol, 2))
    argument = packed[2:-1] if protocol >= 2 else packed[:-1]
    parts = _argument_parts(filled)
    named = f"{module}\n{name}\n".encode()
    if way == "stack global":
        texts = b"".join(b"X" + struct.pack("<I", len(t)) + t for t in (module.encode(), name.encode()))
        return texts + b"\x93" + argument + b"R"
    if way == "inst":
        return b"(" + parts + b"i" + named
    if way == "obj":
        return b"(c" + named + parts + b"o"
    if way == "newobj":
        return b"c" + named + argument + b"\x81"
    if way == "build":  # of an object that may be made: its state is set by what it names
        return b"ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__c" + named + b"sb" + argument + b"b"
    return b"c" + named + argument + b"R"


def _argument_parts(arguments: tuple[Any, ...]) -> bytes:
    return b"".join(pickle.dumps(argument, protocol=2)[2:-1] for argument in arguments)


def _filled(argument: Any, canary: Path) -> Any:
    if isinstance(argument, str):
        return argument.replace("{}", str(canary))
    return [_filled(part, canary) for part in argument] if isinstance(argument, list) else argument


def _checkpoint(where: Path, make: Callable[[Chance, Path, bytes], bytes], goal: int) -> Target:
    files: dict[str, bytes] = {}
    canary = where / "canary"

    def prepare() -> None:
        files.update(samples.run_files(where / "made", samples.CONFIG, stop_after=20))
        _compressed(files["checkpoint.pt"])
        canary.with_name("canary.py").write_text(f"open({str(canary)!r}, 'w')")

    def attempt(chance: Chance) -> dict[str, int]:
        run = where / "run"
        samples.put({**files, "checkpoint.pt": make(chance, canary, files["checkpoint.pt"])}, run)
        return _untouched(canary, lambda: train(samples.CONFIG, run, problem=samples.tiny, resume=True), run)

    return Target(attempt, prepare, goal=goal)


def _untouched(canary: Path, read: Callable[[], object], *names: Path) -> dict[str, int]:
    try:
        read()
        outcome = {"read": 1}
    except Exception as error:
        outcome = refused(error, *names)
    if canary.exists():
        with suppress(OSError):
            canary.unlink()
        with suppress(OSError):
            canary.rmdir()
        raise Found(CODE, "code from the file ran")
    return outcome


def _code(chance: Chance, canary: Path, valid: bytes) -> bytes:
    """A gadget as the whole state, as a value in it, or as a key, in each container that torch.load knows."""
    protocol = chance.choice((2, 2, 2, 3, 4))
    body = _gadget(chance, canary, protocol)
    place = chance.choice(("alone", "value", "key", "ignored"))
    chance.note += f", {place}"
    if place == "value":
        body = b"}X\x05\x00\x00\x00model" + body + b"s"
    elif place == "key":
        body = b"}" + body + b"K\x01s"
    elif place == "ignored":
        body = body + b"0}"
    return _contained(chance, b"\x80" + bytes([protocol]) + body + b".", valid)


def _contained(chance: Chance, text: bytes, valid: bytes) -> bytes:
    container = chance.choice(("zip", "zip", "raw", "legacy"))
    chance.note += f", {container}"
    if container == "zip":
        return _with_records(valid, {"data.pkl": text})
    if container == "legacy":  # magic number, protocol, system, then the state
        head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        return b"".join(head) + text
    return text


def _with_records(valid: bytes, records: dict[str, bytes], without: str | None = None) -> bytes:
    """The archive of a valid checkpoint with some records replaced or added, by the end of their names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(valid)) as old, zipfile.ZipFile(buffer, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            short = name.partition("/")[2]
            if short not in records and short != without:
                new.writestr(name, old.read(name))
        for name, content in records.items():
            new.writestr(name if name.startswith(("/", ".")) else f"{top}/{name}", content)
    return buffer.getvalue()


def _bomb(chance: Chance, _canary: Path, valid: bytes) -> bytes:
    """Few bytes that ask for much time or memory."""
    kind = chance.choice(("hash", "hash of lists", "deep", "long", "vast tensor", "compressed", "memo", "repr"))
    chance.note = kind
    doubled = b")" + b"q\x00h\x00\x86" * chance.randrange(40, 200)  # a tuple of twice the one before, again and again
    text = {
        "hash": b"}" + doubled + b"K\x01s",
        "hash of lists": b"\x8f(" + doubled + b"\x90",
        "deep": b"]" * 100_000 + b"a" * 99_999,
        "long": b"\x8b" + struct.pack("<I", 2**31 - 1),
        "memo": b"}r" + struct.pack("<I", 2**32 - 1),
        "repr": b"}X\x08\x00\x00\x00finished" + doubled + b"s",
    }.get(kind)
    if kind == "compressed":
        return _compressed(valid)
    if kind == "vast tensor":
        buffer = io.BytesIO()
        torch.save({"finished": False, "model": torch.zeros(1).expand(10**11), "rows": 1}, buffer)
        return buffer.getvalue()
    assert text is not None
    return _contained(chance, b"\x80\x02" + text + b".", valid)


@cache
def _compressed(valid: bytes) -> bytes:
    """A weight of half a gigabyte, all zeros, in an archive of half a megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(valid)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if not name.endswith("/data/0"):
                new.writestr(name, old.read(name))
                continue
            with new.open(name, "w") as record:
                for _ in range(512):
                    record.write(bytes(1 << 20))
    return buffer.getvalue()


def _archive(chance: Chance, canary: Path, valid: bytes) -> bytes:
    """Archives with records that no checkpoint has."""
    kind = chance.choice(("outside", "absolute", "twice", "no pickle", "script", "code", "short", "tail", "lying size"))
    chance.note = kind
    if kind == "outside":
        return _with_records(valid, {f"../../../../../..{canary}": b"x"})
    if kind == "absolute":
        return _with_records(valid, {str(canary): b"x"})
    if kind == "no pickle":
        return _with_records(valid, {}, without="data.pkl")
    if kind == "script":
        return _with_records(valid, {"constants.pkl": b"\x80\x02)."})
    if kind == "code":
        return _with_records(valid, {"code/__torch__.py": f"open('{canary}', 'w')".encode()})
    if kind == "short":
        return _with_records(valid, {"data/0": b"x" * chance.randrange(8)})
    if kind == "tail":
        return valid + chance.randbytes(chance.randrange(1, 2000))
    if kind == "lying size":
        content = bytearray(valid)
        at = content.rfind(b"PK\x01\x02", 0, chance.randrange(len(content) // 2, len(content)))
        content[at + 20 : at + 28] = struct.pack("<II", chance.getrandbits(32), chance.getrandbits(32))
        return bytes(content)
    buffer = io.BytesIO(valid)
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the name is there twice is the point
        archive.writestr(archive.namelist()[0], b"x")
    return buffer.getvalue()


def _cifar(where: Path, make: Callable[[Chance, Path], bytes], goal: int) -> Target:
    canary, path = where / "canary", where / "data_batch_1"

    def attempt(chance: Chance) -> dict[str, int]:
        path.write_bytes(make(chance, canary))
        return _untouched(canary, lambda: read_pickle(path), path)

    return Target(attempt, _folder(where), goal=goal)


def _python2_code(chance: Chance, canary: Path) -> bytes:
    protocol = chance.choice((0, 1, 2, 2, 2, 3, 4, 5))
    body = _gadget(chance, canary, protocol)
    place = chance.choice(("alone", "key", "beside", "beside"))
    chance.note += f", {place}"
    if place == "beside":
        return samples.cifar_pickle(extra=b"U\x05extra" + body)
    if place == "key":
        return samples.cifar_pickle(extra=body + b"K\x01")
    head = b"\x80" + bytes([protocol]) if protocol >= 2 else b""
    return head + body + b"."


def _python2_bomb(chance: Chance, _canary: Path) -> bytes:
    kind = chance.choice(("hash", "deep", "deep marks", "long", "long text", "memo", "frozen set", "big number"))
    chance.note = kind
    doubled = b")" + b"q\x00h\x00\x86" * chance.randrange(40, 200)
    extra = {
        "hash": doubled + b"K\x01",
        "deep": b"U\x01x" + b"]" * 100_000 + b"a" * 99_999,
        "deep marks": b"U\x01x" + b"(" * 100_000 + b"t" * 100_000,
        "long": b"U\x01x\x8b" + struct.pack("<i", 2**31 - 1),
        "long text": b"U\x01xT" + struct.pack("<i", 2**31 - 1),
        "memo": b"U\x01xNr" + struct.pack("<I", 2**32 - 1),
        "frozen set": b"U\x01x(" + doubled + b"\x91",
        "big number": b"U\x01xI" + b"9" * 200_000 + b"\n",
    }[kind]
    return samples.cifar_pickle(extra=extra)


# ---- data ----------------------------------------------------------------------------------------------------


_PROMISED = ((4, 28, 28), (70_000, 28, 28), (2**20, 28, 28), (4, 2**15, 2**15), (2**32 - 1, 2**32 - 1, 2**32 - 1))


def _idx_bombs(where: Path) -> Target:
    """A compressed file of less than a megabyte that holds 600, as its header promises or not."""
    bombs: list[bytes] = []
    path = where / "mnist" / "train-images-idx3-ubyte"

    def prepare() -> None:
        samples.put(samples.idx_files(), path.parent)
        bombs.extend(_bombs())

    def attempt(chance: Chance) -> dict[str, int]:
        number = chance.randrange(len(_PROMISED))
        chance.note = f"header promises {_PROMISED[number]}"
        path.write_bytes(bombs[number])
        try:
            mnist(where)
        except Exception as error:
            return refused(error, path, path.name)
        return {"read": 1}

    return Target(attempt, prepare, goal=50)


def _bombs() -> list[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    heads = [bytes([0, 0, 8, 3]) + struct.pack(">3I", *promised) for promised in _PROMISED]
    return [b"\x1f\x8b\x08" + bytes(7) + _stored(head) + 600 * block + b"\x03\x00" + bytes(8) for head in heads]


def _stored(content: bytes) -> bytes:
    """A block of a deflate stream that is not compressed, and not the last."""
    return b"\x00" + struct.pack("<HH", len(content), len(content) ^ 0xFFFF) + content


# ---- what is no plain file -----------------------------------------------------------------------------------


def _odd_made(where: Path) -> Callable[[], None]:
    def prepare() -> None:
        samples.run_files(where / "made", samples.CONFIG, stop_after=20)

    return prepare


def _odd_file(where: Path) -> Callable[[Chance], dict[str, int]]:
    """A pipe that nobody writes to, a folder, a device without end, a link to itself, where a file is expected."""
    make: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "/dev/null": lambda path: path.symlink_to("/dev/null"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "link to nothing": lambda path: path.symlink_to("nothing"),
    }

    def attempt(chance: Chance) -> dict[str, int]:
        folder = where / "try"
        samples.put(samples.files_of(where / "made"), folder)
        reader, kind = chance.choice(list(_READERS)), chance.choice(list(make))
        chance.note = f"{kind} as {reader}"
        name, read = _READERS[reader]
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        make[kind](path)
        try:
            read(path)
        except Exception as error:
            return refused(error, folder)
        return {"read": 1}

    return attempt


def _resume(path: Path) -> None:
    train(samples.CONFIG, path.parent, problem=samples.tiny, resume=True)


_READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a run's .lock": (".lock", _resume),
    "a run's config.json": ("config.json", _resume),
    "a run's metrics.jsonl": ("metrics.jsonl", _resume),
    "a run's checkpoint.pt": ("checkpoint.pt", _resume),
    "a study's config.json": ("config.json", lambda path: read_study(path.parent)),
    "a study's environment.json": ("environment.json", lambda path: read_study(path.parent)),
    "a study's metrics.jsonl": ("metrics.jsonl", lambda path: read_study(path.parent)),
    "a study's compare.json": ("compare.json", lambda path: read_study(path.parent)),
    "measurements.json": ("fig4/measurements.json", lambda path: claims.judge(path.parent.parent, ["C6"])),
    "a plan": ("plan.json", read_plan),
    "a stage plan": ("stages.json", lambda path: inline(str(path))),
    "IDX": ("train-labels-idx1-ubyte", lambda path: read_idx(path, ndim=1)),
    "IDX's header": ("train-labels-idx1-ubyte", lambda path: idx_shape(path, ndim=1)),
    "CIFAR-10, binary": ("data_batch_1.bin", read_binary),
    "CIFAR-10, Python": ("data_batch_1", read_pickle),
}


def _link(where: Path) -> Callable[[Chance], dict[str, int]]:
    """A link in a run's folder to a file outside, which must stay as it is, and must not come to be."""

    def attempt(chance: Chance) -> dict[str, int]:
        folder, outside = where / "run", where / "outside"
        samples.put({}, folder)
        there = chance.random() < 0.7
        outside.unlink(missing_ok=True)
        if there:
            outside.write_bytes(b"precious")
        temporary = f".{chance.choice(('config.json', 'checkpoint.pt'))}.{os.getpid()}.tmp"
        name = chance.choice((".lock", ".lock", temporary, "config.json", "checkpoint.pt", "environment.json"))
        chance.note = f"{name} is a link to a file that is {'there' if there else 'not there'}"
        (folder / name).symlink_to(outside)
        try:
            train(samples.CONFIG, folder, problem=samples.tiny, overwrite=True)
            outcome = {"trained": 1}
        except Exception as error:
            outcome = refused(error, folder)
        if outside.exists() != there or (there and outside.read_bytes() != b"precious"):
            raise Found(DIFFERENCE, f"a file outside of the run's folder was changed through {name}")
        return outcome

    return attempt
