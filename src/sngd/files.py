"""Files that are read: regular ones, and nothing that only bears a file's name."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


class NotRegular(ValueError):
    """A folder, a pipe, a device or a socket stands where a file must be."""


def open_file(path: Path) -> BufferedReader:
    """The regular file at ``path``, or the one that it is a link to, opened for reading bytes.

    A pipe would keep its reader waiting, and a device can go on for ever. Both are refused before a byte is read.

    Raises:
        NotRegular: (a ValueError) it is something else.
        OSError: it is not there, or cannot be opened; the error knows its name.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:  # not blocking: to open a pipe is to wait for its writer
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device without a driver
            raise NotRegular(f"{path}: must be a file, is none") from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegular(f"{path}: is a {_kind(mode)}, must be a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path) -> bytes:
    """All bytes of the file at ``path``; see ``open_file`` for what is refused."""
    with open_file(path) as file:
        return file.read()


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) else "device"
