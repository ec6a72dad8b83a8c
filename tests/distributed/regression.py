"""A small regression whose training in one process is what every distributed one is compared with."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import sngd

N = 24  # samples; as many ranks as divide it get equal shares
STEPS = 20
LR = 0.05

VARIANTS = {
    "plain": {},
    "decay, up": {"weight_decay": 0.01, "maximize": True},
    "capped": {"max_scale": 0.5},
    "sngm": {"momentum": 0.9},
    "nsgd-momentum, decay": {"momentum": 0.9, "normalize": "momentum", "weight_decay": 0.01},
    "loop, sngm": {"momentum": 0.9, "foreach": False},
    "foreach, sngm": {"momentum": 0.9, "foreach": True},
    "fused, nsgd-momentum": {"momentum": 0.9, "normalize": "momentum", "fused": True},
    "capturable, sngm": {"momentum": 0.9, "capturable": True},
}
FEW = ("plain", "nsgd-momentum, decay")  # where the step rule hardly matters


class Net(nn.Module):
    """Two layers; a hidden width of 5 is uneven, and of a weight of one number all ranks but one have nothing."""

    def __init__(self, hidden: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(3, hidden)
        self.second = nn.Linear(hidden, 2)
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))) * self.scale


def net(hidden: int = 5, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net(hidden).to(dtype)


def data(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.stack([x.sum(1).sin(), x.prod(1)], 1).to(dtype)


def share() -> slice:
    """This rank's samples."""
    return slice(dist.get_rank(), None, dist.get_world_size())


def train(model, optimizer, samples=slice(None), steps=STEPS):
    """Steps on the mean loss over the samples, all of one dtype; returns the norms of the steps."""
    x, y = (tensor[samples] for tensor in data(next(model.parameters()).dtype))
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        norms.append(float(optimizer.last_norm))
    return norms


def counted(optimizer) -> int:
    """All-reduces that a step issues, which are all that it may issue."""
    with CommDebugMode() as communication:
        optimizer.step()
    counts = {str(operation): count for operation, count in communication.get_comm_counts().items() if count}
    assert set(counts) <= {"c10d.allreduce_"}, counts
    return sum(counts.values())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_equal_weights(model, reference, rtol=1e-10, atol=1e-12):
    for (name, ours), (_, theirs) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(
            whole(ours), theirs.detach(), rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_trains_as_alone(distribute, options, hidden=5, samples=slice(None), all_reduces=None):
    """A distributed model takes the same steps as one process on all samples, with so many all-reduces each."""
    alone = net(hidden)
    expected = train(alone, sngd.SNGD(alone.parameters(), lr=LR, **options))
    model = distribute(net(hidden))
    optimizer = sngd.SNGD(model.parameters(), lr=LR, **options)
    torch.testing.assert_close(train(model, optimizer, samples), expected, rtol=1e-9, atol=0)
    assert_equal_weights(model, alone)
    if all_reduces is not None:
        assert counted(optimizer) == all_reduces
    return model, optimizer
