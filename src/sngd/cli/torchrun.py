"""Several processes at one terminal: under torchrun only rank 0 prints, and only ``train`` takes several processes."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

PATIENCE_SECONDS = 5.0  # how long another rank waits for rank 0 to report the same error and end all ranks


@contextmanager
def first_rank_speaks() -> Iterator[None]:
    """Standard output and error of all ranks but the first are silent inside; an exception's traceback is not.

    An error in a command usually occurs on all ranks, and rank 0 prints it. torchrun ends all ranks when one fails, so
    the others wait to be ended. If a rank is still there after ``PATIENCE_SECONDS``, only it had the error; then it
    prints the error.
    """
    rank, size = _rank_and_size()
    if rank == 0 or size == 1:
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            yield
    except SystemExit as stop:
        if stop.code in (2, 3):  # 2: a user's mistake, 3: a run that diverged
            time.sleep(PATIENCE_SECONDS)
            sys.stderr.write("".join(f"rank {rank}: {line}\n" for line in said.getvalue().splitlines()))
        raise


def refuse_several_processes(command: str) -> None:
    """Raise ValueError under torchrun: each of its processes would do the whole of ``command``, in the same folder."""
    _, size = _rank_and_size()
    if size > 1:
        raise ValueError(
            f"{command} cannot share its work among torchrun's {size} processes: start it without torchrun"
        )


def _rank_and_size() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
