"""The usual step, quick on the CPU, is the general one, also when tensors change between steps."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sngd import SNGD
from sngd.norms import global_norm
from sngd.optim import bare, clipped, part, pieces, sngd, whole_norm
from sngd.optim.bare import bare_step
from sngd.optim.usual import shapes_if_usual

RULES = {
    "sngd": {},
    "sngm": {"momentum": 0.9},
    "nsgd-momentum": {"momentum": 0.9, "normalize": "momentum"},
    "decay": {"weight_decay": 0.1},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum": 0.5},
    "capped": {"max_scale": 0.01, "maximize": True},
    "kahan": {"kahan_sum": True},
    "kahan, sngm": {"kahan_sum": True, "momentum": 0.9},
}
SHAPES = [(3, 70), (5,), (1,), (2, 3, 2, 2), (150, 900), (6000,), (0, 4), ()]


@pytest.fixture(autouse=True)
def no_step_is_watched(monkeypatch):
    """As after an optimizer's first steps, in which it is watched for clipping and takes no bare step."""
    monkeypatch.setattr(clipped, "_told", {"clipped"})


def weights(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def with_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def general(optimizer, monkeypatch):
    """Make this optimizer take every step the general way."""
    monkeypatch.setattr(optimizer, "_take_bare_step", lambda *_: False)
    monkeypatch.setattr(optimizer, "_usual_parts", lambda: None)
    return optimizer


def assert_same_bits(some, others):
    for a, b in zip(some, others, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fused", [None, True])
def test_it_is_the_general_step_bit_for_bit(rule, dtype, fused, monkeypatch):
    usual, other = weights(dtype), weights(dtype)
    optimizers = (
        SNGD(usual, lr=0.1, fused=fused, **RULES[rule]),
        general(SNGD(other, lr=0.1, fused=fused, **RULES[rule]), monkeypatch),
    )
    for step in range(3):
        for params, optimizer in zip((usual, other), optimizers, strict=True):
            with_gradients(params, step)
            optimizer.step()
        assert optimizers[0]._usual_parts() is not None
        assert_same_bits(usual, other)
        assert torch.equal(optimizers[0].last_norm, optimizers[1].last_norm)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_change_no_bit(rule, dtype, monkeypatch):
    whole, cut = weights(dtype), weights(dtype)
    with torch.no_grad():
        for params in (whole, cut):  # one that has gaps in memory, which is never cut
            params.append(nn.Parameter(torch.ones(64, 128, dtype=dtype).mT[::2]))
    for params, length in ((whole, 10**9), (cut, 2048)):
        monkeypatch.setattr(pieces, "_LENGTH", length)
        optimizer = SNGD(params, lr=0.1, **RULES[rule])
        for step in range(3):
            with_gradients(params, step)
            optimizer.step()
        makes_vectors = rule in ("nsgd-momentum", "decay", "capped")  # which maximizes
        assert [part.by_pieces for part in optimizer._usual_parts()] == [makes_vectors and params is cut]
    assert_same_bits(whole, cut)


@pytest.mark.parametrize("rule", RULES)
def test_all_tensors_may_be_long(rule, monkeypatch):
    whole, cut = weights(shapes=[(150, 900), (400, 500)]), weights(shapes=[(150, 900), (400, 500)])
    for params, length in ((whole, 10**9), (cut, 2**16)):
        monkeypatch.setattr(pieces, "_LENGTH", length)
        optimizer = SNGD(params, lr=0.1, **RULES[rule])
        for step in range(3):
            with_gradients(params, step)
            optimizer.step()
    assert_same_bits(whole, cut)


def test_long_tensors_are_cut_and_all_entries_are_in_one_piece(monkeypatch):
    monkeypatch.setattr(pieces, "_LENGTH", 2048)
    params = weights()
    arguments = {"params": params, "vectors": params, "buffers": [], "lr": 0.1}
    found = list(pieces.in_pieces(arguments))
    assert len(found) == 1 + 66 + 3
    assert sum(p.numel() for piece in found for p in piece["params"]) == sum(p.numel() for p in params)
    assert all(piece["lr"] == 0.1 and piece["buffers"] == [] for piece in found)


# --- what users change between steps


@pytest.mark.parametrize("rule", ["nsgd-momentum", "decay"])
def test_a_gradient_of_another_layout_beside_a_long_one_changes_no_bit(rule, monkeypatch):
    """The kernel is taken, or not, as for vectors that are made as a whole."""
    some = [weights(shapes=[(3, 4), (2**19 + 64,)]) for _ in range(2)]
    optimizers = SNGD(some[0], lr=0.1, **RULES[rule]), general(SNGD(some[1], lr=0.1, **RULES[rule]), monkeypatch)
    for step in range(3):
        for params, optimizer in zip(some, optimizers, strict=True):
            with_gradients(params, step)
            params[0].grad = params[0].grad.mT.contiguous().mT
            optimizer.step()
        assert_same_bits(*some)


CHANGES = {
    "a gradient is None": lambda _, ps: setattr(ps[1], "grad", None),
    "all are None": lambda _, ps: [setattr(p, "grad", None) for p in ps],
    "a weight is frozen": lambda _, ps: ps[0].requires_grad_(False),
    "the learning rate": lambda o, _: o.param_groups[0].update(lr=0.3),
    "the learning rate is a tensor": lambda o, _: o.param_groups[0].update(lr=torch.tensor(0.3)),
    "the weights' memory": lambda _, ps: setattr(ps[0], "data", ps[0].data.clone() * 2),
    "an option": lambda o, _: o.param_groups[0].update(weight_decay=0.2, momentum=0.5),
    "the norm": lambda o, _: o.param_groups[0].update(norm="sign"),
    "the implementation": lambda o, _: o.param_groups[0].update(foreach=False),
    "the order": lambda o, _: o.param_groups[0]["params"].reverse(),
    "a weight leaves": lambda o, _: o.param_groups[0]["params"].pop(),
    "a weight comes": lambda o, _: o.param_groups[0]["params"].append(nn.Parameter(torch.ones(3, 2))),
    "a group comes": lambda o, _: o.add_param_group({"params": [nn.Parameter(torch.ones(3, 2))], "lr": 0.7}),
    "the state is loaded": lambda o, _: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "the state is cleared": lambda o, _: o.state.clear(),
    "a buffer's layout": lambda o, ps: [
        s.update(momentum_buffer=s["momentum_buffer"].mT.contiguous().mT) for s in [o.state[ps[0]]] if s
    ],
    "a gradient's layout": lambda _, ps: setattr(ps[0], "grad", ps[0].grad.mT.contiguous().mT),
    "weights become double": lambda _, ps: [setattr(p, "data", p.data.double()) for p in ps],
    "some become double": lambda _, ps: [setattr(p, "data", p.data.double()) for p in ps[:3]],
    "a gradient is zero": lambda _, ps: ps[0].grad.zero_(),
    "gradients are zero": lambda _, ps: [p.grad.zero_() for p in ps],
    "gradients are tiny": lambda _, ps: [p.grad.mul_(1e-40) for p in ps],
    "gradients are huge": lambda _, ps: [p.grad.mul_(1e38) for p in ps],
    "a gradient is nan": lambda _, ps: ps[0].grad.fill_(torch.nan),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rule", ["sngd", "sngm", "nsgd-momentum", "decay"])
def test_a_change_between_steps_has_its_effect(change, rule, monkeypatch):
    """The learning loop of two optimizers, one of which looks at every tensor in every step."""
    usual, other = weights(), weights()
    optimizers = SNGD(usual, lr=0.1, **RULES[rule]), general(SNGD(other, lr=0.1, **RULES[rule]), monkeypatch)
    for step in range(5):
        for params, optimizer in zip((usual, other), optimizers, strict=True):
            own = [p for group in optimizer.param_groups for p in group["params"]]
            with_gradients([p for p in own if p.requires_grad], step)
            if step == 2:
                CHANGES[change](optimizer, params)
            optimizer.step()
        assert_same_bits(usual, other)
        assert_same_bits(*([p for g in o.param_groups for p in g["params"]] for o in optimizers))
    assert optimizers[0].skipped_steps == optimizers[1].skipped_steps
    assert torch.equal(optimizers[0].last_norm, optimizers[1].last_norm)


# --- the bare step


KNOWN = {
    **{name: RULES[name] for name in ("sngd", "sngm", "decay", "decoupled decay")},
    "capped": {"max_scale": 1e-3},
    "all": {"max_scale": 1e-3, "momentum": 0.9, "weight_decay": 0.1},
    "averaged": {"normalize": "momentum", "momentum": 0.9},
    "averaged, all": {"normalize": "momentum", "momentum": 0.9, "weight_decay": 0.1, "max_scale": 1e-3},
}
OTHERS = {
    "maximized": RULES["capped"],
    "a rate of 0": {"lr": 0.0},
    "a tiny rate": {"lr": 1e-40},
    "a tensor as rate": {"lr": torch.tensor(0.1)},
    "the readable loop": {"foreach": False},
    "lists": {"foreach": True, "momentum": 0.9},
    "the kernel": {"fused": True},
    "no kernel": {"fused": False, "momentum": 0.9},
    "capturable": {"capturable": True},
    "sign": {"norm": "sign"},
}


def taken_bare(params, options):
    """Whether the third step is a bare one."""
    optimizer = SNGD(params, **{"lr": 0.1, **options})
    for step in range(2):
        with_gradients(params, step)
        optimizer.step()
    with_gradients(params, 2)
    before = [t.clone() for t in (*params, *(b for s in optimizer.state.values() for b in s.values()))]
    with torch.no_grad():
        norm = bare_step(optimizer.param_groups, optimizer.state)
    if norm is None:
        assert_same_bits([*params, *(b for s in optimizer.state.values() for b in s.values())], before)
    return norm is not None


def assert_bare_steps_are_the_general_ones(dtype, options, first, monkeypatch):
    """Four steps, bit for bit; the first bare one is that of index ``first``."""
    bare, other = weights(dtype), weights(dtype)
    optimizers = SNGD(bare, lr=0.1, **options), general(SNGD(other, lr=0.1, **options), monkeypatch)
    taken = []
    monkeypatch.setattr("sngd.optim.sngd.bare_step", lambda *args: taken.append(bare_step(*args)) or taken[-1])
    for step in range(4):
        for params, optimizer in zip((bare, other), optimizers, strict=True):
            with_gradients(params, step)
            optimizer.step()
        assert_same_bits(bare, other)
        assert torch.equal(optimizers[0].last_norm, optimizers[1].last_norm)
    assert [norm is not None for norm in taken] == [False] * first + [True] * (4 - first)
    for a, b in zip(bare, other, strict=True):
        assert_same_bits(optimizers[0].state[a].values(), optimizers[1].state[b].values())


@pytest.mark.parametrize("rule", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("capped", [False, True])
def test_a_bare_step_is_the_general_one_bit_for_bit(rule, dtype, capped, monkeypatch):
    options = KNOWN[rule] | ({"max_scale": 1e-3} if capped else {})
    first = int("momentum" in options)  # the general step makes the buffers
    assert_bare_steps_are_the_general_ones(dtype, options, first, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"max_scale": 1e-3}], ids=["", "capped"])
def test_so_it_is_with_kahan_summation(dtype, options, monkeypatch):
    assert_bare_steps_are_the_general_ones(dtype, {"kahan_sum": True, **options}, 1, monkeypatch)


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"maximize": True}], ids=str)
def test_it_leaves_kahan_summation_with_these_to_the_general_step(options):
    assert taken_bare(weights(torch.bfloat16), {"kahan_sum": True})
    assert not taken_bare(weights(torch.bfloat16), {"kahan_sum": True, **options})
    assert not taken_bare(weights(torch.float16), {})


