"""Noise on top of any optimizer."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from sngd import SNGD, RandomIterate
from sngd.estimators import SCSG
from sngd.optim.perturbed import Perturbed


def weights(seed=0):
    return nn.Parameter(torch.randn(200, generator=torch.Generator().manual_seed(seed)))


def steps(optimizer, w, count):
    """The weights after each of ``count`` steps on ½‖w‖²."""
    path = []
    for _ in range(count):
        w.grad = w.detach().clone()
        optimizer.step()
        path.append(w.detach().clone())
    return path


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("inner", [lambda p: SNGD(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)])
def test_without_noise_it_is_the_wrapped_optimizer(inner):
    a, b = weights(), weights()
    plain, perturbed = steps(inner([a]), a, 5), steps(Perturbed(inner([b]), std=0.0), b, 5)
    assert all(torch.equal(x, y) for x, y in zip(plain, perturbed, strict=True))


def test_noise_comes_at_every_qth_step_from_the_first_on():
    w = weights()
    path = steps(Perturbed(torch.optim.SGD([w], lr=0.0), std=0.5, every=3, generator=generator()), w, 7)
    moved = [not torch.equal(x, y) for x, y in zip([weights().detach(), *path], path, strict=False)]
    assert moved == [True, False, False, True, False, False, True]
    noise, draws = path[0] - weights().detach(), generator()
    torch.testing.assert_close(noise, 0.5 * torch.randn(200, generator=draws), rtol=1e-4, atol=1e-6)


def test_the_noise_has_the_standard_deviation_asked_for():
    w = nn.Parameter(torch.zeros(100_000))
    w.grad = torch.zeros_like(w)
    Perturbed(torch.optim.SGD([w], lr=1.0), std=0.3, generator=generator()).step()
    assert w.std().item() == pytest.approx(0.3, rel=5 / (2 * 100_000) ** 0.5)  # five deviations of the estimate


def test_frozen_parameters_and_the_global_generator_are_left_alone():
    w, frozen = weights(), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = Perturbed(SNGD([w, frozen], lr=0.1), std=1.0)
    before = torch.get_rng_state()
    steps(optimizer, w, 2)
    assert torch.equal(frozen, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_schedulers_closures_and_added_groups_reach_the_wrapped_optimizer():
    w, other = weights(), nn.Parameter(torch.zeros(2))
    inner = torch.optim.SGD([w], lr=1.0)
    optimizer = Perturbed(inner, std=0.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert optimizer.step(lambda: 7.0) == 7.0
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.5
    optimizer.add_param_group({"params": [other]})
    assert len(inner.param_groups) == len(optimizer.param_groups) == 2


def test_steps_that_the_wrapped_optimizer_skipped_are_counted_through_it():
    w = nn.Parameter(torch.zeros(3))
    w.grad = torch.zeros(3)
    optimizer = Perturbed(SNGD([w], lr=0.1), std=0.1, generator=generator())
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert Perturbed(torch.optim.SGD([w]), std=0.1).skipped_steps == 0


def test_resumes_bitwise():
    w = weights()
    whole = steps(Perturbed(SNGD([w], lr=0.1, momentum=0.9), 0.1, 2, generator()), w, 10)
    w = weights()
    optimizer = Perturbed(SNGD([w], lr=0.1, momentum=0.9), 0.1, 2, generator())
    steps(optimizer, w, 5)
    state = copy.deepcopy(optimizer.state_dict())
    resumed = Perturbed(SNGD([w], lr=9.0), 0.1, 2, generator(99))
    resumed.load_state_dict(state)
    assert torch.equal(steps(resumed, w, 5)[-1], whole[-1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_go_on_with_the_same_steps_and_noise(copied):
    w = weights()
    optimizer = Perturbed(SNGD([w], lr=0.1, momentum=0.9), 0.1, 2, generator())
    steps(optimizer, w, 3)
    twin = copied(optimizer)
    assert twin.param_groups is twin.optimizer.param_groups
    (theirs,) = twin.param_groups[0]["params"]
    for ours, other in zip(steps(optimizer, w, 4), steps(twin, theirs, 4), strict=True):
        assert torch.equal(ours, other)


def test_takes_over_a_state_dict_of_the_wrapped_optimizer():
    w = weights()
    alone = SNGD([w], lr=0.1, momentum=0.9)
    steps(alone, w, 3)
    optimizer = Perturbed(SNGD([w], lr=9.0), 0.1, 2, generator())
    optimizer.load_state_dict(alone.state_dict())
    assert (optimizer.param_groups[0]["lr"], optimizer.steps) == (0.1, 0)
    assert optimizer.state is optimizer.optimizer.state
    assert torch.equal(optimizer.state[w]["momentum_buffer"], alone.state[w]["momentum_buffer"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "state_dict's perturbed's steps must be a whole number of at least 0, got -1"),
        ({"steps": 1.5}, "state_dict's perturbed's steps must be a whole number of at least 0, got 1.5"),
        ({"steps": None}, "state_dict's perturbed's steps must be a whole number of at least 0, got None"),
        (
            {"generator": "00ff"},
            "state_dict's perturbed's generator must be a uint8 tensor of shape (5056,), got torch.uint8 of shape (2,)",
        ),
        (
            {"generator": "no digits"},
            "state_dict's perturbed's generator must be a generator's state in hexadecimal digits",
        ),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(change, message):
    w = weights()
    optimizer = Perturbed(SNGD([w], lr=0.1, momentum=0.9), 0.1, 2, generator())
    steps(optimizer, w, 3)
    state = copy.deepcopy(optimizer.state_dict())
    before = repr(optimizer.state_dict())
    first = state["param_groups"][0]
    first["lr"], first["perturbed"] = 7.0, {**first["perturbed"], **change}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        optimizer.load_state_dict(state)
    assert repr(optimizer.state_dict()) == before


@pytest.mark.parametrize("key", ["steps", "generator"])
def test_a_state_that_lacks_an_entry_is_refused(key):
    w = weights()
    optimizer = Perturbed(SNGD([w], lr=0.1), 0.1, 2, generator())
    state = copy.deepcopy(optimizer.state_dict())
    del state["param_groups"][0]["perturbed"][key]
    with pytest.raises(ValueError, match=f"^state_dict's perturbed lacks '{key}'$"):
        optimizer.load_state_dict(state)


def test_hooks_run_around_the_perturbed_step_and_its_state_dict():
    w = nn.Parameter(torch.zeros(2))
    w.grad = torch.ones(2)
    optimizer, calls = Perturbed(SNGD([w], lr=1.0), 1.0, generator=generator()), []
    optimizer.register_step_pre_hook(lambda *_: calls.append(("before", w[0].item())))
    optimizer.register_step_post_hook(lambda *_: calls.append(("after", w[0].item())))
    optimizer.step()
    (_, start), (_, end) = calls
    assert start == 0
    assert end == w[0].item()  # noise included
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("saving"))  # noqa: ARG005
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "more": 1})  # noqa: ARG005
    optimizer.register_load_state_dict_pre_hook(lambda o, state: calls.append(state["more"]))  # noqa: ARG005
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))  # noqa: ARG005
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[2:] == ["saving", 1, "loaded"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": -1.0}, "std must be finite and at least 0, got -1.0"),
        ({"std": float("nan")}, "std must be finite and at least 0, got nan"),
        ({"std": 1.0, "every": 0}, "every must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Perturbed(SNGD([weights()]), **options)


def test_what_is_drawn_on_the_cpu_is_so_under_another_default_device():
    model = nn.Linear(3, 1)
    torch.manual_seed(0)
    with torch.device("meta"):  # as torch.set_default_device("cuda"), which draws from CPU generators would fail under
        optimizer = Perturbed(SNGD(model.parameters(), lr=0.1), std=0.1)
        optimizer._perturb()
        RandomIterate(model.parameters()).update()
        scsg = SCSG(model, anchor_batch_size=8, batch_size=2)
        assert scsg._draw_period() >= 1
    assert model.weight.isfinite().all()


def test_a_state_that_is_loaded_into_the_wrapped_optimizer_is_shared():
    w = weights()
    wrapped = SNGD([w], lr=0.1)
    optimizer = Perturbed(wrapped, std=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    wrapped.load_state_dict(copy.deepcopy(wrapped.state_dict()))
    steps(optimizer, w, 1)
    scheduler.step()
    assert wrapped.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
