"""What CUDA graphs do, for tests on the CPU: the same work is repeated on the same memory. And a problem for them."""

import json
from contextlib import contextmanager

import torch
from outcomes import assert_bitwise_equal, outcome
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sngd.problems import Problem
from sngd.problems.augment import Variation
from sngd.training import engine, train
from sngd.training.graphed import Recorded


def repeating(functions, notes=None):
    """What CUDA graphs do: the results stay where they were first, and get the values of the same work."""
    for _ in range(3):
        for function in functions:
            function()
    return [_repeating(function, notes) for function in functions]


def _repeating(function, notes):
    results = function()

    def repeat():
        if notes is not None:
            notes.append(getattr(function, "__name__", "step"))
        for old, new in zip(flat(results), flat(function()), strict=True):
            old.copy_(new)

    return Recorded(repeat, results)


def flat(results):
    return [results] if isinstance(results, torch.Tensor) else [g for g in results if g is not None]


class Operations(TorchDispatchMode):
    """Notes torch's operations and what they are called with, numbers included."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result


def replaying(functions, notes):
    """As graphs do, repeat torch's operations on the same memory, with the numbers of the recording, and no Python.

    Not for work that decides on the host by what it computes, as SNGD does on the CPU.
    """
    for _ in range(3):
        for function in functions:
            function()
    return [_replaying(function, notes) for function in functions]


def _replaying(function, notes):
    with Operations() as operations:
        results = function()

    def repeat():
        notes.append("step")
        with torch.no_grad():
            for called, args, kwargs, result in operations.calls:
                for old, new in zip(tree_leaves(result), tree_leaves(called(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    return Recorded(repeat, results)


def images():
    """Images of bytes; convolution, BatchNorm and dropout, and a weight on which the loss does not depend."""
    x = torch.randint(0, 256, (60, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def model():
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3)
        found = nn.Sequential(*layers)
        found.register_parameter("unused", nn.Parameter(torch.ones(2)))
        return found

    def draw(shape, generator):
        return torch.randint(0, 2, shape, generator=generator, dtype=x.dtype)

    return Problem(
        model,
        nn.functional.cross_entropy,
        (x, x[:, 0, 0, 0].long() % 3),
        prepare=lambda images: images.float().div_(255),
        augment=Variation(draw, torch.add),
    )


def assert_graphs_change_nothing(config, folder, monkeypatch):
    """A run on a GPU with graphs and one without leave the same, bit for bit."""
    warned = []
    train(config, folder / "graphed", problem=images, on_warning=warned.append)
    assert not warned
    monkeypatch.setenv(engine.GRAPHS, "0")
    train(config, folder / "plain", problem=images)
    for run in ("graphed", "plain"):
        assert json.loads((folder / run / "config.json").read_text())["device"] == "cuda"
    assert_bitwise_equal(outcome(folder / "graphed"), outcome(folder / "plain"))


@contextmanager
def waiting_is_an_error():
    """Inside, what makes the host wait for the GPU raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
