"""What estimators keep must fit the model: a state of another shape is refused, and a failed load changes nothing."""

import copy
import re

import pytest
import torch
from torch import nn

from sngd.estimators import SCSG, SVRG, Full, MiniBatch, Spider

N = 12


def model_of(out=3, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, out), nn.Tanh(), nn.Linear(out, 1)).to(dtype)


def built(name, model):
    sizes = {"anchor_batch_size": 8, "batch_size": 2}
    return {
        "minibatch": lambda: MiniBatch(model, 2),
        "full": lambda: Full(model, N),
        "spider": lambda: Spider(model, **sizes, period=4),
        "svrg": lambda: SVRG(model, n=N, batch_size=2, period=4),
        "scsg": lambda: SCSG(model, **sizes, generator=torch.Generator().manual_seed(1)),
    }[name]()


NAMES = ["minibatch", "full", "spider", "svrg", "scsg"]
DIFFERENCES = ["spider", "svrg", "scsg"]


def samples(size, dtype=torch.float64):
    return torch.linspace(-1, 1, 3 * (size or N), dtype=dtype).view(-1, 3)


def estimate(estimator, model):
    dtype = next(model.parameters()).dtype
    return estimator.estimate(lambda x: model(x).square().mean(), samples(estimator.next_batch_size, dtype))


def in_mid_period(name, model):
    estimator = built(name, model)
    estimate(estimator, model)
    while name in DIFFERENCES and estimator.age == 0:
        estimate(estimator, model)
    return estimator


def assert_same(a, b):
    assert repr(a) == repr(b)


def refused(estimator, state, message):
    before = copy.deepcopy(estimator.state_dict())
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        estimator.load_state_dict(state)
    assert_same(estimator.state_dict(), before)


@pytest.mark.parametrize("entry", ["reference", "gradient"])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_state_of_another_model_is_refused(name, entry):
    estimator = in_mid_period(name, model_of())
    state = copy.deepcopy(estimator.state_dict())

    def refuse(tensors, message):
        refused(estimator, {**state, entry: tensors}, f"state_dict's {entry} must {message}")

    weight, *others = state[entry]
    refuse([weight[:1], *others], "have shape (3, 3) for parameter '0.weight', got (1, 3)")  # would broadcast
    refuse([weight, others[0][:2], *others[1:]], "have shape (3,) for parameter '0.bias', got (2,)")
    refuse(others, "hold 4 tensors, got 3")
    refuse([weight.long(), *others], "be floating-point (torch.float64) for parameter '0.weight', got torch.int64")
    refuse([weight > 0, *others], "be floating-point (torch.float64) for parameter '0.weight', got torch.bool")
    refuse(
        [weight.cfloat(), *others], "be floating-point (torch.float64) for parameter '0.weight', got torch.complex64"
    )
    refuse([weight.tolist(), *others], "be a tensor for parameter '0.weight', got [[")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_entry_is_named(name):
    estimator = in_mid_period(name, model_of())
    for key in estimator.state_dict():
        state = copy.deepcopy(estimator.state_dict())
        del state[key]
        refused(estimator, state, f"state_dict lacks '{key}'")
    refused(estimator, None, "state_dict must be a dict, got NoneType")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1, 2.5, True, None, "7", float("nan")])
def test_a_count_that_is_none_is_refused(name, value):
    estimator = in_mid_period(name, model_of())
    state = copy.deepcopy(estimator.state_dict())
    for key in state.keys() & {"oracle_calls", "age", "period"}:
        refused(estimator, {**state, key: value}, f"state_dict's {key} must be a whole number ")


def test_an_age_past_the_period_is_refused():
    for name in ("spider", "svrg"):
        estimator = in_mid_period(name, model_of())
        message = "state_dict's age must be a whole number from 0 to 3, got 4"
        refused(estimator, {**estimator.state_dict(), "age": 4}, message)
    estimator = in_mid_period("scsg", model_of())
    message = "state_dict's age must be a whole number from 0 to 6, got 7"
    refused(estimator, {**estimator.state_dict(), "age": 7, "period": 7}, message)  # of the period that it comes with


