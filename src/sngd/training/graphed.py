"""The loss of a training batch and its gradient as CUDA graphs, each of which the host starts by a single call.

A small network's step on a GPU is mostly the time that the host takes to start some hundred operations one by one. A
graph holds many: they are recorded once, with the memory that they read and write, and repeated for each batch.
"""

import pickle
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sngd.estimators.replay import Chance, buffers_kept
from sngd.problems.columns import materialized
from sngd.problems.problem import Samples
from sngd.training.compiled import first_line, tried
from sngd.training.ranks import Forward, Loss

Function = Callable[[], Any]
_WARM_UP = 3  # calls before a recording, in which libraries choose their kernels and take their memory


class Recorded(NamedTuple):
    """Work that can be repeated: ``repeat`` does it again with what its tensors hold, and refills ``results``."""

    repeat: Callable[[], None]
    results: Any


Recorder = Callable[[Sequence[Function]], list[Recorded]]


def record(functions: Sequence[Function]) -> list[Recorded]:
    """The work of each function on the present GPU as a CUDA graph; they are called, in this order, a few times.

    A function may use what an earlier one left in memory, if they are repeated in this order too. Of autograd's graphs
    none may be alive that has weights of theirs: its nodes would draw the work to the stream where they were made.

    Raises:
        RuntimeError: the host would have to wait for the GPU, or a kernel cannot be recorded.
    """
    before = torch.cuda.current_stream()
    try:
        return _recorded(functions, before)
    except BaseException:
        _undo_recording(before)
        raise


def _recorded(functions: Sequence[Function], before: torch.cuda.Stream) -> list[Recorded]:
    stream = torch.cuda.Stream()
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                for function in functions:
                    function()
    finally:
        before.wait_stream(stream)
    found, pool = [], torch.cuda.graph_pool_handle()
    for function in functions:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            results = function()
        found.append(Recorded(graph.replay, results))
    return found


def _undo_recording(before: torch.cuda.Stream) -> None:
    """torch leaves its stream and its random generator as in the middle of a recording if one fails."""
    torch.cuda.set_stream(before)
    generator = torch.cuda.default_generators[before.device_index]
    generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())


class GraphedLoss:
    """The mean loss over a batch, recorded for batches of the shapes that it was tried on, and as before for others.

    Its gradient is recorded too. So a value is to be differentiated before the next one is computed, and once. Weights
    and buffers must stay where they are in memory; their values may change.

    Args:
        loss: what is recorded, with the preparation of the inputs.
        model: the only one for which it is recorded.
        record: turns work into what can be repeated.
    """

    def __init__(self, loss: Loss, model: nn.Module, record: Recorder = record) -> None:
        self._loss, self._model, self._record = loss, model, record
        self._params = [param for param in model.parameters() if param.requires_grad]
        self._graphs: dict[tuple[torch.Size, torch.Size], _Graphs] = {}

    def __call__(self, model: Forward, batch: Samples) -> Tensor:
        inputs, targets = materialized(batch)
        graphs = self._graphs.get((inputs.shape, targets.shape))
        if graphs is None or model is not self._model:
            return self._loss(model, (inputs, targets))
        value: Tensor = _Repeated.apply(graphs, inputs, targets, *self._params)  # type: ignore[no-untyped-call]
        return value

    def try_on(self, batch: Samples) -> str | None:
        """Record for batches of this shape, if that gives the same numbers. Random generators change.

        Returns:
            None, or why it was not recorded, as the end of a sentence.
        """
        inputs, targets = materialized(batch)
        chance, host = Chance(inputs.device), host_chance(inputs.device)
        with buffers_kept(self._model):
            buffers = list(self._model.buffers())
            expected = tried(self._loss, self._model, batch)
            if not same_objects(buffers, self._model.buffers()):
                return "the model replaces its buffers, and does not change them in place"
        if host_chance(inputs.device) != host:
            return DRAWN_ON_HOST
        try:
            with buffers_kept(self._model):
                graphs = _Graphs(self._loss, self._model, self._params, batch, self._record)
            self._graphs[inputs.shape, targets.shape] = graphs
            with buffers_kept(self._model), chance.replayed():
                found = tried(self, self._model, batch)
            reason = expected.difference(found, "recorded")
        except Exception as error:  # the model's or CUDA's, of which there are many kinds
            reason = f"a CUDA graph cannot hold them ({first_line(error)})"
        if reason:
            self._graphs.clear()
        return reason


DRAWN_ON_HOST = "numbers are drawn at random on the host, for work on another device"


def host_chance(device: torch.device) -> object:
    """Equal after a while if neither torch nor Python or numpy drew on the host for work on this GPU, as far as known.

    Their global generators are; a generator that a model has of its own is not. On the CPU it is always equal, because
    there the host and the device are one.
    """
    if device.type != "cuda":
        return None
    numpy = sys.modules.get("numpy")
    return torch.get_rng_state().tolist(), random.getstate(), numpy and pickle.dumps(numpy.random.get_state())


def same_objects(some: Iterable[object], others: Iterable[object]) -> bool:
    """Whether these are the same objects in the same order."""
    return [*map(id, some)] == [*map(id, others)]


class _Graphs:
    """The evaluation of one batch and its gradient, with samples that are copied to where the graphs read them."""

    def __init__(
        self,
        loss: Loss,
        model: nn.Module,
        params: Sequence[Tensor],
        batch: Samples,
        record: Recorder,
    ) -> None:
        self._loss, self._model, self._params = loss, model, params
        self._inputs, self._targets = (part.clone() for part in materialized(batch))
        self._times = torch.ones_like(self._forward())
        del self._value  # with autograd's nodes of the weights, see `record`
        self._evaluated, self._differentiated = record([self._forward, self._backward])
        del self._value
        self.evaluated = 0

    def _forward(self) -> Tensor:
        with torch.enable_grad():
            self._value = self._loss(self._model, (self._inputs, self._targets))
        return self._value.detach()

    def _backward(self) -> Sequence[Tensor | None]:
        return torch.autograd.grad(self._value, self._params, self._times, allow_unused=True)

    def evaluate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        self._inputs.copy_(inputs)
        self._targets.copy_(targets)
        self._evaluated.repeat()
        self.evaluated += 1
        value: Tensor = self._evaluated.results
        return value.clone()

    def differentiate(self, times: Tensor) -> list[Tensor | None]:
        """The gradient of the latest loss, times a number; None for weights that it does not depend on."""
        self._times.copy_(times)
        self._differentiated.repeat()
        found = self._differentiated.results
        some = [gradient for gradient in found if gradient is not None]
        copies = iter(torch._foreach_mul(some, 1) if some else [])  # in few operations
        return [None if gradient is None else next(copies) for gradient in found]


class _Repeated(torch.autograd.Function):
    """The loss as a function of the parameters."""

    @staticmethod
    def forward(ctx: Any, graphs: _Graphs, inputs: Tensor, targets: Tensor, *_params: Tensor) -> Tensor:
        value = graphs.evaluate(inputs, targets)
        ctx.graphs, ctx.number = graphs, graphs.evaluated
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, times: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.graphs.evaluated != ctx.number:
            raise RuntimeError("the gradient of this loss is lost, because another one was computed before backward")
        return None, None, None, *ctx.graphs.differentiate(times)
