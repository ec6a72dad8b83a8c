import copy
import io
import itertools
import re

import pytest
import torch
from torch import nn

from reference.natasha2 import natasha2 as naive_natasha2
from sngd.training.natasha2 import Natasha2

N = 24


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=generator(seed))


def flat(params):
    return torch.cat([p.detach().flatten() for p in params])


def squared_error(model):
    return lambda batch: (model(batch[0]).squeeze(1) - batch[1]).square().mean()


class Stream:
    """Samples drawn with replacement."""

    def __init__(self, data, seed):
        self.data, self.generator = data, generator(seed)

    def draw(self, size):
        chosen = torch.randint(len(self.data[0]), (size,), generator=self.generator)
        return tuple(part[chosen] for part in self.data)


def run(natasha, loss, stream, actions):
    return [natasha.step(loss, stream.draw(natasha.next_batch_size)) for _ in range(actions)]


# --- Against the naive twin: a two-layer network started beside its strict saddle at 0

ARGUMENTS = {
    "lr": 0.1,
    "batch_size": 3,
    "anchor_batch_size": 16,
    "sub_epochs": 3,
    "period": 5,
    "delta": 0.4,
    "smoothness": 3.0,
    "hessian_lipschitz": 2.5,
    "sigma": 0.3,
    "oja_steps": 7,
    "oja_batch_size": 4,
    "oja_lr": 1.5,
}


def network(scale=0.5):
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * normal(*p.shape, seed=p.numel()))
    return model


def network_data(seed=1):
    x = normal(N, 3, seed=seed)
    return x, (x @ torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)).tanh()


def network_loss_of_one_sample(w, sample):
    x, target = sample
    hidden = [torch.tanh(w[0] * x[0] + w[1] * x[1] + w[2] * x[2]), torch.tanh(w[3] * x[0] + w[4] * x[1] + w[5] * x[2])]
    return (w[6] * hidden[0] + w[7] * hidden[1] - target) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_naive_twin(seed):
    model, stream, twins_stream = network(1e-3), Stream(network_data(), seed), Stream(network_data(), seed)
    natasha = Natasha2(model, **ARGUMENTS, generator=generator(seed))
    twin = naive_natasha2(
        network_loss_of_one_sample,
        flat(model.parameters()),
        lambda size: list(zip(*twins_stream.draw(size), strict=True)),
        generator(seed),
        **ARGUMENTS,
    )
    events, loss, y, farthest = [], squared_error(model), flat(model.parameters()), 0.0
    while events.count("anchor") < 4 or events.count("move") < 2:
        run(natasha, loss, stream, 1)
        event, w = next(twin)
        events.append(event)
        ours = flat(model.parameters())
        assert (ours - w).norm() <= 1e-6 * w.norm()
        y = w if event in ("search", "move") else y
        farthest = max(farthest, (ours - y).norm().item())
    assert natasha.curvature_steps == events.count("move")
    assert events.count("inner") > 3
    assert farthest > 0.4 / 2.5  # out of the ball of radius δ/L₂, where the penalty pulls


# --- Curvature


def test_oja_finds_the_most_negative_eigenvector():
    basis = torch.linalg.qr(normal(6, 6, seed=0))[0]
    h = basis @ torch.diag(torch.tensor([-1.0, -0.3, 0.2, 0.5, 1.0, 2.0], dtype=torch.float64)) @ basis.T
    model = nn.ParameterList([torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)])
    offsets = normal(64, 6, seed=1)  # linear terms: each sample has its own gradient, all one Hessian

    def loss(batch):
        w = torch.cat([p.flatten() for p in model])
        return w @ h @ w / 2 + (batch @ w).mean()

    natasha = Natasha2(model, delta=0.5, hessian_lipschitz=0.25, smoothness=2.0, oja_steps=150, generator=generator(0))
    while natasha.curvature_steps == 0:
        assert not flat(model).any()
        natasha.step(loss, offsets[: natasha.next_batch_size])
    assert flat(model).norm().item() == pytest.approx(0.5 / 0.25)
    assert abs(flat(model) @ basis[:, 0]).item() == pytest.approx(2.0, abs=1e-6)


def test_both_signs_are_drawn():
    ends = set()
    for seed in range(20):
        model = nn.ParameterList([torch.zeros(1)])
        natasha = Natasha2(model, oja_steps=1, hessian_lipschitz=0.1, generator=generator(seed))
        run(natasha, lambda _, model=model: -model[0].square().sum(), Stream((torch.zeros(N),), 0), 2)
        assert natasha.curvature_steps == 1
        ends.add(round(model[0].item(), 5))
    assert ends == {-1.0, 1.0}


