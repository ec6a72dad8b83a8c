"""A run's folder: config.json, environment.json, metrics.jsonl and checkpoint.pt, safe against any interruption."""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sngd.checks import cut
from sngd.training.checkpoint_file import load
from sngd.training.config import StoredConfig, read_config
from sngd.training.environment import environment
from sngd.training.folder_lock import FolderLock, locked, make_folder, temporary_name
from sngd.training.metrics import Row, as_lines, lines_of, parse_rows, read_rows
from sngd.training.schema import Count, Malformed, NonNegative, UnknownKey, check, content_of

_FILES = ("config.json", "environment.json", "metrics.jsonl", "checkpoint.pt")
_ADVICE = "; start again with --overwrite"


class BrokenRun(ValueError):
    """A run's folder is damaged in a way that a killed run cannot cause: a damaged file, or lost rows."""


class Checkpoint(TypedDict):
    """The outer part of checkpoint.pt; what is inside its parts their own ``load_state_dict`` check."""

    finished: bool
    model: dict[str, Any]  # tensors, and whatever the modules of a user's model add
    loop: dict[str, Any]
    samples: dict[str, Any]
    augmentation: Tensor
    iterate: dict[str, Any] | None
    tracking_calls: Count
    rng: Tensor
    cuda_rng: Tensor | None
    steps: Count
    seen: Count
    rows: Count
    evaluations: Count
    seconds: NonNegative


class RunFolder:
    """Reads and writes one run's folder.

    A whole file is replaced atomically. A row of metrics is appended and forced to disk. A row counts only once a
    checkpoint that includes it is saved: after a kill, ``truncate`` drops later rows and half-written lines.
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
        """Make the folder and keep other processes out. The lock ends with its process, however that ends.

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
        except FileNotFoundError:
            if self._lock:  # the folder is being deleted, and the lock file may be the last to go
                raise self._lock.loss() from None
            raise
        finally:
            if self._lock:
                self._lock.check()

    def read_config(self) -> StoredConfig:
        """The settings in config.json.

        Raises:
            BrokenRun: the file is damaged.
            ValueError: it has a name that is unknown.
        """
        with _broken():
            return read_config(self.path / "config.json")

    def begin(self, config: dict[str, Any]) -> None:
        """Start a run: delete rows and checkpoint, write config and environment."""
        with self._writing():
            self._checkpoint.unlink(missing_ok=True)
            replace_file(self._metrics, b"")
            write_json(self.path / "environment.json", environment())
            write_json(self.path / "config.json", config)

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace the settings of a run that goes on."""
        with self._writing():
            write_json(self.path / "config.json", config)

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row of metrics; a number that is not finite becomes null, which JSON can say."""
        opener = _open_existing if self._lock else None  # ``begin`` made the file: who deletes it, deletes the folder
        with self._writing(), _naming(self._metrics), open(self._metrics, "ab", opener=opener) as file:
            file.write(as_lines([row]))
            file.flush()
            os.fsync(file.fileno())

    def truncate(self, rows: int) -> None:
        """Keep the first ``rows`` rows of metrics.

        Raises:
            BrokenRun: there are fewer.
        """
        known = self._known_lines(rows)
        with self._writing():
            if known != self._lines():
                replace_file(self._metrics, b"".join(known))

    def _known_lines(self, rows: int) -> list[bytes]:
        """The first ``rows`` lines; BrokenRun if there are fewer."""
        lines = self._lines()[:rows]
        if len(lines) < rows or (lines and not lines[-1].endswith(b"\n")):
            found = f"has {len(lines)} complete rows, the checkpoint knows {rows}"
            raise BrokenRun(f"{self._metrics}: {found}{_ADVICE}")
        return lines

    def _lines(self) -> list[bytes]:
        with _broken():
            return lines_of(self._metrics)

    def rows(self) -> list[Row]:
        """All rows of metrics.

        Raises:
            BrokenRun: a row is damaged.
            ValueError: a row has a key that is unknown.
        """
        with _broken():
            return read_rows(self._metrics)

    def final_rows(self) -> int:
        """How many rows there are if the last of them is the run's final one, otherwise 0."""
        lines = self._lines()
        if not lines or not lines[-1].endswith(b"\n"):
            return 0
        try:
            return len(lines) if parse_rows(lines[-1:], self._metrics)[0]["final"] else 0
        except Malformed:
            return 0

    def has_ended(self) -> bool:
        """Whether the run has ended, by its checkpoint; by its last row if its weights were not kept.

        Raises:
            BrokenRun: files are damaged, see ``set_aside_if_broken``.
        """
        checkpoint = self._check()
        return self.final_rows() > 0 if checkpoint is None else checkpoint["finished"]

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(tree_map(_whole, state), buffer)
        with self._writing():
            replace_file(self._checkpoint, buffer.getvalue())

    def load_checkpoint(self) -> Checkpoint | None:
        """The checkpoint, on the CPU, or None if there is none yet.

        Raises:
            BrokenRun: the file cannot be read, or holds no checkpoint of a run; only tensors and plain values are ever
                loaded from it.
        """
        if not self._checkpoint.exists():
            return None
        try:
            state = check(self._loaded(), Checkpoint, str(self._checkpoint))
        except (Malformed, UnknownKey) as error:
            raise BrokenRun(f"{error}{_ADVICE}") from None
        if state["finished"] and not state["rows"]:
            raise BrokenRun(f"{self._checkpoint}: is of a finished run that has no rows{_ADVICE}")
        return state

    @contextmanager
    def naming_config(self) -> Iterator[None]:
        """A ValueError about the settings of a run that has begun names their file."""
        begun = self.exists()
        try:
            yield
        except ValueError as error:
            if not begun:
                raise
            raise ValueError(f"{self.path / 'config.json'}: {error}") from None

    @contextmanager
    def naming_checkpoint(self) -> Iterator[None]:
        """A ValueError from what is done with the checkpoint becomes a BrokenRun that names the file."""
        try:
            yield
        except ValueError as error:
            raise BrokenRun(f"{self._checkpoint}: {error}{_ADVICE}") from None

    def _loaded(self) -> object:
        content = content_of(self._checkpoint)
        try:
            return load(content)
        except Exception as error:  # a broken zip, a broken pickle, a hostile one: torch has no common type for them
            reason = cut(str(error)) or type(error).__name__
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
                return self._moved(error)
        return None

    def set_aside(self, error: BrokenRun) -> str:
        """As ``set_aside_if_broken``, of a folder in which training ended with ``error``."""
        with self.locked():
            return self._moved(error)

    def _moved(self, error: BrokenRun) -> str:
        names = (self.path.with_name(f"{self.path.name}.broken-{number}") for number in count(1))
        aside = next(name for name in names if not name.exists())
        self.path.rename(aside)
        return f"{str(error).removesuffix(_ADVICE)}; set aside as {aside.name}, the run is done anew"

    def _check(self) -> Checkpoint | None:
        """The checkpoint, if there is one; BrokenRun if it, the settings or the rows are damaged."""
        checkpoint = self.load_checkpoint()
        if not self.exists():
            if checkpoint is not None:  # which no run has before its config
                raise BrokenRun(f"{self.path}: has a checkpoint and no config.json")
            return None
        self.read_config()
        known = self._known_lines(checkpoint["rows"] if checkpoint is not None else self.final_rows())
        with _broken():
            parse_rows(known, self._metrics)
        return checkpoint


