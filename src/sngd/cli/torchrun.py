"""Several processes at one terminal: under torchrun rank 0 speaks for all, and only ``train`` is for several."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

PATIENCE_SECONDS = 5.0  # between a rank's mistake and the end of all, if they made it too


@contextmanager
def first_rank_speaks() -> Iterator[None]:
    """Standard output and error of all ranks but the first are silent inside; an exception's traceback is not.

    What is wrong with a command is wrong on all ranks, and the first one says it. torchrun ends all when one fails, so
    the others wait for that; whoever is left then is alone with its mistake, and says it after all.
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
        if stop.code in (2, 3):  # a mistake, a run that diverged
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
