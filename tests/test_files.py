"""Only regular files are read; nothing else keeps its reader waiting."""

import os
import re
import socket
from pathlib import Path

import pytest

from sngd.files import NotRegular, open_file, read_file


def test_a_file_and_a_link_to_it_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content\r\n")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "file") == read_file(tmp_path / "link") == b"content\r\n"
    with open_file(tmp_path / "file") as file:
        assert file.read(3) == b"con"


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "is a pipe, must be a file"),
        (Path.mkdir, "is a folder, must be a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, must be a file"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "must be a file, is none"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_file_is_refused(make, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("odd")  # a socket's name must be short
    make(path)
    with pytest.raises(NotRegular, match=f"^odd: {re.escape(reason)}$"):
        read_file(path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "file"))):
        read_file(tmp_path / "file")