def test_curvature_is_followed_from_half_of_delta_on():
    for curvature, moves in ((-0.049, 0), (-0.051, 1)):
        model = nn.ParameterList([torch.zeros(1)])
        natasha = Natasha2(model, delta=0.1, oja_steps=1)
        run(natasha, lambda _, m=model, c=curvature: c / 2 * m[0].square().sum(), Stream((torch.zeros(N),), 0), 2)
        assert natasha.curvature_steps == moves


@pytest.mark.parametrize("seed", range(5))
def test_on_least_squares_it_never_moves_along_curvature_and_the_loss_falls(seed):
    x = normal(N, 4, seed=seed)
    data = x, x @ normal(4, seed=seed + 100) + 0.1 * normal(N, seed=seed + 200)
    model = nn.Linear(4, 1).double()
    natasha = Natasha2(model, batch_size=4, anchor_batch_size=N, oja_steps=3, generator=generator(seed))
    loss = squared_error(model)
    before = loss(data).item()
    run(natasha, loss, Stream(data, seed), 200)
    assert natasha.curvature_steps == 0
    assert loss(data).item() < before / 10


def test_a_loss_without_second_derivative_has_no_curvature():
    model = nn.Linear(2, 1)
    natasha = Natasha2(model, oja_steps=2)
    stream = Stream((normal(N, 2, seed=0, dtype=torch.float32),), 0)
    run(natasha, lambda batch: model(batch[0]).mean(), stream, 6)
    assert natasha.curvature_steps == 0
    assert all(p.isfinite().all() for p in model.parameters())


# --- Cost


def test_oracle_calls_are_exact():
    """An epoch of N steps costs 2·T·b_oja + 2B + 2b(N − 1), a move all but the last; the costs are known beforehand."""
    model, seed = network(1e-3), 0
    natasha = Natasha2(model, **ARGUMENTS, generator=generator(seed))
    stream, loss = Stream(network_data(), seed), squared_error(model)
    epochs = moves = steps = 0
    for _ in range(40):
        moved, total = natasha.curvature_steps, natasha.oracle_calls
        costs = []
        while len(costs) <= 7 or natasha.next_batch_size != 4:  # b_oja: a new search begins
            costs.append(natasha.next_cost)
            run(natasha, loss, stream, 1)
            assert natasha.oracle_calls == total + sum(costs)
        if natasha.curvature_steps > moved:
            moves += 1
            assert costs == [2 * 4] * 7 + [2 * 16]
        else:
            epochs += 1
            steps += len(costs) - 7
            assert costs == [2 * 4] * 7 + [2 * 16] + [2 * 3] * (len(costs) - 8)
            assert len(costs) - 7 <= 3 * (5 - 1)  # the pick lies among x_0 … x_{m−1}
    assert moves > 0
    assert epochs > 3
    assert steps > epochs


def test_a_smaller_batch_is_counted_as_it_is():
    model = network()
    natasha = Natasha2(model, batch_size=8)
    natasha.step(squared_error(model), Stream(network_data(), 0).draw(5))
    assert natasha.oracle_calls == 10


def test_counts_are_of_the_loss_really_evaluated():
    """Each sample is forwarded once for a Hessian-vector product, twice for a difference."""
    model, forwards = network(), []
    model.register_forward_hook(lambda _module, inputs, _output: forwards.append(len(inputs[0])))
    natasha = Natasha2(model, **ARGUMENTS, generator=generator(0))
    stream, sizes = Stream(network_data(), 0), set()
    for _ in range(60):
        forwards.clear()
        size = natasha.next_batch_size
        run(natasha, squared_error(model), stream, 1)
        assert forwards == ([size] * 2 if size == 3 else [size])
        sizes.add(size)
    assert sizes == {3, 4, 16}


# --- Defaults


def test_what_follows_from_the_arguments():
    natasha = Natasha2(nn.Linear(1, 1), lr=0.2, batch_size=8, anchor_batch_size=320, sub_epochs=4, delta=0.5)
    assert natasha.smoothness == 2.5
    assert natasha.sigma == 1.5
    assert natasha.period == 10
    assert natasha.oja_batch_size == 8
    assert Natasha2(nn.Linear(1, 1), anchor_batch_size=1).period == 2


