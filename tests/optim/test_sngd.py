"""SNGD against its closed forms, its naive twin, and its own implementations against each other."""

import copy
import io
import pickle
import re
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sngd
from reference.sngd import NaiveSNGD

IMPLEMENTATIONS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
VARIANTS = {
    "plain": {},
    "decay": {"weight_decay": 0.01},
    "decoupled decay": {"weight_decay": 0.5, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "weight_decay": 0.01},
    "capped": {"max_scale": 0.02},
    "sngm": {"momentum": 0.9},
    "sngm, capped, decay": {"momentum": 0.9, "max_scale": 0.02, "weight_decay": 0.01},
    "nsgd-momentum": {"momentum": 0.9, "normalize": "momentum"},
    "nsgd-momentum, capped, decay": {
        "momentum": 0.8,
        "normalize": "momentum",
        "max_scale": 0.02,
        "weight_decay": 0.01,
    },
    "nsgd-momentum, decoupled decay": {
        "momentum": 0.8,
        "normalize": "momentum",
        "weight_decay": 0.5,
        "decoupled_weight_decay": True,
    },
}
SIZES = (1, 8, 9, 64, 65)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def parameters(dtypes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(n, generator=generator, dtype=torch.float64) for n in SIZES]
    return [nn.Parameter(w.to(dtypes[i % len(dtypes)])) for i, w in enumerate(draw)]


def set_gradients(params, generator):
    """Gradients of very unequal size from step to step, as near saddles and cliffs."""
    size = 10 ** (4 * torch.rand((), generator=generator, dtype=torch.float64) - 2)
    for p in params:
        p.grad = (size * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)


def run(options, dtypes=(torch.float64,), steps=50, capturable=False):
    params = parameters(dtypes)
    optimizer = sngd.SNGD(params, lr=0.05, capturable=capturable, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        set_gradients(params, generator)
        optimizer.step()
    return params, optimizer


def flat(params):
    return torch.cat([p.detach().double().flatten() for p in params])


# --- closed forms and properties


@given(
    lr=st.floats(1e-3, 10),
    size=st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e18]),
    seed=st.integers(0, 10_000),
    implementation=st.sampled_from(list(IMPLEMENTATIONS)),
)
def test_every_step_has_length_lr(lr, size, seed, implementation):
    params = [nn.Parameter(torch.zeros(n)) for n in SIZES]
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = size * torch.randn(p.shape, generator=generator)
    sngd.SNGD(params, lr=lr, **IMPLEMENTATIONS[implementation]).step()
    assert flat(params).norm().item() == pytest.approx(lr, rel=1e-5)


@given(c=st.floats(1e-6, 1e6), variant=st.sampled_from(["plain", "sngm", "nsgd-momentum"]))
def test_scaling_the_loss_changes_nothing(c, variant):
    def trained(scale):
        w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        optimizer = sngd.SNGD([w], lr=0.1, **VARIANTS[variant])
        for _ in range(10):
            optimizer.zero_grad()
            (scale * (w.square() * torch.tensor([1.0, 3.0, 0.2])).sum()).backward()
            optimizer.step()
        return w.detach()

    torch.testing.assert_close(trained(c), trained(1.0), rtol=1e-9, atol=1e-12)


@given(momentum=st.sampled_from([0.0, 0.9]), scale=st.floats(1e-6, 1e-3), decay=st.sampled_from([0.0, 0.1]))
def test_a_small_enough_max_scale_is_sgd(momentum, scale, decay):
    ours, theirs = parameters([torch.float64]), parameters([torch.float64])
    capped = sngd.SNGD(ours, lr=1.0, max_scale=scale, momentum=momentum, weight_decay=decay)
    plain = torch.optim.SGD(theirs, lr=scale, momentum=momentum, weight_decay=decay)
    for step in range(5):
        for params, optimizer in ((ours, capped), (theirs, plain)):
            generator = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            optimizer.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-9, atol=1e-12)


def walked(lr, seed, steps, **options):
    """Weights after some steps on random gradients; ``plan`` plays a stage plan, all else goes to SNGD."""
    plan = options.pop("plan", None)
    params = parameters([torch.float32])
    optimizer = sngd.SNGD(params, lr=lr, **options)
    scheduler = sngd.StagewiseLR(optimizer, plan) if plan else None
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        set_gradients(params, generator)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return flat(params)


@given(
    lr=st.floats(1e-3, 10),
    seed=st.integers(0, 10_000),
    normalize=st.sampled_from(["gradient", "momentum"]),
    implementation=st.sampled_from(list(IMPLEMENTATIONS)),
)
def test_momentum_zero_is_sngd_bitwise(lr, seed, normalize, implementation):
    options = IMPLEMENTATIONS[implementation]
    with_momentum = walked(lr, seed, 5, momentum=0.0, normalize=normalize, **options)
    assert torch.equal(with_momentum, walked(lr, seed, 5, **options))


