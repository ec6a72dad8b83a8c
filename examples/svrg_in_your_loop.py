"""SVRG in a loop of your own, stopped and resumed in the middle of a period.

python examples/svrg_in_your_loop.py
"""

import io

import torch
from torch import Tensor, nn

from sngd.estimators import SVRG

torch.manual_seed(0)
x = torch.randn(600, 8)
y = x @ torch.randn(8, 1) + 0.1 * torch.randn(600, 1)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
estimator = SVRG(model, n=len(x), batch_size=20, period=30)


def loss(batch: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x[batch]), y[batch])


def train(steps: int) -> None:
    for _ in range(steps):
        size = estimator.next_batch_size  # None: an anchor, which takes all samples
        batch = torch.arange(len(x)) if size is None else torch.randperm(len(x))[:size]
        estimator.estimate(loss, batch)
        optimizer.step()


train(steps=45)
checkpoint = io.BytesIO()
torch.save({"model": model.state_dict(), "estimator": estimator.state_dict()}, checkpoint)
checkpoint.seek(0)

saved = torch.load(checkpoint, weights_only=True)
model.load_state_dict(saved["model"])
estimator = SVRG(model, n=len(x), batch_size=20, period=30)
estimator.load_state_dict(saved["estimator"])
train(steps=45)
print(f"loss {loss(torch.arange(len(x))).item():.5f} after {estimator.oracle_calls} gradient evaluations")
