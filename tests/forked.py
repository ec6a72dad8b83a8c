"""Processes that tests start are forked from one server, which imports torch once; starting Python anew takes seconds.

Forking is safe, because the server computes nothing.
"""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "pytest",
        "sngd.studies.execution.parallel",
        "torch._dynamo",  # which every optimizer needs
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "torch.distributed.optim",
        "torch.distributed.pipelining",
        "torch.distributed.tensor.debug",
        "torch.distributed.tensor.parallel",
    ]
)
