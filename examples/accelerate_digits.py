"""SNGD and a stage plan in Accelerate, on any number of processes, stopped and resumed halfway.

python examples/accelerate_digits.py
accelerate launch --cpu --num_processes 2 examples/accelerate_digits.py
"""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import broadcast_object_list, set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sngd

pixels, labels = load_digits(return_X_y=True)
DIGITS = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
PLAN = sngd.stages.poly(lr=0.5, epochs=10, steps_per_epoch=len(DIGITS) // 64)  # optimizer steps


def train(folder: Path, epochs: range, batch_size: int = 32, accumulate: int = 2) -> nn.Sequential:
    # With split_batches a batch is that of all processes together, and a step of the optimizer is one of the plan;
    # without, it is as many as there are processes.
    batches = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True)
    accelerator = Accelerator(gradient_accumulation_steps=accumulate, dataloader_config=batches)
    set_seed(0)
    plain = nn.Sequential(nn.Linear(64, 100), nn.ELU(), nn.Linear(100, 10))
    optimizer = sngd.SNGD(plain.parameters())
    scheduler = sngd.StagewiseLR(optimizer, PLAN)
    loader = DataLoader(DIGITS, batch_size, shuffle=True, drop_last=True)
    model, optimizer, loader, scheduler = accelerator.prepare(plain, optimizer, loader, scheduler)
    if epochs.start > 0:
        accelerator.load_state(folder)

    for epoch in epochs:
        loader.set_epoch(epoch)  # shuffles by seed and epoch, so that a resumed run sees the same batches
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    accelerator.save_state(folder)
    accelerator.wait_for_everyone()
    return plain.cpu()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as own:
        accelerator = Accelerator()
        [folder] = broadcast_object_list([own])  # the main process's
        train(Path(folder), epochs=range(5))
        model = train(Path(folder), epochs=range(5, 10))
    x, y = DIGITS.tensors
    accelerator.print(f"accuracy {100 * (model(x).argmax(1) == y).float().mean():.1f} %")
