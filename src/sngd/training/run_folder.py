"""A run's folder: config.json, environment.json, metrics.jsonl and checkpoint.pt, safe against any interruption."""

import io
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any, cast

import torch

from sngd.training.folder_lock import FolderLock, locked, make_folder, temporary_name

_FILES = ("config.json", "environment.json", "metrics.jsonl", "checkpoint.pt")
_ADVICE = "; start again with --overwrite"


class BrokenRun(ValueError):
    """A run's folder holds what no kill leaves behind: a damaged file, or rows that are lost."""


class RunFolder:
    """Reads and writes one run's folder.

    A whole file is replaced atomically; a row of metrics is appended and forced to disk. A row counts once a checkpoint
    that knows it exists: after a kill, ``truncate`` drops what came later, half-written lines included.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: FolderLock | None = None

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "config.json").exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes out; the lock falls with its process, however that ends.

        Inside, a write raises FileNotFoundError if the folder was deleted, moved or replaced.

        Raises:
            ValueError: another process is training in this folder.
            NotADirectoryError: something else has the folder's name.
        """
        make_folder(self.path)
        try:
            with locked(self.path, _FILES, "training") as self._lock:
                yield
        finally:
            self._lock = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The folder must be the one that was locked, also when the write is done: it may be deleted meanwhile."""
        if self._lock:
            self._lock.check()
        try:
            yield
        finally:
            if self._lock:
                self._lock.check()

    def read_config(self) -> dict[str, Any]:
        """config.json; BrokenRun names the file if it does not hold a JSON object."""
        try:
            return read_json(self.path / "config.json")
        except ValueError as error:
            raise BrokenRun(str(error)) from None

    def begin(self, config: dict[str, Any]) -> None:
        """Start anew: drop rows and checkpoint, write config and environment."""
        with self._writing():
            self._checkpoint.unlink(missing_ok=True)
            replace_file(self._metrics, b"")
            write_json(self.path / "environment.json", environment())
            write_json(self.path / "config.json", config)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row of metrics; a number that is not finite becomes null, which JSON can say."""
        finite = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
        opener = _open_existing if self._lock else None  # ``begin`` made the file: who deletes it, deletes the folder
        with self._writing(), _naming(self._metrics), open(self._metrics, "ab", opener=opener) as file:
            file.write(json.dumps(finite, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate(self, rows: int) -> None:
        """Keep the first ``rows`` rows of metrics.

        Raises:
            BrokenRun: there are fewer.
        """
        content = self._metrics.read_bytes() if self._metrics.exists() else b""
        lines = content.splitlines(keepends=True)[:rows]
        if len(lines) < rows or (lines and not lines[-1].endswith(b"\n")):
            raise BrokenRun(f"{self._metrics}: has {len(lines)} complete rows, the checkpoint knows {rows}")
        with self._writing():
            if b"".join(lines) != content:
                replace_file(self._metrics, b"".join(lines))

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics; call it when what came after the checkpoint is dropped.

        Raises:
            BrokenRun: a row is no JSON object.
        """
        lines = self._metrics.read_bytes().splitlines() if self._metrics.exists() else []
        return [_parse_row(line, f"{self._metrics}, line {number}") for number, line in enumerate(lines, 1)]

    def final_rows(self) -> int:
        """How many rows there are if the last of them is the run's final one, otherwise 0."""
        lines = self._metrics.read_bytes().splitlines(keepends=True) if self._metrics.exists() else []
        if not lines or not lines[-1].endswith(b"\n"):
            return 0
        try:
            return len(lines) if _parse_row(lines[-1], "").get("final") else 0
        except BrokenRun:
            return 0

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with self._writing():
            replace_file(self._checkpoint, buffer.getvalue())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint, on the CPU, or None if there is none yet.

        Raises:
            BrokenRun: the file cannot be read; only tensors and plain values are ever loaded from it.
        """
        if not self._checkpoint.exists():
            return None
        try:
            return cast(dict[str, Any], torch.load(self._checkpoint, map_location="cpu", weights_only=True))
        except OSError:  # a disk or a server that fails, not the file
            raise
        except Exception as error:  # a broken zip, a broken pickle, a hostile one: torch has no common type for them
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BrokenRun(f"{self._checkpoint}: cannot be read ({reason}){_ADVICE}") from error

    def set_aside_if_broken(self) -> str | None:
        """Rename a damaged run's folder to NAME.broken-1, or the next number that is free; the name is free then.

        Returns:
            What was wrong and where it is now, or None: nothing is wrong with the run, or none has begun.

        Raises:
            ValueError: another process is training in this folder.
        """
        if not self.path.exists():
            return None
        with self.locked():  # until the folder has its new name, so that nobody renames the one that takes its place
            try:
                self._check()
            except BrokenRun as error:
                names = (self.path.with_name(f"{self.path.name}.broken-{number}") for number in count(1))
                aside = next(name for name in names if not name.exists())
                self.path.rename(aside)
                return f"{str(error).removesuffix(_ADVICE)}; set aside as {aside.name}, the run is done anew"
        return None

    def _check(self) -> None:
        checkpoint = self.load_checkpoint()
        if not self.exists():
            if checkpoint is not None:  # which no run has before its config
                raise BrokenRun(f"{self.path}: has a checkpoint and no config.json")
            return
        self.read_config()
        self.truncate(checkpoint["rows"] if checkpoint is not None else 0)
        self.rows()


def is_set_aside(path: Path) -> bool:
    """Whether a folder bears the name that ``set_aside_if_broken`` gives."""
    return re.search(r"\.broken-\d+$", path.name) is not None


def _parse_row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise BrokenRun(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise BrokenRun(f"{where}: must be a JSON object, is {type(row).__name__}")
    return row


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file at once: a reader, or a crash, sees the old one or the new one, never a part.

    The folder must exist: one that somebody deletes is not made again.
    """
    temporary = temporary_name(path)
    with _naming(path):
        try:
            temporary.unlink(missing_ok=True)  # of an earlier process of this number
            with open(temporary, "xb") as file:  # x: new, so no link that somebody put there is followed
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _open_existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk is reported by a descriptor; whoever reads the error wants the file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(path: Path, content: Any) -> None:
    replace_file(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; ValueError names the file if it holds none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, holds {type(content).__name__}")
    return content


def environment() -> dict[str, Any]:
    """Where a run ran: versions and machine."""
    return {
        "sngd": _version("sngd"),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