@given(lr=st.floats(1e-3, 10), seed=st.integers(0, 10_000), steps=st.integers(1, 12))
def test_one_stage_of_s_sngd_is_sngd_bitwise(lr, seed, steps):
    one_stage = walked(7.0, seed, steps, plan=sngd.stages.constant(lr, steps))
    assert torch.equal(one_stage, walked(lr, seed, steps))


def test_a_cap_changes_only_steps_with_a_small_gradient():
    for size, length in ((10.0, 0.5), (0.1, 0.1 * 2.0)):  # the switch is at ‖g‖ = lr/max_scale = 0.25
        w = nn.Parameter(torch.zeros(1))
        w.grad = torch.tensor([size])
        sngd.SNGD([w], lr=0.5, max_scale=2.0).step()
        assert abs(w.item()) == pytest.approx(length)


@pytest.mark.parametrize("decay", [0.0, 0.1, 3.0])
def test_decoupled_decay_is_that_of_adamw_and_leaves_the_direction_alone(decay):
    """w ← (1 − αλ)w − α g/‖g‖, where coupled decay takes the norm of g + λw."""
    ours, theirs = parameters([torch.float64]), parameters([torch.float64])
    optimizer = sngd.SNGD(ours, lr=0.2, weight_decay=decay, decoupled_weight_decay=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        set_gradients(ours, generator)
        optimizer.step()
        gradient = torch.cat([p.grad for p in ours])
        for p, g in zip(theirs, (0.2 * gradient / gradient.norm()).split(SIZES), strict=True):
            p.data = (1 - 0.2 * decay) * p.data - g
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-12, atol=1e-12)
    assert optimizer.last_norm.item() == pytest.approx(gradient.norm().item())


def test_groups_share_one_norm_and_keep_their_own_lr():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer = sngd.SNGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 10.0}])
    optimizer.step()
    assert (a.item(), b.item()) == pytest.approx((-3 / 5, -10 * 4 / 5))
    assert optimizer.last_norm.item() == pytest.approx(5)


def test_step_returns_the_closures_loss_and_works_under_no_grad():
    w = nn.Parameter(torch.ones(2))
    optimizer = sngd.SNGD([w], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 2
    assert (w < 1).all()


# --- one truth, several implementations


@cache
def twin(variant):
    params = parameters([torch.float64])
    naive = NaiveSNGD(flat(params).tolist(), lr=0.05, **VARIANTS[variant])
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        set_gradients(params, generator)
        naive.step(torch.cat([p.grad.flatten() for p in params]).tolist())
    return torch.tensor(naive.w, dtype=torch.float64)


@pytest.mark.parametrize(("variant", "implementation"), list(product(VARIANTS, IMPLEMENTATIONS)))
def test_each_implementation_equals_the_naive_twin(variant, implementation):
    params, _ = run({**VARIANTS[variant], **IMPLEMENTATIONS[implementation]})
    torch.testing.assert_close(flat(params), twin(variant), rtol=1e-10, atol=1e-12)


@cache
def loop(variant, dtypes):
    return run({**VARIANTS[variant], **IMPLEMENTATIONS["loop"]}, dtypes)[0]


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}  # a few ulp after 50 steps


