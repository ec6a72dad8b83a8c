"""The folder of data files: one that the user names, else a cache that downloads fill."""

import os
import tempfile
from pathlib import Path

from torch import Tensor

from sngd.problems.problem import DataError

WITHOUT_FILES = "run the embedded digits, which need none: sngd train digits-mlp --method sngd"


def data_folder(data: str | os.PathLike[str] | None) -> tuple[Path, str | None]:
    """The folder of data sets, and what names it: `--data` or `SNGD_DATA`, or None if it is the cache."""
    given, by = (data, "--data") if data is not None else (os.environ.get("SNGD_DATA"), "SNGD_DATA")
    if given:
        return Path(given).expanduser(), by

    import pooch

    return Path(pooch.os_cache("sngd")), None


def download(url: str, checksum: str, target: Path, otherwise: str) -> None:
    """Downloads one file into the cache, unless it is there with the right checksum.

    pooch writes to a temporary file beside the target, compares the checksum and only then renames: another
    process finds a file whole or not at all.

    Args:
        url: what to download.
        checksum: `algorithm:hexdigest`.
        target: the file to be; its folder is made if need be.
        otherwise: what the user can do if this fails.

    Raises:
        DataError: the cache cannot be written to, the server not be reached, or the checksum is wrong.
    """
    import pooch

    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"{folder}: cannot write to the cache ({error.strerror}); {otherwise}") from error
    try:
        pooch.retrieve(url, checksum, fname=target.name, path=folder, progressbar=True)
    except OSError as error:  # requests' errors are OSErrors
        raise DataError(f"{folder}: cannot download {url} ({type(error).__name__}); {otherwise}") from error
    except ValueError as error:  # pooch's word for a wrong checksum
        raise DataError(f"{folder}: {url} has the wrong checksum; {otherwise}") from error


def check_labels(labels: Tensor, path: Path) -> None:
    """Raises DataError for the first of the uint8 labels that is none of the ten classes 0 … 9."""
    wrong = (labels > 9).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise DataError(f"{path}: label {int(labels[index])} at index {index}, must be 0 to 9")
