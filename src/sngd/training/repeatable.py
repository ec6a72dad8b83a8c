"""Settings of torch, which are global, under which a run computes the same numbers each time."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Inside, torch uses this number of CPU threads and cuDNN's deterministic kernels, so that runs can be repeated."""
    cudnn = torch.backends.cudnn  # its own context manager, flags(), would reset other settings to defaults
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, float32 is float32 on a GPU: products are not rounded to TF32, which convolutions otherwise are."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with warnings.catch_warnings():
        # From torch 2.9 on there are other names too, and a warning of these. But who uses both gets errors, and
        # torch's compiler still asks for these.
        warnings.simplefilter("ignore")
        before = cudnn.allow_tf32, matmul.allow_tf32
        cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cudnn.allow_tf32, matmul.allow_tf32 = before