@pytest.mark.parametrize("rule", OTHERS)
def test_it_leaves_these_to_the_general_step(rule):
    assert not taken_bare(weights(), OTHERS[rule])


@pytest.mark.parametrize("rule", KNOWN)
def test_it_leaves_narrow_weights_to_the_general_step(rule):
    assert not taken_bare(weights(torch.bfloat16), KNOWN[rule])


@pytest.mark.parametrize("rule", KNOWN)
def test_it_leaves_long_weights_to_pieces_where_they_help(rule):
    assert taken_bare([nn.Parameter(torch.ones(2**19 + 1))], KNOWN[rule]) == (rule in ("sngd", "capped"))


def test_capturable_is_what_the_optimizer_was_made_with(monkeypatch):
    """A loaded state changes the groups' option and not the optimizer's, which is what the general step asks."""
    one, other = weights(), weights()
    optimizers = [SNGD(params, lr=0.1, weight_decay=0.1, capturable=True) for params in (one, other)]
    for optimizer in optimizers:
        optimizer.load_state_dict(SNGD(weights(), lr=0.1, weight_decay=0.1).state_dict())
    general(optimizers[1], monkeypatch)
    for step in range(3):
        for params, optimizer in zip((one, other), optimizers, strict=True):
            with_gradients(params, step)
            optimizer.step()
    assert_same_bits(one, other)


