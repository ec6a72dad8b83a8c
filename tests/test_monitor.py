"""What is logged of an optimizer; tests/ecosystem has Lightning's and Hugging Face's own loops."""

import pytest
import torch
from torch import nn

from sngd import SNGD, Perturbed, groups
from sngd.monitor import scalars


class Wrapper:
    """As Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, Wrapper, lambda o: Perturbed(o, std=0.0)])
def test_the_norm_the_rate_and_the_skipped_steps_of_an_sngd(wrap):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = SNGD([weight], lr=0.25)
    for grad in ([3.0, 4.0], [0.0, 0.0]):
        weight.grad = torch.tensor(grad)
        optimizer.step()
    found = scalars(wrap(optimizer))
    assert found == {"optimizer/lr": 0.25, "optimizer/last_norm": 0.0, "optimizer/skipped_steps": 1.0}
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert scalars(wrap(optimizer))["optimizer/last_norm"] == 5.0


def test_other_optimizers_have_rates_alone_and_groups_each_their_own():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert scalars(torch.optim.AdamW(model.parameters(), lr=0.5)) == {"optimizer/lr": 0.5}
    kinds = groups(model, lr=0.03)
    found = scalars(SNGD(kinds, momentum=0.9, normalize="momentum"))
    rates = [found[f"optimizer/lr/{index}"] for index in range(len(kinds))]
    assert rates == [group["lr"] for group in kinds]
    assert len(kinds) > 1