@pytest.mark.parametrize("dtypes", [(d,) for d in DTYPES] + [DTYPES], ids=lambda ds: "+".join(map(str, ds)))
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(("variant", "implementation"), list(product(VARIANTS, ["foreach", "fused", "default"])))
def test_implementations_equal_the_loop(variant, implementation, dtypes, capturable):
    params, _ = run({**VARIANTS[variant], **IMPLEMENTATIONS[implementation]}, dtypes, capturable=capturable)
    for ours, true in zip(params, loop(variant, dtypes), strict=True):
        # one norm couples all: beside float32 weights, float64 ones feel float32's rounding
        tolerance = max(TOLERANCE[ours.dtype], 0 if len(dtypes) == 1 else TOLERANCE[torch.float32])
        torch.testing.assert_close(ours, true, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mixed_groups_frozen_parameters_and_missing_gradients(implementation, dtype):
    def trained(options):
        params = parameters([dtype, torch.float32])
        params[1].requires_grad_(False)
        optimizer = sngd.SNGD(
            [
                {"params": params[:3], "weight_decay": 0.1},
                {"params": params[3:], "lr": 0.01, "momentum": 0.5},
            ],
            lr=0.05,
            **options,
        )
        generator = torch.Generator().manual_seed(1)
        for step in range(50):
            set_gradients(params, generator)
            params[1].grad = None
            if step % 3 == 0:
                params[4].grad = None
            optimizer.step()
        return params

    start, truth, params = (
        parameters([dtype, torch.float32]),
        trained({"foreach": False}),
        trained(IMPLEMENTATIONS[implementation]),
    )
    assert torch.equal(params[1], start[1])
    for ours, true in zip(params, truth, strict=True):
        torch.testing.assert_close(ours, true, rtol=TOLERANCE[ours.dtype], atol=TOLERANCE[ours.dtype])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_steps_have_the_right_length(implementation):
    w = nn.Parameter(torch.zeros(65, dtype=torch.bfloat16))
    w.grad = torch.randn(65, generator=torch.Generator().manual_seed(0)).bfloat16()
    sngd.SNGD([w], lr=0.3, **IMPLEMENTATIONS[implementation]).step()
    assert w.float().norm().item() == pytest.approx(0.3, rel=1e-3)  # 65 roundings of 2⁻⁹ average out


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_complex_parameters_step_as_pairs_of_reals(implementation):
    z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    z.grad = torch.tensor([3.0 + 0j, 4j])
    sngd.SNGD([z], lr=1.0, **IMPLEMENTATIONS[implementation]).step()
    torch.testing.assert_close(z.detach(), torch.tensor([-0.6 + 0j, -0.8j]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_gradient_that_is_a_lazy_conjugate_is_resolved(implementation):
    z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    z.grad = torch.tensor([3.0 + 0j, 4j]).conj()
    assert z.grad.is_conj()
    sngd.SNGD([z], lr=1.0, **IMPLEMENTATIONS[implementation]).step()
    torch.testing.assert_close(z.detach(), torch.tensor([-0.6 + 0j, 0.8j]))


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch before 2.10 has no grad_dtype")
@pytest.mark.parametrize("norm", ["l2", "layer"])
@pytest.mark.parametrize("variant", ["plain", "nsgd-momentum", "sngm", "decay"])
@pytest.mark.parametrize(
    ("dtypes", "grad_dtypes"),
    [
        ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)),
        ((torch.float32, torch.float32), (torch.float32, torch.float64)),
        ((torch.float64, torch.float64), (torch.float32, torch.float32)),
        ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)),
    ],
)
def test_gradients_of_other_dtypes_than_their_parameters(dtypes, grad_dtypes, variant, norm):
    """As if each parameter were of its gradient's dtype, but for the rounding of weights and buffers."""
    options, tolerance = {"lr": 0.1, "norm": norm, **VARIANTS[variant]}, 0.02 if torch.bfloat16 in dtypes else 1e-6
    for implementation in ("loop", "default"):
        params = [nn.Parameter(torch.ones(4, dtype=dtype)) for dtype in dtypes]
        twins = [nn.Parameter(torch.ones(4, dtype=torch.float64)) for _ in dtypes]
        for param, dtype in zip(params, grad_dtypes, strict=True):
            param.grad_dtype = dtype
        ours, theirs = (sngd.SNGD(ps, **options, **IMPLEMENTATIONS[implementation]) for ps in (params, twins))
        generator = torch.Generator().manual_seed(0)
        for _ in range(30):  # past the first steps, in which gradients are watched
            for param, twin, dtype in zip(params, twins, grad_dtypes, strict=True):
                param.grad = torch.randn(4, generator=generator, dtype=torch.float64).to(dtype)
                twin.grad = param.grad.double()
            kept = [param.grad.clone() for param in params]
            ours.step()
            theirs.step()
            assert all(torch.equal(param.grad, grad) for param, grad in zip(params, kept, strict=True))
            with torch.no_grad():  # so that roundings do not add up
                for param, twin in zip(params, twins, strict=True):
                    torch.testing.assert_close(param.detach().double(), twin.detach(), rtol=tolerance, atol=tolerance)
                    twin.copy_(param)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_gradient_is_left_as_it_was(implementation):
    for options in VARIANTS.values():
        params = parameters([torch.float32])
        set_gradients(params, torch.Generator().manual_seed(3))
        before = [p.grad.clone() for p in params]
        sngd.SNGD(params, **options, **IMPLEMENTATIONS[implementation]).step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


# --- nothing to normalize


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(("variant", "implementation"), list(product(VARIANTS, IMPLEMENTATIONS)))
def test_a_zero_or_bad_norm_changes_nothing_and_is_counted(variant, implementation, capturable, bad):
    options = {k: v for k, v in VARIANTS[variant].items() if not (bad == 0 and k in ("weight_decay", "momentum"))}
    params, optimizer = run({**options, **IMPLEMENTATIONS[implementation]}, DTYPES, 3, capturable)
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])
    for p in params:
        p.grad = torch.zeros_like(p) if bad == 0 else torch.ones_like(p)
    params[-1].grad[0] = bad
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    for place, buffers in state.items():
        assert torch.equal(optimizer.state_dict()["state"][place]["momentum_buffer"], buffers["momentum_buffer"])
    assert optimizer.skipped_steps == 1
    set_gradients(params, torch.Generator().manual_seed(5))
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert not torch.equal(params[0], before[0])


