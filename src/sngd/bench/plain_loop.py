"""The training loop that a user writes without this package: a DataLoader, zero_grad, backward, step.

It imports torch alone, because it is also a program, the other side of a study in separate processes:

    python plain_loop.py DATA.pt SEED EPOCHS BATCH_SIZE

DATA.pt holds inputs and targets for training and for testing. The test accuracy is printed.
"""

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, Tensor]


def train_pass(
    batches: Iterable[Batch],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    varied: Callable[[Tensor, Tensor], Batch] = lambda x, y: (x, y),
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """One pass over the batches; ``varied`` augments a batch, ``prepare`` makes the model's inputs of it."""
    for inputs, targets in batches:
        x, y = varied(inputs, targets)
        optimizer.zero_grad()
        loss(model(prepare(x)), y).backward()
        optimizer.step()


@torch.no_grad()
def evaluated(
    samples: Batch,
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[float, float]:
    """Mean loss and accuracy over samples."""
    model.eval()
    total, correct, n = 0.0, 0, len(samples[0])
    for x, y in DataLoader(TensorDataset(*samples), batch_size=128):
        outputs = model(prepare(x))
        total += loss(outputs, y).item() * len(x) / n
        correct += int((outputs.argmax(-1) == y).sum())
    model.train()
    return total, correct / n


def main(path: str, seed: int, epochs: int, batch_size: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train, test = torch.load(path, weights_only=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(*train), batch_size=batch_size, shuffle=True)
    for _ in range(epochs):
        train_pass(loader, model, optimizer, nn.functional.cross_entropy)
        evaluated(train, model, nn.functional.cross_entropy)
        _, accuracy = evaluated(test, model, nn.functional.cross_entropy)
    print(accuracy)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
