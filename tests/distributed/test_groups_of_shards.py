"""Param groups of a model under FSDP2: its parameters are DTensors, its modules have other classes."""

import pytest
import torch
from ranks import on_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard

import sngd

pytestmark = pytest.mark.slow


def model():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.Sequential(nn.Embedding(6, 4), encoder, nn.Linear(4, 6))


def the_same_groups():
    whole, sharded = model(), model()
    for layer in (*sharded, sharded):
        fully_shard(layer)
    assert str(sngd.groups(sharded)) == str(sngd.groups(whole))
    assert "parts=3" in str(sngd.groups(sharded))


def test_a_sharded_model_has_the_same_groups():
    on_ranks(2, the_same_groups)
