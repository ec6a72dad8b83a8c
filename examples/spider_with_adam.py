"""SPIDER's gradient estimator with Adam: any estimator works with any optimizer.

python examples/spider_with_adam.py
"""

import torch
from torch import Tensor, nn

from sngd.estimators import Spider

torch.manual_seed(0)
x = torch.randn(2000, 10)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))

estimator = Spider(model, anchor_batch_size=512, batch_size=32, period=8)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)


def loss(batch: Tensor) -> Tensor:
    """Mean loss over a batch of sample indices; SPIDER calls it at two points, with the same dropout mask."""
    return nn.functional.cross_entropy(model(x[batch]), y[batch])


while estimator.oracle_calls + estimator.next_cost <= 20 * len(x):  # 20 passes, counted in gradient evaluations
    batch = torch.randint(len(x), (estimator.next_batch_size or len(x),))
    estimator.estimate(loss, batch)  # fills p.grad
    optimizer.step()

with torch.no_grad():
    accuracy = (model.eval()(x).argmax(1) == y).float().mean()
print(f"accuracy {100 * accuracy:.1f} % after {estimator.oracle_calls} gradient evaluations")
