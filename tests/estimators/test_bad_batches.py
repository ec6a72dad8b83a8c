"""A batch whose gradient is not finite: what it costs, and that nothing is built on it."""

import io

import pytest
import torch
from torch import nn

from sngd import SNGD
from sngd.estimators import SCSG, SVRG, Spider

N, B_LARGE, B, M = 40, 20, 5, 6


class Training:
    """Steps of SNGD along an estimator; ``bad`` names the estimates whose batch is poisoned."""

    def __init__(self, build, bad=(), poison=float("nan")):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.estimator = build(self.model)
        self.optimizer = SNGD(self.model.parameters(), lr=0.05)
        self.bad, self.poison, self.done = bad, poison, 0
        self.generator = torch.Generator().manual_seed(3)
        self.costs = []

    def step(self):
        size = self.estimator.next_batch_size or N
        x = torch.randn(size, 4, generator=self.generator, dtype=torch.float64)
        if self.done in self.bad:
            x[0, 0] = self.poison
        before, announced = self.estimator.oracle_calls, self.estimator.next_cost
        self.estimator.estimate(lambda x: (self.model(x) - x.sum(1, keepdim=True)).square().mean(), x)
        self.costs.append(self.estimator.oracle_calls - before)
        assert self.costs[-1] == announced
        self.optimizer.step()
        self.done += 1

    def run(self, steps):
        for _ in range(steps):
            self.step()
        return self

    @property
    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def spider(model):
    return Spider(model, anchor_batch_size=B_LARGE, batch_size=B, period=M)


def svrg(model):
    return SVRG(model, n=N, batch_size=B, period=M)


def scsg(model):
    return SCSG(model, anchor_batch_size=B_LARGE, batch_size=B, generator=torch.Generator().manual_seed(5))


def assert_finite(training):
    assert training.weights.isfinite().all()
    assert all(p.grad.isfinite().all() for p in training.model.parameters())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_spider_takes_an_anchor_after_a_bad_difference(poison):
    training = Training(spider, bad={3}, poison=poison).run(11)
    assert training.costs == [20, 10, 10, 10, 20, 10, 10, 10, 10, 10, 20]  # and a whole period follows it
    assert training.estimator.oracle_calls == 140
    assert training.optimizer.skipped_steps == 1
    assert_finite(training)


def test_spider_goes_on_as_one_begun_anew():
    """After the bad batch it is a new Spider at the present weights."""
    training = Training(spider, bad={3}).run(4)
    assert training.estimator.age == 0
    fresh = Training(spider)
    fresh.model.load_state_dict(training.model.state_dict())
    fresh.generator.set_state(training.generator.get_state())
    assert torch.equal(fresh.run(6).weights, training.run(6).weights)


@pytest.mark.parametrize(("build", "anchor"), [(spider, B_LARGE), (svrg, N), (scsg, B_LARGE)])
def test_a_bad_anchor_is_taken_again(build, anchor):
    training = Training(build, bad={0, 1}).run(3)
    assert training.costs == [anchor] * 3
    assert training.optimizer.skipped_steps == 2
    training.run(20)
    assert training.optimizer.skipped_steps == 2
    assert_finite(training)


def test_a_whole_period_follows_the_anchor_that_is_good():
    training = Training(svrg, bad={0}).run(1 + M + 1)
    assert training.costs == [N, N, *[2 * B] * (M - 1), N]


@pytest.mark.parametrize("build", [svrg, scsg])
def test_a_bad_mini_batch_spoils_one_step_of_svrg_and_its_anchor_stays(build):
    good = Training(build)
    while good.costs[-2:] != [2 * B] * 2:
        good.step()
    training = Training(build, bad={good.done - 2}).run(good.done + 8)
    assert training.costs == good.run(8).costs
    assert training.optimizer.skipped_steps == 1
    assert_finite(training)


@pytest.mark.parametrize("build", [spider, svrg, scsg])
def test_p_grad_of_the_bad_step_is_what_came_out(build):
    training = Training(build, bad={0}).run(1)
    assert not all(p.grad.isfinite().all() for p in training.model.parameters())
    assert not training.optimizer.last_norm.isfinite()


@pytest.mark.parametrize("build", [spider, svrg, scsg])
@pytest.mark.parametrize("stop", range(1, 9))
def test_resumes_bitwise_around_a_bad_batch(build, stop):
    bad = {0, 4}
    whole = Training(build, bad).run(12)
    first = Training(build, bad).run(stop)
    file = io.BytesIO()
    torch.save((first.model.state_dict(), first.estimator.state_dict(), first.generator.get_state()), file)
    file.seek(0)
    weights, state, generator = torch.load(file, weights_only=True)
    resumed = Training(build, bad)
    resumed.model.load_state_dict(weights)
    resumed.estimator.load_state_dict(state)
    resumed.generator.set_state(generator)
    resumed.done = stop
    assert torch.equal(resumed.run(12 - stop).weights, whole.weights)
    assert resumed.estimator.oracle_calls == whole.estimator.oracle_calls


def test_the_mean_cost_stays_that_of_a_run_without_bad_batches():
    training = Training(spider, bad={3})
    before = training.estimator.mean_cost
    assert training.run(5).estimator.mean_cost == before == (B_LARGE + 2 * B * (M - 1)) / M


class Tattling(torch.Tensor):
    """Tells when its value is read on the host."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.item, torch.Tensor.__bool__):
            raise AssertionError("the host waits")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_an_estimate_leaves_the_question_open_until_the_next_one_is_asked_for(monkeypatch):
    training = Training(spider)
    training.run(1)
    note = Spider._note_failure

    def noted(self):
        note(self)
        self._failed = self._failed.as_subclass(Tattling)

    monkeypatch.setattr(Spider, "_note_failure", noted)
    training.step()  # does not read it
    with pytest.raises(AssertionError, match="the host waits"):
        _ = training.estimator.next_batch_size
    svrg_training = Training(svrg).run(2)
    svrg_training.run(3)  # which reads it after anchors alone
    assert svrg_training.estimator._failed is None


def test_a_gradient_that_is_complex_counts_too():
    model = nn.Linear(2, 1, dtype=torch.complex64)
    estimator = Spider(model, anchor_batch_size=4, batch_size=2, period=5)
    x = torch.ones(4, 2, dtype=torch.complex64)

    def loss(x):
        return model(x).abs().square().mean()

    estimator.estimate(loss, x)
    assert estimator.next_batch_size == 2
    estimator.estimate(loss, x[:2] * float("nan"))
    assert estimator.next_batch_size == 4
