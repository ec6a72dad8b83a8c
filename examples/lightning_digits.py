"""SNGD and a stage plan in Lightning, stopped and resumed halfway.

python examples/lightning_digits.py
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import sngd

pixels, labels = load_digits(return_X_y=True)
DIGITS = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
PLAN = sngd.stages.poly(lr=0.5, epochs=10, steps_per_epoch=math.ceil(len(DIGITS) / 64))  # optimizer steps


class Digits(lightning.LightningModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.model = nn.Sequential(nn.Linear(64, 100), nn.ELU(), nn.Linear(100, 10))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = sngd.SNGD(self.parameters())
        scheduler = sngd.StagewiseLR(optimizer, PLAN)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        order = torch.Generator().manual_seed(self.current_epoch)  # a resumed run sees the same batches
        return DataLoader(DIGITS, self.batch_size, sampler=RandomSampler(DIGITS, generator=order))


def train(folder: Path, epochs: int, resume: bool = False, batch_size: int = 32, **changes: Any) -> Digits:
    lightning.seed_everything(0, verbose=False)
    settings = {"accumulate_grad_batches": 2, "reload_dataloaders_every_n_epochs": 1, "enable_checkpointing": False}
    settings |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False} | changes
    model, trainer = Digits(batch_size), lightning.Trainer(max_epochs=epochs, **settings)
    trainer.fit(model, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), epochs=5)
        digits = train(Path(folder), epochs=10, resume=True)
    x, y = DIGITS.tensors
    accuracy = (digits.model(x).argmax(1) == y).float().mean()
    print(f"accuracy {100 * accuracy:.1f} % after {digits.global_step} steps")
