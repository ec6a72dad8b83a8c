"""Processes that tests start are forked from the server of a study's workers, with what tests need beside."""

import multiprocessing

from sngd.studies.execution import server

PRELOADED = [
    *server.PRELOADED,
    "pytest",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.pipelining",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.parallel",
]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(PRELOADED)