def test_the_private_generator_repeats_and_takes_nothing_from_the_global_one():
    def end():
        model = network()
        torch.manual_seed(3)
        natasha = Natasha2(model, **ARGUMENTS)
        run(natasha, squared_error(model), Stream(network_data(), 0), 40)
        assert torch.equal(torch.get_rng_state(), generator(3).get_state())
        return flat(model.parameters())

    assert torch.equal(end(), end())


# --- Evaluations of a difference, and of a Hessian-vector product


def test_both_evaluations_of_a_difference_see_the_same_chance():
    model, draws = network(), []

    def loss(batch):
        draws.append(torch.rand(()).item())
        return squared_error(model)(batch)

    natasha, stream = Natasha2(model, **ARGUMENTS, generator=generator(0)), Stream(network_data(), 0)
    torch.manual_seed(0)
    seen, differences = [], 0
    for _ in range(60):
        draws.clear()
        run(natasha, loss, stream, 1)
        assert len(set(draws)) == 1
        seen.append(draws[0])
        differences += len(draws) == 2
    assert differences > 10
    torch.manual_seed(0)  # and each action has drawn what one evaluation draws
    assert seen == [torch.rand(()).item() for _ in range(60)]


def test_batchnorm_sees_only_evaluations_at_the_present_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    natasha = Natasha2(model, **ARGUMENTS, generator=generator(0))
    stream, loss = Stream(network_data(), 0), squared_error(model)
    kinds = set()
    for _ in range(60):
        size = natasha.next_batch_size
        batch = stream.draw(size)
        expected = copy.deepcopy(model)
        if size != 4:  # not Oja's
            expected(batch[0])
        kinds.add(size)
        natasha.step(loss, batch)
        for ours, theirs in zip(model.buffers(), expected.buffers(), strict=True):
            assert torch.equal(ours, theirs)
    assert kinds == {3, 4, 16}


def test_only_trainable_weights_move_and_their_grad_is_left_alone():
    model = network()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    model[2].weight.grad = torch.full_like(model[2].weight, 7.0)
    started = model[2].weight.detach().clone()
    run(Natasha2(model, **ARGUMENTS), squared_error(model), Stream(network_data(), 0), 30)
    assert torch.equal(model[0].weight, frozen)
    assert (model[2].weight.grad == 7).all()
    assert not torch.equal(model[2].weight, started)


def test_returns_the_loss_before_the_action_and_hands_any_batch_through():
    model, seen = nn.Linear(3, 1).double(), []

    def loss(batch):
        seen.append(batch)
        return (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()

    x, y = network_data()
    batch = {"x": x, "y": y}
    expected = loss(batch)
    value = Natasha2(model).step(loss, batch)
    assert seen[-1] is batch
    assert torch.equal(value, expected.detach())
    assert not value.requires_grad


# --- State


@pytest.mark.slow
def test_resumes_bitwise_from_every_action():
    def start():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Tanh(), nn.Linear(4, 1))
        return model, Natasha2(model, **(ARGUMENTS | {"delta": 0.02}), generator=generator(1))

    data = tuple(part.float() for part in network_data())
    model, natasha = start()
    loss, stream = squared_error(model), Stream(data, 0)
    saved, batches = [], []
    for _ in range(45):
        file = io.BytesIO()
        torch.save((model.state_dict(), natasha.state_dict(), torch.get_rng_state()), file)
        saved.append(file)
        batches.append(stream.draw(natasha.next_batch_size))
        natasha.step(loss, batches[-1])
    assert natasha.curvature_steps > 0
    assert {len(batch[0]) for batch in batches} == {3, 4, 16}

    for action, file in enumerate(saved):
        file.seek(0)
        weights, state, rng = torch.load(file, weights_only=True)
        other, resumed = start()
        resumed.generator.manual_seed(99)
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
        torch.set_rng_state(rng)
        for batch in batches[action:]:
            assert resumed.next_batch_size == len(batch[0])
            resumed.step(squared_error(other), batch)
        for ours, theirs in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)
        assert resumed.oracle_calls == natasha.oracle_calls
        assert resumed.curvature_steps == natasha.curvature_steps


def test_later_steps_do_not_change_a_state_dict():
    model = network()
    natasha, stream = Natasha2(model, **ARGUMENTS, generator=generator(0)), Stream(network_data(), 0)
    in_epoch = 0
    for _ in range(40):
        state = natasha.state_dict()
        before = copy.deepcopy(state)
        run(natasha, squared_error(model), stream, 1)
        assert repr(state) == repr(before)
        in_epoch += state["epoch"] is not None
    assert in_epoch > 10