def test_a_weight_of_another_kind_is_left_to_the_general_step_also_without_a_gradient():
    """On other ranks a DTensor may have a gradient, and they would wait for this one."""

    class Sharded(torch.Tensor):
        pass

    params = [*weights(), torch.ones(3).as_subclass(Sharded).requires_grad_()]
    optimizer = SNGD(params, lr=0.1)
    with_gradients(params[:-1], 0)
    with torch.no_grad():
        assert bare_step(optimizer.param_groups, optimizer.state) is None


def test_gaps_in_memory_and_other_dtypes_of_buffers_are_left_to_the_general_step():
    gaps = [nn.Parameter(torch.ones(64, 128).mT[::2])]
    assert taken_bare(gaps, {})
    assert not taken_bare(gaps, {"momentum": 0.9})
    params = weights()
    optimizer = SNGD(params, lr=0.1, momentum=0.9)
    with_gradients(params, 0)
    optimizer.step()
    optimizer.state[params[0]]["momentum_buffer"] = optimizer.state[params[0]]["momentum_buffer"].double()
    with torch.no_grad():
        assert bare_step(optimizer.param_groups, optimizer.state) is None


def test_groups_have_their_own_rates_and_one_norm(monkeypatch):
    usual, other = weights(), weights()
    optimizers = []
    for params in (usual, other):
        with_gradients(params, 0)
        optimizers.append(SNGD([{"params": params[:3]}, {"params": params[3:], "lr": 0.7}], lr=0.1))
    general(optimizers[1], monkeypatch)
    for optimizer in optimizers:
        optimizer.step()
    assert_same_bits(usual, other)
    assert torch.equal(optimizers[0].last_norm, optimizers[1].last_norm)


