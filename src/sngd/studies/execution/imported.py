"""Imports all that a worker needs, in the server from which workers are forked."""

import gc
from importlib import import_module

gc.disable()  # nothing that is imported is garbage, and to look for it takes a quarter of the time
import_module("torch._dynamo")  # which torch.optim imports when the first optimizer is made
import_module("sngd.studies.execution.parallel")
gc.freeze()  # workers' garbage collectors do not look at these objects, whose memory stays shared
gc.enable()