def at(kind):
    """A Natasha2 in an epoch, or in a search, and its model."""
    model = network()
    natasha, stream = Natasha2(model, **ARGUMENTS, generator=generator(0)), Stream(network_data(), 0)
    while (natasha.state_dict()[kind]) is None:
        run(natasha, squared_error(model), stream, 1)
    return natasha, model, stream


def refused(natasha, state, message):
    before = repr(natasha.state_dict())
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        natasha.load_state_dict(state)
    assert repr(natasha.state_dict()) == before


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    natasha, _, _ = at("epoch")
    state = copy.deepcopy(natasha.state_dict())
    for name in ("anchor", "gradient", "start"):
        weight, last = state["epoch"][name]
        message = f"state_dict's epoch's {name} must "
        for tensors, wrong in [
            ([weight[:, :1], last], "have shape (2, 3) for parameter '0.weight', got (2, 1)"),
            ([weight], "hold 2 tensors, got 1"),
            ([weight.long(), last], "be floating-point (torch.float64) for parameter '0.weight', got torch.int64"),
        ]:
            refused(natasha, {**state, "epoch": {**state["epoch"], name: tensors}}, message + wrong)
    for lengths in ([], [0], [5], [1.0], [1] * 4, None):
        message = "state_dict's epoch's lengths must be a list of 1 to 3 whole numbers from 1 to 4, got "
        refused(natasha, {**state, "epoch": {**state["epoch"], "lengths": lengths}}, message + repr(lengths))
    refused(natasha, {**state, "epoch": {}}, "state_dict's epoch lacks 'anchor', 'gradient', 'start', 'lengths'")
    for key in state:
        refused(natasha, {k: v for k, v in state.items() if k != key}, f"state_dict lacks '{key}'")
    for key in ("oracle_calls", "curvature_steps", "search_steps"):
        refused(natasha, {**state, key: -1}, f"state_dict's {key} must be a whole number ")
    refused(natasha, {**state, "generator": torch.zeros(2)}, "state_dict's generator must be a uint8 tensor")


def test_a_direction_that_does_not_fit_is_refused():
    natasha, _, _ = at("direction")
    state = copy.deepcopy(natasha.state_dict())
    weight, last = state["direction"]
    message = "state_dict's direction must have shape (2, 3) for parameter '0.weight', got (1, 3)"
    refused(natasha, {**state, "direction": [weight[:1], last]}, message)
    message = "state_dict's direction must be there if search_steps = "
    refused(natasha, {**state, "direction": None}, message)
    refused(natasha, {**state, "search_steps": 0}, message)
    refused(natasha, {**state, "search_steps": 8}, "state_dict's search_steps must be a whole number from 0 to 7")


@pytest.mark.parametrize("kind", ["epoch", "direction"])
def test_a_parameter_that_has_changed_is_followed_to_its_dtype_and_refused_in_another_shape(kind):
    natasha, model, stream = at(kind)
    model.float()
    stream.data = tuple(part.float() for part in stream.data)
    run(natasha, squared_error(model), stream, 1)
    assert natasha.state_dict()[kind] is not None
    model[0].weight.data = torch.ones(1, 3)
    calls, name = natasha.oracle_calls, "anchor" if kind == "epoch" else "direction"
    message = f"Natasha2's {name} must have shape (1, 3) for parameter '0.weight', got (2, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(natasha, squared_error(model), stream, 1)
    assert natasha.oracle_calls == calls


# --- Arguments


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *itertools.product(
            ["lr", "delta", "smoothness", "hessian_lipschitz", "oja_lr"],
            [0.0, -1.0, float("inf"), float("nan")],
            ["{name} must be finite and greater than 0, got {value}"],
        ),
        *itertools.product(
            ["batch_size", "anchor_batch_size", "sub_epochs", "period", "oja_steps", "oja_batch_size"],
            [0, 2.5],
            ["{name} must be a whole number of at least 1, got {value}"],
        ),
        ("period", 1, "period must be at least 2, got 1"),
        ("sigma", -0.1, "sigma must be finite and at least 0, got -0.1"),
        ("sigma", float("inf"), "sigma must be finite and at least 0, got inf"),
    ],
)
def test_arguments_out_of_range(name, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(name=name, value=value))}$"):
        Natasha2(nn.Linear(1, 1), **{name: value})


def test_a_model_without_trainable_parameters():
    with pytest.raises(ValueError, match=r"^model must have a parameter that requires a gradient, got none$"):
        Natasha2(nn.Tanh())