@pytest.mark.parametrize(
    "generator",
    [torch.zeros(5, dtype=torch.uint8), torch.Generator().get_state().float(), [1, 2], torch.full((5056,), 255).byte()],
    ids=["short", "float", "list", "no state"],
)
def test_a_broken_generator_is_refused(generator):
    estimator = in_mid_period("scsg", model_of())
    refused(estimator, {**estimator.state_dict(), "generator": generator}, "state_dict's generator must be a ")


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_state_of_another_dtype_is_converted(name):
    saved = in_mid_period(name, model_of()).state_dict()
    model = model_of(dtype=torch.float32)
    estimator = built(name, model)
    estimator.load_state_dict(saved)
    assert {t.dtype for t in estimator.state_dict()["reference"]} == {torch.float32}
    estimate(estimator, model)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_loading_copies(name):
    saved = copy.deepcopy(in_mid_period(name, model_of()).state_dict())
    before = copy.deepcopy(saved)
    model = model_of()
    estimator = built(name, model)
    estimator.load_state_dict(saved)
    for _ in range(5):
        estimate(estimator, model)
    assert_same(saved, before)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_parameter_that_has_grown_is_an_error_and_not_a_broadcast(name):
    model = model_of(out=1)
    estimator = in_mid_period(name, model)
    model[0].weight.data = torch.ones(3, 3, dtype=torch.float64)
    model[0].bias.data = torch.ones(3, dtype=torch.float64)
    model[2].weight.data = torch.ones(1, 3, dtype=torch.float64)
    before, calls = copy.deepcopy(model.state_dict()), estimator.oracle_calls
    for p in model.parameters():
        p.grad = None
    message = f"{type(estimator).__name__}'s reference must have shape (3, 3) for parameter '0.weight', got (1, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        estimate(estimator, model)
    assert_same(model.state_dict(), before)
    assert estimator.oracle_calls == calls


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_state_follows_the_model_to_another_dtype(name):
    """With nothing moved the difference is zero: the estimate stays the anchor's gradient, rounded once."""
    model = model_of(dtype=torch.float32)
    estimator = in_mid_period(name, model)
    gradient = [p.grad.double() for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    model.double()
    estimate(estimator, model)
    for p, g in zip(model.parameters(), gradient, strict=True):
        assert p.grad.dtype == torch.float64
        torch.testing.assert_close(p.grad, g, rtol=1e-6, atol=1e-8)
    assert {t.dtype for t in estimator.state_dict()["gradient"]} == {torch.float64}


# --- batches of another size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("full", "batch must have n = 12 samples, got 11"),
        ("spider", "batch must have anchor_batch_size = 8 samples, got 11, as this estimate is an anchor"),
        ("svrg", "batch must have n = 12 samples, got 11, as this estimate is an anchor"),
        ("scsg", "batch must have anchor_batch_size = 8 samples, got 11, as this estimate is an anchor"),
    ],
)
def test_an_anchor_of_another_size_is_refused(name, message):
    model = model_of()
    estimator = built(name, model)
    before = copy.deepcopy(estimator.state_dict())
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        estimator.estimate(lambda x: model(x).square().mean(), samples(11))
    assert_same(estimator.state_dict(), before)


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("size", [1, 3])
def test_a_mini_batch_of_another_size_is_refused(name, size):
    model = model_of()
    estimator = in_mid_period(name, model)
    before = copy.deepcopy(estimator.state_dict())
    message = f"batch must have batch_size = 2 samples, got {size}; a DataLoader leaves out a short last batch with "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}drop_last=True$"):
        estimator.estimate(lambda x: model(x).square().mean(), samples(size))
    assert_same(estimator.state_dict(), before)


def test_the_short_last_batch_of_a_data_loader_is_a_mini_batch():
    model = model_of()
    estimator = MiniBatch(model, 5)
    for batch in samples(N).split(5):
        estimator.estimate(lambda x: model(x).square().mean(), batch)
    assert estimator.oracle_calls == N


# --- chunks and BatchNorm


def normalized():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()


def anchors(model, **chunk):
    yield Full(model, 600, **chunk)
    yield Spider(model, anchor_batch_size=600, batch_size=8, period=4, **chunk)
    yield SVRG(model, n=600, batch_size=8, period=4, **chunk)
    yield SCSG(model, anchor_batch_size=600, batch_size=8, **chunk)


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_chunks_give_another_gradient_where_there_is_batchnorm():
    x = torch.randn(600, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp()

    def gradient(estimator):
        estimator.estimate(lambda x: (estimator.model(x) - x[:, :1]).square().mean(), x)
        return flat_gradient(estimator.model)

    true = gradient(MiniBatch(normalized(), 600))
    for estimator in anchors(normalized()):
        assert torch.equal(gradient(estimator), true)  # by default all at once
    for estimator in anchors(normalized(), chunk_size=600):
        assert torch.equal(gradient(estimator), true)
    for estimator in anchors(normalized(), chunk_size=100):
        apart = (gradient(estimator) - true).norm() / true.norm()
        assert 0.01 < apart < 1  # no rounding: a percent and more
    for estimator in anchors(normalized().eval(), chunk_size=100):  # where BatchNorm is a fixed map
        evaluated = gradient(MiniBatch(normalized().eval(), 600))
        torch.testing.assert_close(gradient(estimator), evaluated, rtol=1e-12, atol=1e-14)
