"""Several processes at one terminal: under torchrun rank 0 speaks for all."""

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
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if rank == 0 or size == 1:
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            yield
    except SystemExit as stop:
        if stop.code == 2:
            time.sleep(PATIENCE_SECONDS)
            sys.stderr.write("".join(f"rank {rank}: {line}\n" for line in said.getvalue().splitlines()))
        raise
