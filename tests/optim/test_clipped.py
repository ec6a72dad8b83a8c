"""The warning for gradients that are clipped although the step does not depend on their length."""

import warnings

import pytest
import torch
from torch import nn

import sngd
from sngd.optim import clipped

MESSAGE = r"the gradients of 5 steps in a row had the norm {}, so they seem to be clipped .*: leave clip_grad_norm_ out"


@pytest.fixture(autouse=True)
def nothing_told_before(monkeypatch):
    monkeypatch.setattr(clipped, "_told", set())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def train(*, clip=None, steps=10, compiled=False, dtype=torch.float32, **options):
    model = nn.Sequential(nn.Linear(8, 16), nn.ELU(), nn.Linear(16, 1)).to(dtype)
    optimizer = sngd.SNGD(model.parameters(), lr=1e-3, **options)
    step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(32, 8, dtype=dtype)
        (100 * (model(x) - x.sum(1, keepdim=True)).square().mean()).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        step()
    return optimizer


def warned():
    return bool(clipped._told)


@pytest.mark.parametrize("norm", ["l2", "spectral", "sign"])
@pytest.mark.parametrize("limit", [1.0, 0.25])
def test_clipped_gradients_are_told_once(norm, limit):
    with pytest.warns(UserWarning, match=MESSAGE.format(f"{limit:g}")) as told:
        train(clip=limit, norm=norm)
    train(clip=limit, norm=norm)  # warnings are errors
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"maximize": True},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_whatever_the_options_that_do_not_feel_the_scale(options):
    with pytest.warns(UserWarning, match=MESSAGE.format(1)):
        train(clip=1.0, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},  # not clipped
        {"clip": 1.0, "max_scale": 0.01},
        {"clip": 1.0, "weight_decay": 0.1},
        {"clip": 1.0, "momentum": 0.9, "normalize": "momentum"},
        {"clip": 1.0, "steps": 4},
        {"clip": 1e9},
        {"clip": 1.2345},  # nobody's limit
    ],
    ids=str,
)
def test_no_word_where_nothing_is_wrong(options):
    train(**options)  # warnings are errors
    assert not warned()


def test_a_constant_gradient_is_not_clipped():
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    optimizer = sngd.SNGD([w], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        w.abs().sum().backward()  # its gradient is ±1 in each entry, and its norm 2
        optimizer.step()
    assert w.grad.norm() == 2
    assert not warned()


def test_only_the_first_steps_are_watched():
    model = nn.Linear(8, 1)
    optimizer = sngd.SNGD(model.parameters(), lr=1e-3)
    for step in range(40):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().mul(1000).backward()
        if step >= 18:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert not warned()


def test_an_unclipped_step_begins_the_count_anew():
    model = nn.Linear(8, 1)
    optimizer = sngd.SNGD(model.parameters(), lr=1e-3)
    for step in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().mul(1000).backward()
        if step % 5:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert not warned()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # dynamo's own
def test_a_compiled_step_says_nothing():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*clipped.*")
        train(clip=1.0, compiled=True)
    assert not warned()