@pytest.mark.parametrize("rate", [np.float16(0.1), np.float32(0.1), np.float64(0.1), 1, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rates_of_every_kind_and_size_change_the_weights_alike(rate, dtype, monkeypatch):
    usual, other = ([nn.Parameter(torch.zeros(3, dtype=dtype)), nn.Parameter(torch.zeros(2))] for _ in range(2))
    optimizers = [
        SNGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}], lr=rate) for params in (usual, other)
    ]
    general(optimizers[1], monkeypatch)
    for params, optimizer in zip((usual, other), optimizers, strict=True):
        for p in params:
            p.grad = torch.full_like(p, 1e-12)
        optimizer.step()
    assert_same_bits(usual, other)
    assert usual[0].double().norm().item() == pytest.approx(float(rate) * (3 / 5) ** 0.5, rel=1e-6)
    assert usual[1].norm().item() == pytest.approx(0.1 * (2 / 5) ** 0.5, rel=1e-6)


def test_a_group_that_is_not_known_is_found_before_any_vector_is_made(monkeypatch):
    params = weights()
    optimizer = SNGD([{"params": params[:3]}, {"params": params[3:], "norm": "sign"}], lr=0.1, weight_decay=0.1)
    with_gradients(params, 0)
    monkeypatch.setattr(torch, "_foreach_add", lambda *_, **__: pytest.fail("a vector was made"))
    with torch.no_grad():
        assert bare_step(optimizer.param_groups, optimizer.state) is None


@pytest.fixture
def norms_are_not_read(monkeypatch):
    """As on a GPU: the host may not wait for the norm, and whether a step is skipped is a tensor."""
    for module in (global_norm, whole_norm, part, bare, sngd, clipped):
        monkeypatch.setattr(module, "host_may_read", lambda _: False)


GRADIENTS = {
    "usual": lambda g: g,
    "zero": torch.zeros_like,
    "tiny": lambda g: g * 1e-30,
    "huge": lambda g: g * 1e25,
    "inf": lambda g: g / 0,
    "nan": lambda g: g * torch.nan,
}