def test_a_step_without_any_gradient_does_nothing():
    optimizer = sngd.SNGD([nn.Parameter(torch.ones(3))])
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert optimizer.last_norm.isnan()


# --- state


def test_resumes_bitwise_from_a_state_dict_saved_safely():
    options = {"momentum": 0.9, "weight_decay": 0.01}
    whole, _ = run(options, steps=20)
    params, optimizer = run(options, steps=10)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in params]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    params = [nn.Parameter(p) for p in saved["params"]]
    optimizer = sngd.SNGD(params, lr=7.0)
    optimizer.load_state_dict(saved["optimizer"])
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        set_gradients(params, generator)
        if step >= 10:
            optimizer.step()
    assert torch.equal(flat(params), flat(whole))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_keep_the_count_and_the_norm(copied):
    w = nn.Parameter(torch.ones(2))
    optimizer = sngd.SNGD([w])
    for gradient in (torch.zeros(2), torch.tensor([3.0, 4.0])):
        w.grad = gradient
        optimizer.step()
    twin = copied(optimizer)
    assert twin.skipped_steps == 1
    assert twin.last_norm.item() == 5


def test_the_count_goes_through_a_state_dict_and_older_ones_load():
    w = nn.Parameter(torch.ones(2))
    optimizer, fresh = sngd.SNGD([w]), sngd.SNGD([w])
    w.grad = torch.zeros(2)
    optimizer.step()
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.skipped_steps == 1
    older = optimizer.state_dict()
    del older["skipped_steps"], older["param_groups"][0]["max_scale"]
    fresh.load_state_dict(older)
    assert fresh.skipped_steps == 0
    w.grad = torch.ones(2)
    fresh.step()
    assert w.tolist() == pytest.approx([1 - 0.1 / 2**0.5] * 2)


def test_a_hook_may_adapt_a_saved_state_before_it_is_checked():
    """As torch's recipe for pre-hooks does, when a model registers its parameters in another order than before."""
    model = nn.Linear(4, 3)
    optimizer = sngd.SNGD(model.parameters(), momentum=0.9)
    saved = optimizer.state_dict() | {"skipped_steps": 7}
    saved["state"] = {0: {"momentum_buffer": torch.ones(3)}, 1: {"momentum_buffer": torch.ones(3, 4)}}
    with pytest.raises(ValueError, match=r"momentum_buffer must have shape \(3, 4\) for parameter 0, got \(3,\)"):
        optimizer.load_state_dict(saved)
    assert not optimizer.state
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {**state, "state": {0: state["state"][1], 1: state["state"][0]}}
    )
    for _ in range(2):  # the check of the first time is gone
        optimizer.load_state_dict(saved)
    assert [optimizer.state[p]["momentum_buffer"].shape for p in model.parameters()] == [(3, 4), (3,)]
    assert optimizer.skipped_steps == 7
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


def test_a_norm_that_was_spelled_otherwise_is_saved_as_usual():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = sngd.SNGD([w], norm="row")
    optimizer.param_groups[0]["norm"] = "row( table=True )"
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["norm"] == "row(table=True)"
    optimizer.load_state_dict(saved)
    sngd.SNGD([w], norm="row(table=True)").load_state_dict(saved)


def test_a_scheduler_drives_lr_also_as_a_tensor():
    for lr in (0.5, torch.tensor(0.5)):
        w = nn.Parameter(torch.zeros(1))
        w.grad = torch.ones(1)
        optimizer = sngd.SNGD([w], lr=lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(2):
            optimizer.step()
            scheduler.step()
        assert w.item() == pytest.approx(-0.75)


# --- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr must be finite and at least 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be finite and at least 0, got nan"),
        ({"lr": torch.ones(2)}, "lr must be a number or a one-element tensor, got a tensor of shape (2,)"),
        ({"momentum": 1.0}, "momentum must lie in [0, 1), got 1.0"),
        ({"normalize": "layer"}, "normalize must be 'gradient' or 'momentum', got 'layer'"),
        ({"weight_decay": -1e-4}, "weight_decay must be finite and at least 0, got -0.0001"),
        ({"max_scale": 0.0}, "max_scale must be greater than 0 (inf: no cap), got 0.0"),
        ({"foreach": True, "fused": True}, "foreach and fused cannot both be True: choose one"),
    ],
)
def test_bad_arguments_are_named(options, message):
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sngd.SNGD([w], **options)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sngd.SNGD([{"params": [w], **options}])


def test_sparse_gradients_get_a_clear_error():
    layer = nn.Embedding(5, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    message = (
        "SNGD does not support sparse gradients, and a parameter of shape (5, 2) has one: "
        "build its layer with sparse=False"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        sngd.SNGD(layer.parameters()).step()
