"""Run a function on several gloo processes at once; a failure anywhere ends all of them, and nothing hangs."""

import faulthandler
import multiprocessing.connection
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from forked import FORKED


def on_ranks(world_size: int, work: Callable[..., None], *args: object, timeout: float = 60) -> None:
    """Call ``work(*args)`` on every rank of a new process group.

    Args:
        work: a function at the top level of a module.
        timeout: seconds.

    Raises:
        AssertionError: a rank raised, died or was late; with the traceback of the first one that did.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [
            FORKED.Process(target=_rank, args=(rank, world_size, folder, timeout, work, args), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            _wait(ranks, time.monotonic() + timeout + 10)  # each ends itself; this is for one that cannot
        finally:
            for process in ranks:
                process.kill()
                process.join()
        reports = sorted(folder.glob("rank*"), key=lambda report: report.stat().st_mtime_ns)
        if told := [f"{report.name} of {world_size}:\n{text}" for report in reports if (text := report.read_text())]:
            raise AssertionError(told[0])
        if codes := [process.exitcode for process in ranks if process.exitcode]:
            raise AssertionError(f"ranks of {world_size} ended with exit codes {codes} and without a word")


def _wait(ranks: list, deadline: float) -> None:
    """Until all have ended well, or one has not, or it is late."""
    running = list(ranks)
    while running and time.monotonic() < deadline:
        multiprocessing.connection.wait([process.sentinel for process in running], timeout=1)
        if any(process.exitcode for process in running):
            return
        running = [process for process in running if process.exitcode is None]


def _rank(rank: int, world_size: int, folder: Path, timeout: float, work: Callable[..., None], args: tuple) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks up the host's name, which may have no address
    with (folder / f"rank {rank}").open("w") as report:
        faulthandler.dump_traceback_later(timeout, exit=True, file=report)
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout),
            )
            work(*args)
            dist.destroy_process_group()
        except BaseException:
            traceback.print_exc(file=report)
            report.flush()
            os._exit(1)  # not a word more: threads of other libraries may wait for the lost ranks
        faulthandler.cancel_dump_traceback_later()