@pytest.mark.parametrize("rule", KNOWN)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.usefixtures("norms_are_not_read")
def test_without_reading_the_norm_it_is_the_general_step_bit_for_bit(rule, gradient, monkeypatch):
    one, other = weights(), weights()
    # the general step of the CPU has no kernel unless it is asked for
    optimizers = SNGD(one, lr=0.1, **KNOWN[rule]), general(SNGD(other, lr=0.1, fused=True, **KNOWN[rule]), monkeypatch)
    taken = []
    monkeypatch.setattr("sngd.optim.sngd.bare_step", lambda *args: taken.append(bare_step(*args)) or taken[-1])
    for step in range(4):
        for params, optimizer in zip((one, other), optimizers, strict=True):
            with_gradients(params, step)
            if step == 2:
                for p in params:
                    p.grad = GRADIENTS[gradient](p.grad)
            optimizer.step()
        assert_same_bits(one, other)
        torch.testing.assert_close(*(o.last_norm for o in optimizers), rtol=0, atol=0, equal_nan=True)
    assert optimizers[0].skipped_steps == optimizers[1].skipped_steps
    assert all(p.isfinite().all() for p in one)
    assert taken[-1] is not None
    for a, b in zip(one, other, strict=True):
        assert_same_bits(optimizers[0].state[a].values(), optimizers[1].state[b].values())


@pytest.mark.cuda
@pytest.mark.parametrize("rule", RULES | KNOWN)
def test_on_a_gpu_the_usual_step_is_the_general_one_bit_for_bit(rule, monkeypatch):
    some = [[nn.Parameter(w.detach().cuda()) for w in weights()] for _ in range(2)]
    options = (RULES | KNOWN)[rule]
    optimizers = SNGD(some[0], lr=0.1, **options), general(SNGD(some[1], lr=0.1, **options), monkeypatch)
    taken = []
    monkeypatch.setattr("sngd.optim.sngd.bare_step", lambda *args: taken.append(bare_step(*args)) or taken[-1])
    for step in range(6):
        for params, optimizer in zip(some, optimizers, strict=True):
            generator = torch.Generator("cuda").manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator, device="cuda") * (step != 3)
            optimizer.step()
        assert_same_bits(*some)
        assert torch.equal(optimizers[0].last_norm, optimizers[1].last_norm)
    assert optimizers[0].skipped_steps == optimizers[1].skipped_steps
    assert taken[-1] is not None
    assert optimizers[0]._usual_parts() is not None


def test_it_is_taken_when_the_first_steps_are_over(monkeypatch):
    monkeypatch.setattr(clipped, "_told", set())
    taken = []
    monkeypatch.setattr("sngd.optim.sngd.bare_step", lambda *args: taken.append(bare_step(*args)) or taken[-1])
    params = weights()
    optimizer = SNGD(params, lr=0.1)
    for step in range(30):
        with_gradients(params, step)
        optimizer.step()
    assert len(taken) == 10
    assert taken[-1].norm is optimizer.last_norm


def test_what_is_not_usual():
    w, g = nn.Parameter(torch.ones(4)), torch.ones(4)
    assert shapes_if_usual([w], [g], []) == [w.shape]
    assert shapes_if_usual([w], [torch.ones(1)]) is None
    assert shapes_if_usual([w], [torch.ones(4).to_sparse()]) is None
    assert shapes_if_usual([w], [None]) is None
    assert shapes_if_usual([w, nn.Parameter(torch.ones(4).double())], [g, g]) is None
    z = torch.ones(4, dtype=torch.complex64)
    assert shapes_if_usual([nn.Parameter(z)], [z]) is None
    assert shapes_if_usual([nn.Parameter(torch.ones(4, device="meta"))], [torch.ones(4, device="meta")]) is None


# --- torch's wrapper of step


def test_hooks_are_called_around_the_step_and_may_change_its_arguments():
    calls = []
    (w,) = weights(shapes=[(4,)])
    optimizer = SNGD([w])
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
        optimizer.register_step_pre_hook(lambda o, *_: ((o, lambda: calls.append("closure")), {})),
        register_optimizer_step_pre_hook(lambda *_: calls.append("before all")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after all")),
    ]
    with_gradients([w], 0)
    optimizer.step()
    assert calls == ["before all", "before", "closure", "after", "after all"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(calls) == 5


def test_a_profiler_hears_of_the_step():
    (w,) = weights(shapes=[(4,)])
    optimizer = SNGD([w])
    with_gradients([w], 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert "Optimizer.step#SNGD.step" in {event.key for event in profile.key_averages()}


def test_the_whole_step_is_one_compiled_graph():
    """Called as users call it, with the wrapper around it."""
    (w,) = weights(shapes=[(4,)])
    optimizer = SNGD([w], lr=0.1)
    with_gradients([w], 0)
    before = w.detach().clone()
    torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
    torch.testing.assert_close(before - w.detach(), 0.1 * w.grad / w.grad.norm())
