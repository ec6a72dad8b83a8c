"""Open files for reading, and refuse folders, pipes, devices and sockets in their place."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


class NotRegular(ValueError):
    """The path of a file leads to a folder, a pipe, a device or a socket."""


def open_file(path: Path) -> BufferedReader:
    """The regular file at ``path``, or the one that it is a link to, opened for reading bytes.

    Reading a pipe could wait for ever, and reading a device may never end. Both are refused before a byte is read.

    Raises:
        NotRegular: (a ValueError) it is something else.
        OSError: it does not exist, or cannot be opened; the error has its name.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:  # non-blocking, because opening a pipe otherwise waits for its writer
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
