"""Gradient estimators by themselves: what they fill in, what they cost, and that nothing but the weights changes."""

import copy
import doctest
import io
import re

import pytest
import torch
from torch import nn

from sngd import SNGD
from sngd.estimators import SCSG, SVRG, Full, MiniBatch, Spider
from sngd.estimators import estimator as estimator_module
from sngd.estimators.replay import buffers_kept

GENERATOR_SEED = 11


def estimators(model, n=40):
    return {
        "minibatch": MiniBatch(model, 5),
        "full": Full(model, n, chunk_size=7),
        "spider": Spider(model, anchor_batch_size=20, batch_size=5, period=4),
        "svrg": SVRG(model, n=n, batch_size=5, period=4, chunk_size=7),
        "scsg": SCSG(
            model, anchor_batch_size=20, batch_size=5, generator=torch.Generator().manual_seed(GENERATOR_SEED)
        ),
    }


NAMES = list(estimators(nn.Linear(1, 1)))
DIFFERENCES = ["spider", "svrg", "scsg"]


def gradient(model, loss, batch):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(batch), list(model.parameters()))])


def filled(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


class Draw:
    """Batches as an estimator asks for them; ``cheap`` counts what it should have cost."""

    def __init__(self, n, seed=0):
        self.n, self.generator = n, torch.Generator().manual_seed(seed)

    def __call__(self, size):
        return torch.arange(self.n) if size is None else torch.randperm(self.n, generator=self.generator)[:size]


def test_minibatch_and_full_are_the_mean_gradient(finite_sum):
    model, loss, n = finite_sum
    for name in ("minibatch", "full"):
        estimator = estimators(model)[name]
        batch = Draw(n)(estimator.next_batch_size)
        value = estimator.estimate(loss, batch)
        torch.testing.assert_close(filled(model), gradient(model, loss, batch))
        torch.testing.assert_close(value, loss(batch).detach())
        assert estimator.oracle_calls == len(batch)


def test_batches_may_be_nested(finite_sum):
    model, _, _ = finite_sum
    x, y = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    estimator = Full(model, 40, chunk_size=7)
    value = estimator.estimate(
        lambda batch: nn.functional.mse_loss(model(batch["inputs"][0]), batch["targets"]),
        {"inputs": (x,), "targets": y},
    )
    torch.testing.assert_close(value, nn.functional.mse_loss(model(x), y).detach())
    assert estimator.oracle_calls == 40


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_announced_and_counted_exactly(finite_sum, name):
    model, loss, n = finite_sum
    evaluated = 0

    def counted(batch):
        nonlocal evaluated
        evaluated += len(batch)
        return loss(batch)

    estimator, draw = estimators(model)[name], Draw(n)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        announced = estimator.oracle_calls + estimator.next_cost
        estimator.estimate(counted, draw(estimator.next_batch_size))
        optimizer.step()
        assert estimator.oracle_calls == announced == evaluated


@pytest.mark.parametrize(("name", "cost"), [("spider", 20 + 2 * 5 * 3), ("svrg", 40 + 2 * 5 * 3)])
def test_the_cost_of_a_period(finite_sum, name, cost):
    """B + 2b(M − 1): the difference at the anchor is zero and not evaluated."""
    model, loss, n = finite_sum
    estimator, draw = estimators(model)[name], Draw(n)
    for period in range(1, 4):
        for _ in range(4):
            estimator.estimate(loss, draw(estimator.next_batch_size))
        assert estimator.oracle_calls == period * cost


@pytest.mark.slow
def test_the_cost_of_scsg_and_its_mean_period(finite_sum):
    model, loss, n = finite_sum
    estimator, draw = estimators(model)["scsg"], Draw(n)
    periods = []
    for _ in range(400):
        estimator.estimate(loss, draw(estimator.next_batch_size))
        periods.append(estimator.period)
        calls, steps = estimator.oracle_calls, estimator.period
        for _ in range(steps - 1):
            estimator.estimate(loss, draw(estimator.next_batch_size))
        assert estimator.oracle_calls == calls + 2 * 5 * (steps - 1)
        assert estimator.age == 0
    # geometric with mean 4 has deviation √12; five deviations of the mean of 400
    assert sum(periods) / 400 == pytest.approx(4, abs=5 * 12**0.5 / 20)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_unbiased_in_the_limit_of_full_batches(finite_sum, name):
    """With gradient noise switched off every estimate is the true gradient, along a whole run."""
    model, loss, n = finite_sum
    estimator = {
        "spider": Spider(model, anchor_batch_size=n, batch_size=n, period=6),
        "svrg": SVRG(model, n=n, batch_size=n, period=6),
        "scsg": SCSG(model, anchor_batch_size=n, batch_size=n),
    }[name]
    optimizer, everything = SNGD(model.parameters(), lr=0.03), torch.arange(n)
    for _ in range(30):
        estimator.estimate(loss, everything)
        torch.testing.assert_close(filled(model), gradient(model, loss, everything), rtol=1e-9, atol=1e-12)
        optimizer.step()


def test_svrg_is_unbiased_and_its_variance_vanishes_at_the_anchor(finite_sum):
    model, loss, n = finite_sum
    estimator = SVRG(model, n=n, batch_size=5, period=10_000)
    estimator.estimate(loss, torch.arange(n))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    estimates = []
    for batch in torch.arange(n).split(5):  # all batches of one partition: their mean is exact
        estimator.estimate(loss, batch)
        estimates.append(filled(model))
    torch.testing.assert_close(torch.stack(estimates).mean(0), gradient(model, loss, torch.arange(n)))


@pytest.mark.parametrize("name", ["spider", "svrg"])
def test_period_one_is_the_anchor_gradient(finite_sum, name):
    model, loss, n = finite_sum
    estimator = {
        "spider": Spider(model, anchor_batch_size=20, batch_size=5, period=1),
        "svrg": SVRG(model, n=n, batch_size=5, period=1),
    }[name]
    draw, optimizer = Draw(n), torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(5):
        batch = draw(estimator.next_batch_size)
        assert len(batch) == (20 if name == "spider" else n)
        true = gradient(model, loss, batch)
        estimator.estimate(loss, batch)
        torch.testing.assert_close(filled(model), true)
        optimizer.step()


def test_scsg_at_its_anchor_has_the_anchor_gradient(finite_sum):
    model, loss, n = finite_sum
    estimator, batch = estimators(model)["scsg"], Draw(n)(20)
    estimator.estimate(loss, batch)
    torch.testing.assert_close(filled(model), gradient(model, loss, batch))


# --- the same samples at two points


class Recording(nn.Module):
    """Dropout, BatchNorm, a buffer that is replaced, and augmentation; a diary of what each evaluation drew and saw."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 1)
        self.register_buffer("mean", torch.zeros(4))
        self.diary = []

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        noise = torch.rand_like(x)  # stands for any augmentation drawn from torch's generator
        mask = nn.functional.dropout(torch.ones(len(x), 6), 0.5, self.training)
        self.diary.append((x.clone(), noise, mask, self.linear.weight.detach().clone()))
        return self.out(self.norm(self.linear(x + 0.1 * noise)) * mask)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_both_evaluations_see_the_same_samples_noise_and_masks_and_batchnorm_is_kept(name):
    torch.manual_seed(0)
    model, x = Recording(), torch.randn(40, 4)
    estimator, draw = estimators(model)[name], Draw(40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(batch):
        return model(x[batch]).square().mean()

    while estimator.age == 0:
        estimator.estimate(loss, draw(estimator.next_batch_size))
        optimizer.step()
    single = copy.deepcopy(model)  # evaluates at the present weights only, with the same chance
    chance, batch = torch.get_rng_state(), draw(5)
    model.diary.clear()
    estimator.estimate(loss, batch)
    after = torch.get_rng_state()

    here, there = model.diary
    assert torch.equal(here[0], there[0])  # samples
    assert torch.equal(here[1], there[1])  # augmentation
    assert torch.equal(here[2], there[2])  # dropout mask
    assert not torch.equal(here[3], there[3])  # weights
    torch.set_rng_state(chance)
    single(x[batch])
    for ours, true in zip(model.buffers(), single.buffers(), strict=True):
        assert torch.equal(ours, true)  # running statistics
    assert torch.equal(after, torch.get_rng_state())  # and chance goes on as after one evaluation


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_models_and_buffers_that_come_up_late(name):
    class Late(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.register_buffer("mean", None)

        def forward(self, x):
            self.mean = x.mean(0) if self.mean is None else 0.9 * self.mean + 0.1 * x.mean(0)
            return super().forward(x)

    x = torch.randn(40, 4)
    for model in (torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))), Late()):
        estimator, draw = estimators(model)[name], Draw(40)
        for _ in range(5):
            batch = draw(estimator.next_batch_size)
            estimator.estimate(lambda batch, model=model: model(x[batch]).square().mean(), batch)
    with buffers_kept(fresh := Late()):
        fresh(x)
    assert fresh.mean is None


@pytest.mark.parametrize("name", DIFFERENCES)
def test_clipping_the_gradient_in_place_does_not_reach_the_next_estimate(finite_sum, name):
    model, _, n = finite_sum
    gradients = []
    for clip in (False, True):
        twin = copy.deepcopy(model)
        estimator, draw = estimators(twin)[name], Draw(n)
        for _ in range(3):  # without steps, so that weights stay the same
            batch = draw(estimator.next_batch_size)
            estimator.estimate(lambda batch, twin=twin: twin(torch.ones(len(batch), 4).double()).mean(), batch)
            gradients.append(filled(twin))
            if clip:
                nn.utils.clip_grad_norm_(twin.parameters(), 1e-9)
    assert all(torch.equal(a, b) for a, b in zip(gradients[:3], gradients[3:], strict=True))


# --- any optimizer, any moment


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.Adam, 0.02), (torch.optim.SGD, 0.2), (SNGD, 0.05)])
def test_works_with_any_optimizer_and_lowers_the_loss(finite_sum, name, optimizer, lr):
    model, loss, n = finite_sum
    estimator, draw = estimators(model)[name], Draw(n)
    stepper = optimizer(model.parameters(), lr=lr)
    before = loss(torch.arange(n)).item()
    for _ in range(100):
        estimator.estimate(loss, draw(estimator.next_batch_size))
        stepper.step()
    assert loss(torch.arange(n)).item() < 0.9 * before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [1, 2, 3, 7])
def test_resumes_bitwise_in_mid_period(finite_sum, name, stop):
    model, loss, n = finite_sum
    start, ends = copy.deepcopy(model.state_dict()), []
    for interrupted in (False, True):
        model.load_state_dict(start)
        estimator, draw = estimators(model)[name], Draw(n)
        optimizer = SNGD(model.parameters(), lr=0.05)
        for step in range(12):
            if interrupted and step == stop:
                file = io.BytesIO()
                torch.save(estimator.state_dict(), file)
                file.seek(0)
                estimator = estimators(model)[name]
                estimator.load_state_dict(torch.load(file, weights_only=True))
            estimator.estimate(loss, draw(estimator.next_batch_size))
            optimizer.step()
        ends.append((torch.cat([p.detach().flatten() for p in model.parameters()]), estimator.oracle_calls))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_unused_and_frozen_parameters(finite_sum):
    model, loss, n = finite_sum
    model.unused = nn.Parameter(torch.ones(3))
    model[0].bias.requires_grad_(False)
    estimator, draw = estimators(model)["spider"], Draw(n)
    for _ in range(3):
        estimator.estimate(loss, draw(estimator.next_batch_size))
    assert torch.equal(model.unused.grad, torch.zeros(3))
    assert model[0].bias.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_are_unfrozen_or_frozen_between_estimates(name):
    """Gradients do not add up in what is unfrozen, and no optimizer moves on what is frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    first = list(model[0].parameters())
    model[0].requires_grad_(False)
    samples = torch.randn(40, 3, dtype=torch.float64)

    def loss(indices):
        return model(samples[indices]).square().mean()

    estimator, draw = estimators(model)[name], Draw(40)
    for _ in range(3):
        estimator.estimate(loss, draw(estimator.next_batch_size))
    assert all(p.grad is None for p in first)

    model[0].requires_grad_(True)
    for _ in range(2 if name in ("minibatch", "full") else 1):  # an anchor comes first
        batch = draw(estimator.next_batch_size)
        cost, calls = estimator.next_cost, estimator.oracle_calls
        estimator.estimate(loss, batch)
        torch.testing.assert_close(filled(model), gradient(model, loss, batch))
        assert estimator.oracle_calls - calls == cost == len(batch)
    estimator.estimate(loss, draw(estimator.next_batch_size))
    assert all(p.grad is not None for p in first)
    estimators(model)[name].load_state_dict(estimator.state_dict())

    model[0].requires_grad_(False)
    estimator.estimate(loss, draw(estimator.next_batch_size))
    assert all(p.grad is None for p in first)
    assert all(p.grad is not None for p in model[2].parameters())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: MiniBatch(m, 0), "batch_size must be a whole number of at least 1, got 0"),
        (lambda m: Full(m, 0), "n must be a whole number of at least 1, got 0"),
        (lambda m: Full(m, 5, chunk_size=0), "chunk_size must be a whole number of at least 1, got 0"),
        (
            lambda m: Spider(m, anchor_batch_size=1.5, batch_size=1, period=1),
            "anchor_batch_size must be a whole number of at least 1, got 1.5",
        ),
        (lambda m: SVRG(m, n=5, batch_size=1, period=0), "period must be a whole number of at least 1, got 0"),
        (
            lambda m: SCSG(m, anchor_batch_size=4, batch_size=5),
            "anchor_batch_size must be at least batch_size = 5, got 4",
        ),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(nn.Linear(1, 1))


def test_the_example_with_a_data_loader_and_a_closure():
    result = doctest.testmod(estimator_module)
    assert result.attempted > 15
    assert result.failed == 0