def _whole(value: object) -> object:
    """A tensor that is a view of a larger one as a tensor of its own: torch would save the larger one."""
    if isinstance(value, Tensor) and value.layout == torch.strided and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


@contextmanager
def naming_runs(folders: Sequence[Path]) -> Iterator[None]:
    """An error gets a note with the folder of the run, or of the runs that are trained as one, unless it names one."""
    try:
        yield
    except Exception as error:  # of any kind: it gets a note and goes on
        told = "\n".join([str(error), *getattr(error, "__notes__", [])])
        if not any(str(folder) in told for folder in folders):
            one = "in the run" if len(folders) == 1 else "in one of the runs"
            error.add_note(f"{one} {', '.join(map(str, folders))}")
        raise


def is_set_aside(path: Path) -> bool:
    """Whether a folder bears the name that ``set_aside_if_broken`` gives."""
    return re.search(r"\.broken-\d+$", path.name) is not None


@contextmanager
def _broken() -> Iterator[None]:
    """Turn errors about a damaged file into BrokenRun."""
    try:
        yield
    except Malformed as error:
        raise BrokenRun(str(error)) from None


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
    """Add the file's name to an OSError, because errors such as a full disk name only a descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write ``content`` as JSON; ``compact`` puts it in one line, for large files that nobody reads."""
    form: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    replace_file(path, json.dumps(content, **form, allow_nan=False, ensure_ascii=False).encode() + b"\n")
