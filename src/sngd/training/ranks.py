"""The processes of one run, as ``torchrun`` starts them: each evaluates its share of every batch, and all step alike.

Every rank draws the same batch and evaluates a contiguous share of it. ``mean_loss`` weights losses and gradients by
the shares' sizes and sums them over the ranks, so every rank gets those of the whole batch. Methods, estimators and
step rules therefore need not know the number of processes: they count and draw what one process would.

Two things differ from one process. BatchNorm in training mode normalizes each share by itself and keeps rank 0's
running statistics. Each rank draws its own dropout masks.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sngd.problems.problem import Samples

TIMEOUT = timedelta(minutes=30)  # for a rank that hangs or downloads; one that dies is noticed at once
_MESSAGE_BYTES = 1024

E = TypeVar("E", bound=Exception)
T = TypeVar("T")
Forward = Callable[[Tensor], Tensor]  # inputs to outputs: a model, or one whose gradients are summed
Loss = Callable[[Forward, Samples], Tensor]  # the mean loss over samples


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. By default it is the only one, and nothing is ever sent.

    All ranks must call the methods that communicate in the same order.

    Raises:
        ConnectionError: from all that communicate: another rank has ended.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """This rank's device; for "cuda" each rank has its own.

        Raises:
            ValueError: it is not there, there are fewer devices than ranks on this machine, or ``name`` gives all the
                same one.
        """
        device, count = torch.device(name), torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= count:
            raise ValueError(f"device {name!r} is not there: torch sees {count} CUDA devices")
        if self.size == 1 or device.type != "cuda":
            return device
        if name != "cuda":
            raise ValueError(f"device must be 'cuda' or 'cpu' for several processes, which share none, got {name!r}")
        if self.local_size > count:
            raise ValueError(
                f"device 'cuda' must be there for each process: torch sees {count} for {self.local_size} of them"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def threads(self, total: int) -> int:
        """CPU threads of this rank, if those on this machine have ``total`` together."""
        return max(1, total // self.local_size)

    def share(self, n: int) -> slice:
        """This rank's part of ``n`` samples: contiguous, sizes differ by one at most, rank 0 has some if n > 0."""
        start, stop = (-(-rank * n // self.size) for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def mean_loss(self, loss: Loss, model: nn.Module, batch: Samples) -> Tensor:
        """Mean loss over ``batch``, of which each rank evaluates its share; it and its gradient are equal on all ranks.

        Communicates: here one number, and in each backward pass the gradient, in one message. It can be differentiated
        twice. A rank whose share is empty evaluates one sample and gives it no weight, so that all ranks have the
        same graph.

        Args:
            loss: mean loss over samples, with a model to be called; see ``forward`` below.
            model: its trainable parameters get the gradient; it must use them as its modules' attributes, as
                ``torch.func.functional_call`` demands.
            batch: the same on all ranks.
        """
        if self.size == 1:
            return loss(model, batch)
        inputs, targets = batch
        part = self.share(len(inputs))
        weight = (part.stop - part.start) / len(inputs)
        if weight == 0:
            part = slice(0, 1)
        names, params = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
        summed = dict(zip(names, _GradientsSummed.apply(self, *params), strict=True))  # type: ignore[no-untyped-call]

        def forward(inputs: Tensor) -> Tensor:
            return functional_call(model, summed, (inputs,))  # type: ignore[no-any-return]

        return self.sum([weight * loss(forward, (inputs[part], targets[part]))])[0]

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the ranks, in one message, of the widest type; the gradient passes back as it is."""
        if self.size == 1:
            return list(tensors)
        total = _Sum.apply(torch.cat([tensor.reshape(-1) for tensor in tensors]))  # type: ignore[no-untyped-call]
        pieces = total.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor).to(tensor.dtype) for piece, tensor in zip(pieces, tensors, strict=True)]

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Make ``tensors`` on all ranks what they are on rank 0, in one message."""
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        message = torch.cat([_bytes(tensor) for tensor in tensors])
        _broadcast(message)
        if not self.first:
            for tensor, piece in zip(tensors, message.split([t.nbytes for t in tensors]), strict=True):
                tensor.copy_(piece.clone().view(tensor.dtype).view_as(tensor))  # a clone is aligned

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, made of tensors, numbers, strings, lists and dicts; communicates, by way of the CPU."""
        if self.size == 1:
            return value
        buffer = io.BytesIO()
        torch.save(value if self.first else None, buffer)
        size = torch.tensor(buffer.tell())
        self.copy_first([size])
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.first:
            content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        _broadcast(content)
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)

    def one_a_machine_first(self, make: Callable[[], T]) -> T:
        """What ``make`` makes, on the first rank of each machine and then on its others; communicates.

        So a first rank can download what the others find then. Errors are shared as by ``agreed``.
        """
        for my_turn in (self.local_rank == 0, self.local_rank != 0):
            with self.agreed():
                if my_turn:
                    made = make()
        return made

    def any(self, condition: bool) -> bool:
        """Whether it holds on some rank; communicates, and no rank returns before all have asked."""
        if self.size == 1:
            return condition
        count = torch.tensor(int(condition))
        _all_reduce(count)
        return bool(count)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A ValueError or OSError inside becomes one of every rank; communicates at the end.

        Raises:
            ValueError: another rank's message, and which one.
        """
        if self.size == 1:
            yield
            return
        error: ValueError | OSError | None = None
        try:
            yield
        except (ValueError, OSError) as raised:
            error = raised
        told = str(error).encode()[:_MESSAGE_BYTES] if error else b""
        messages = torch.zeros(self.size, _MESSAGE_BYTES, dtype=torch.uint8)
        messages[self.rank, : len(told)] = torch.tensor(list(told), dtype=torch.uint8)
        _all_reduce(messages)
        if error:
            raise on_all_ranks(error)
        for rank, message in enumerate(messages):
            if text := bytes(message.tolist()).rstrip(b"\0").decode(errors="ignore"):
                raise on_all_ranks(ValueError(f"rank {rank}: {text}"))


_MARK = "raised_on_all_ranks"


def on_all_ranks(error: E) -> E:
    """The error, marked as one that every rank raises here, so that ``joined`` can shut down in order."""
    setattr(error, _MARK, True)
    return error


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, of which this is one; alone if it did not.

    It reads the environment variables that torchrun sets. Messages between CPUs go over gloo, between GPUs over NCCL.
    """
    number = {name: int(os.environ.get(name, default)) for name, default in _ENVIRONMENT.items()}
    if number["WORLD_SIZE"] == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(number["RANK"], number["WORLD_SIZE"], number["LOCAL_RANK"], number["LOCAL_WORLD_SIZE"])
    except Exception as error:
        if getattr(error, _MARK, False):  # else the other ranks may not answer
            dist.destroy_process_group()  # without it a process may abort as it exits
        raise
    dist.destroy_process_group()


ALONE = Ranks()
_ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


class _GradientsSummed(torch.autograd.Function):
    """Parameters as they are; backward, their gradients are summed over the ranks.

    All at once, because the order in which single gradients come up may differ between ranks.
    """

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *params: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.params = ranks, [p.detach() for p in params]
        ctx.set_materialize_grads(False)
        return tuple(p.view_as(p) for p in params)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(ctx.params, grads, strict=True)]
        used = found[0].new_ones(len(found))
        for index, grad in enumerate(grads):
            if grad is None:
                used[index] = 0
        *sums, used = ctx.ranks.sum([*found, used])
        if any(grad is None for grad in grads):  # one that no rank used has no gradient, as in one process
            sums = [total if count else None for total, count in zip(sums, used.tolist(), strict=True)]
        return None, *sums


class _Sum(torch.autograd.Function):
    """The sum over the ranks, in place. All ranks compute the same from it, so its gradient passes back unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        _all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _all_reduce(tensor: Tensor) -> None:
    import torch.distributed as dist

    with _missed():
        dist.all_reduce(tensor)


def _broadcast(tensor: Tensor) -> None:
    import torch.distributed as dist

    with _missed():
        dist.broadcast(tensor, src=0)


@contextmanager
def _missed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the type of all errors of all backends
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"lost the other processes of this run ({reason}); --resume goes on") from error
