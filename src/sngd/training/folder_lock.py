"""A lock on a folder: one process at a time writes into it, and notices if the folder is deleted or replaced."""

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class FolderLock:
    """A lock that is held. Its open lock file shows later whether the folder of this name is still the same one."""

    def __init__(self, file: Path, descriptor: int) -> None:
        self._file, self._held = file, os.fstat(descriptor)

    def lost(self) -> bool:
        """Whether the folder was deleted, moved, or replaced by another one of its name."""
        try:
            return not os.path.samestat(os.lstat(self._file), self._held)
        except (FileNotFoundError, NotADirectoryError):
            return True

    def check(self) -> None:
        """FileNotFoundError if the folder is lost; call it before and after each write, which must not recreate it."""
        if self.lost():
            raise self.loss()

    def loss(self) -> FileNotFoundError:
        """The error that says that the folder is lost, or is being deleted."""
        reason = "deleted, moved or replaced while its files were being written; what was to come is lost"
        return FileNotFoundError(errno.ENOENT, reason, str(self._file.parent))


@contextmanager
def locked(folder: Path, writes: Sequence[str], doing: str = "working") -> Iterator[FolderLock]:
    """Keep other processes out of ``folder``, which must exist. The lock ends with its process, however that ends.

    Args:
        writes: the files in ``folder`` that are written under this lock. Temporary files of theirs that a killed
            process left behind are deleted.
        doing: what the other process is said to be doing in the folder.

    Raises:
        ValueError: another process has the lock.
        OSError: the lock file cannot be opened, or is no regular file.
    """
    with _opened(folder / ".lock") as descriptor:
        if not _lock(descriptor, wait=False):
            raise ValueError(f"{folder}: another process is {doing} in this folder")
        _remove_leftovers(folder, writes)
        yield FolderLock(folder / ".lock", descriptor)


@contextmanager
def turn_to_publish(folder: Path, writes: Sequence[str]) -> Iterator[FolderLock]:
    """Wait until no other process publishes in ``folder``, and keep others out meanwhile; arguments as for ``locked``.

    A report or a figure is computed in seconds from existing files. It has a separate lock, so that a study can be
    looked at while its runs go on. A process that reads while it has this lock never overwrites a newer report.
    """
    with _opened(folder / ".publish.lock") as descriptor:
        _lock(descriptor, wait=True)
        _remove_leftovers(folder, writes)
        yield FolderLock(folder / ".publish.lock", descriptor)


def make_folder(path: Path) -> None:
    """Make ``path`` and the folders above it, unless they exist; NotADirectoryError names a file in their place."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        in_the_way = Path(error.filename or path)
        what = "a symbolic link to nowhere" if in_the_way.is_symlink() and not in_the_way.exists() else "a file"
        raise NotADirectoryError(errno.ENOTDIR, f"must be a folder, is {what}", str(in_the_way)) from None


def temporary_name(path: Path) -> Path:
    """The file that takes ``path``'s place once it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _remove_leftovers(folder: Path, writes: Sequence[str]) -> None:
    for path in (folder / name for name in writes):
        pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.tmp")
        siblings = list(path.parent.iterdir()) if path.parent.is_dir() else []
        for sibling in siblings:
            if pattern.fullmatch(sibling.name):
                sibling.unlink(missing_ok=True)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """The lock file's descriptor. Nothing is ever written into the file."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if file.is_symlink():
        raise OSError(errno.ELOOP, "must be a regular file, is a symbolic link", str(file))
    descriptor = os.open(file, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a FIFO, say
            raise OSError(errno.EINVAL, "must be a regular file", str(file))
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no flock, so two processes in one folder are not noticed there
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
