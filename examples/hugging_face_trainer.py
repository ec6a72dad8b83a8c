"""SNGD and a stage plan in Hugging Face's Trainer, by both of its ways, stopped and resumed in mid-epoch.

python examples/hugging_face_trainer.py
"""

import math
import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.optim import Optimizer
from transformers import PoolFormerConfig, PoolFormerForImageClassification, Trainer, TrainingArguments, set_seed

import sngd

pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
DIGITS = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
PLAN = sngd.stages.poly(lr=0.5, epochs=5, steps_per_epoch=math.ceil(len(DIGITS) / 64))  # optimizer steps
SMALL = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "drop_path_rate": 0.0}
WINDOWS = {"patch_sizes": [3, 3], "strides": [2, 2], "padding": [1, 1], "num_channels": 1}


class StagewiseTrainer(Trainer):
    """For `optimizer_cls_and_kwargs` only, beside which there is no place for a scheduler."""

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:  # noqa: ARG002
        self.lr_scheduler = sngd.StagewiseLR(optimizer or self.optimizer, PLAN)
        return self.lr_scheduler


def train(folder: str, way: str, resume: bool = False, **changes: Any) -> Trainer:
    set_seed(0)
    model = PoolFormerForImageClassification(PoolFormerConfig(num_labels=10, **SMALL, **WINDOWS))
    settings: dict[str, Any] = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 2, "save_steps": 50}
    settings |= {"num_train_epochs": 5, "max_grad_norm": 0, "report_to": "none", "disable_tqdm": True} | changes
    args = TrainingArguments(folder, **settings)
    if way == "optimizers":
        optimizer = sngd.SNGD(model.parameters())
        both = (optimizer, sngd.StagewiseLR(optimizer, PLAN))
        trainer = Trainer(model, args, train_dataset=DIGITS, optimizers=both)
    else:
        choice = (sngd.SNGD, {"lr": 0.5})
        trainer = StagewiseTrainer(model, args, train_dataset=DIGITS, optimizer_cls_and_kwargs=choice)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


if __name__ == "__main__":
    for way in ("optimizers", "optimizer_cls_and_kwargs"):
        with tempfile.TemporaryDirectory() as folder:
            train(folder, way, max_steps=50)  # as if it had been killed there
            trainer = train(folder, way, resume=True)
            correct = trainer.predict(DIGITS).predictions.argmax(1) == labels
        print(f"{way}: accuracy {100 * correct.mean():.1f} % after {trainer.state.global_step} steps")
