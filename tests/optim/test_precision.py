"""Float16 and bfloat16 weights, autocast and loss scaling."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from sngd import SNGD, Perturbed
from sngd.norms.global_norm import global_norm
from sngd.optim import kahan, pieces
from sngd.optim import sngd as implementations
from sngd.optim.kahan import foreach_kahan_sub_, kahan_add_, rounded_by_sums, single_tensor_kahan_sub_

IMPLEMENTATIONS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}, "default": {}}
HALVES = [torch.bfloat16, torch.float16]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(dtype, size=100):
    """Of size 1, where bfloat16's neighbours are 2⁻⁷ or 2⁻⁸ apart and float16's 2⁻¹⁰ or 2⁻¹¹."""
    return nn.Parameter((torch.rand(size, generator=generator()) + 0.5).to(dtype))


# --- steps smaller than the distance between neighbours


def displaced(dtype, steps, lr=1e-3, **options):
    """The change of the weights, in float64, after some steps along one direction, and that direction, of length 1."""
    w = weights(dtype)
    start = w.detach().double()
    direction = torch.randn(w.shape, generator=generator(1)).to(dtype)
    optimizer = SNGD([w], lr=lr, **options)
    for _ in range(steps):
        w.grad = direction.clone()
        optimizer.step()
    return start - w.detach().double(), direction.double() / direction.double().norm()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_thousand_steps_of_a_thousandth_move_by_one(dtype, capturable, implementation):
    moved, direction = displaced(dtype, 1000, kahan_sum=True, capturable=capturable, **IMPLEMENTATIONS[implementation])
    assert moved.norm() == pytest.approx(1, abs=0.01)
    assert moved @ direction == pytest.approx(1, abs=0.01)
    eps = torch.finfo(dtype).eps  # between neighbours at 1; the buffer holds at most half of it, to as many digits
    assert (moved - direction).abs().max() <= eps / 2 + 1000 * eps**2 / 8


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rounding_to_nearest_loses_them_all(implementation):
    moved, _ = displaced(torch.bfloat16, 1000, **IMPLEMENTATIONS[implementation])
    assert moved.norm() == 0


@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"momentum": 0.9, "normalize": "momentum"}], ids=["sngm", "nsgd"]
)
def test_momentum_moves_as_far_as_in_float32(options):
    moved, direction = displaced(torch.bfloat16, 500, kahan_sum=True, **options)
    expected, _ = displaced(torch.float32, 500, **options)
    # the momentum itself is rounded: to 2⁻⁹ of it in every step, which adds up to 2⁻⁹ / (1 − 0.9)
    assert moved @ direction == pytest.approx((expected @ direction).item(), rel=2**-9 / 0.1 + 0.005)


@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(HALVES), skip=st.sampled_from([None, False, True]))
def test_weight_and_buffer_add_up_to_the_weight_that_is_meant(seed, dtype, skip):
    draws = generator(seed)
    w = torch.randn(50, generator=draws).to(dtype)
    meant, dropped = w.double(), torch.zeros_like(w)
    many = [w.clone()], [dropped.clone()]
    skip = None if skip is None else torch.tensor(skip)
    for _ in range(20):
        step = 10 ** (-4 * torch.rand((), generator=draws)) * torch.randn(50, generator=draws)
        single_tensor_kahan_sub_(w, step, dropped, skip)
        foreach_kahan_sub_(many[0], [step], many[1], skip)
        assert torch.equal(w, many[0][0])
        assert torch.equal(dropped, many[1][0])
        meant = meant if skip is not None and skip else meant - step.double()
    resolution = torch.finfo(dtype).eps  # of a buffer that holds half a unit in the last place of the weight
    error = (w.double() + dropped.double() - meant).abs()
    assert (error <= 20 * (resolution**2 + 2.0**-24) * (w.double().abs() + 1)).all()


@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(HALVES),
    entries=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    longest=st.integers(1, 60),
)
def test_so_they_do_for_many_weights_in_batches(seed, dtype, entries, longest):
    draws = generator(seed)
    ws = [torch.randn(2, count, generator=draws).to(dtype) for count in entries]
    ws.append(torch.randn(6, 4, generator=draws).to(dtype).mT)  # has another order in memory
    meant, dropped = [w.double() for w in ws], [torch.zeros_like(w) for w in ws]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_LENGTH", longest)
        for _ in range(20):
            vectors = [torch.randn(w.shape, generator=draws).to(dtype) for w in ws]
            alpha = -(10.0 ** -(4 * torch.rand((), generator=draws).item()))
            kahan_add_(ws, vectors, dropped, alpha)
            meant = [m + alpha * v.double() for m, v in zip(meant, vectors, strict=True)]
    resolution = torch.finfo(dtype).eps
    for w, k, m in zip(ws, dropped, meant, strict=True):
        assert ((w.double() + k.double() - m).abs() <= 20 * (resolution**2 + 2.0**-24) * (w.double().abs() + 1)).all()
        assert (k.double().abs() <= 0.5 * resolution * w.double().abs().clamp(min=torch.finfo(dtype).tiny)).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("sizes", [[1, 0, 9000, 131_072, 600_000, 7], [10_000] * 120], ids=["different", "alike"])
def test_a_norm_of_many_narrow_entries_is_exact(sizes, equal, dtype):
    """One sum in float32 would be wrong by up to 1.3e-4 for 100,000 equal entries."""
    tensors = [torch.full((n,), 0.1) if equal else torch.randn(n, generator=generator(n)) for n in sizes]
    tensors = [t.to(dtype) for t in tensors]
    exact = torch.cat(tensors).double().norm()
    assert global_norm(tensors).item() == pytest.approx(exact.item(), rel=1e-6)


@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(HALVES))
def test_rounding_by_sums_finds_the_nearest_number(seed, dtype):
    """Also of float16's subnormal numbers; see the docstring for the others."""
    bits = torch.randint(-(2**31), 2**31, (10_000,), generator=generator(seed)).to(torch.int32)
    x, info = bits.view(torch.float32), torch.finfo(dtype)
    x = x[(x.abs() >= info.tiny) & (x.abs() <= min(info.max, 5e33))]
    if dtype is torch.float16:
        x = torch.cat([x, (torch.rand(1000, generator=generator(seed)) - 0.5) * 4 * info.tiny])
    rounded, nearest = rounded_by_sums(x, dtype), x.to(dtype).float()
    assert torch.equal(rounded.to(dtype).float(), rounded)
    assert torch.equal((rounded - x).abs(), (nearest - x).abs())


def test_rounding_by_sums_keeps_what_is_too_large_or_not_finite():
    x = torch.tensor([6e33, -3e38, torch.inf, torch.nan])
    assert_close(rounded_by_sums(x, torch.bfloat16), x, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("foreach", [None, False])
def test_long_weights_are_never_converted_as_a_whole(foreach, monkeypatch):
    """The loop gets them in pieces, and ``kahan_add_`` cuts them itself."""
    monkeypatch.setattr(pieces, "_LENGTH", 1000)
    scratch = kahan._Scratch()
    monkeypatch.setattr(kahan, "_scratch", scratch)
    w = nn.Parameter(torch.ones(5000, dtype=torch.bfloat16))
    w.grad = torch.ones_like(w)
    sizes = []
    name = "_single_tensor_sngd" if foreach is False else "_foreach_sngd"
    step = getattr(implementations, name)
    monkeypatch.setattr(implementations, name, lambda **a: sizes.append(len(a["params"][0])) or step(**a))
    SNGD([w], kahan_sum=True, foreach=foreach).step()
    assert sizes == ([1000] * 5 if foreach is False else [5000])
    assert {*scratch._known} == (set() if foreach is False else {((1000,),)})


def test_memory_is_used_again_and_little_is_kept(monkeypatch):
    scratch = kahan._Scratch()
    monkeypatch.setattr(kahan, "_scratch", scratch)
    for size in range(1, 100):
        for _ in range(3):
            added([torch.ones(size)] * size)
    (rows,) = {place.row.untyped_storage().data_ptr() for places in scratch._known.values() for place in places}
    assert rows == scratch._rows.data_ptr()
    assert scratch._tensors == 99 * 100 / 2 == sum(map(len, scratch._known))
    added([torch.ones(1)] * 3000)
    added([torch.ones(2)] * 3000)  # more than may be kept: the first ones go
    assert scratch._tensors == 3000 == sum(map(len, scratch._known))
    added([torch.ones(1)] * 8193)
    added([torch.ones(1, 2**20).expand(2, -1).contiguous().mT])  # cannot be cut, and has its own memory
    assert scratch._tensors == 3000
    assert scratch._rows.numel() == 2 * 2**19


def added(ws):
    lists = [[w.bfloat16() for w in ws] for _ in range(3)]
    kahan_add_(*lists, 0.25)
    assert all(w.eq(2.25).all() for w in lists[0])


def test_steps_of_several_threads_at_once_are_the_steps_alone():
    def stepped(seed):
        w = weights(torch.bfloat16, 100_000)
        optimizer = SNGD([w], kahan_sum=True)
        draws = generator(seed)
        for _ in range(20):
            w.grad = torch.randn(w.shape, generator=draws).bfloat16()
            optimizer.step()
        return w.detach()

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(stepped, range(8)))
    for seed, w in enumerate(together):
        assert torch.equal(w, stepped(seed))


def test_a_step_in_inference_mode_leaves_others_as_they_are(monkeypatch):
    monkeypatch.setattr(kahan, "_scratch", kahan._Scratch())
    w, v, k = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.bfloat16).clone()
    with torch.inference_mode():
        kahan_add_([w], [v], [k], -0.5)
    kahan_add_([w], [v], [k], -0.25)
    assert w.tolist() == [0.25, 1.25, 2.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_wider_weights_have_no_buffer_and_step_the_same(dtype):
    finals = []
    for kahan_sum in (False, True):
        w = nn.Parameter(torch.ones(5, dtype=dtype))
        optimizer = SNGD([w], kahan_sum=kahan_sum)
        w.grad = torch.arange(5).to(dtype)
        optimizer.step()
        assert not optimizer.state[w]
        finals.append(w.detach())
    assert torch.equal(*finals)


def test_so_it_is_for_a_wider_weight_beside_a_narrow_one():
    params = [weights(torch.bfloat16), weights(torch.float32)]
    optimizer = SNGD(params, kahan_sum=True)
    for w in params:
        w.grad = torch.ones_like(w)
    optimizer.step()
    assert "kahan_buffer" in optimizer.state[params[0]]
    assert "kahan_buffer" not in optimizer.state[params[1]]


def test_the_buffer_costs_as_much_as_the_weights_and_is_saved():
    def trained(w, optimizer, first, last):
        for step in range(first, last):
            w.grad = torch.randn(w.shape, generator=generator(step)).to(w.dtype)
            optimizer.step()

    w = weights(torch.bfloat16)
    optimizer = SNGD([w], lr=1e-3, kahan_sum=True)
    trained(w, optimizer, 0, 50)
    (state,) = optimizer.state_dict()["state"].values()
    assert {name: t.nbytes for name, t in state.items()} == {"kahan_buffer": w.nbytes}
    file = io.BytesIO()
    torch.save({"w": w.detach(), "optimizer": optimizer.state_dict()}, file)
    trained(w, optimizer, 50, 100)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = nn.Parameter(saved["w"])
    fresh = SNGD([resumed], lr=7.0)
    fresh.load_state_dict(saved["optimizer"])
    trained(resumed, fresh, 50, 100)
    assert torch.equal(resumed, w)


# --- autocast


@pytest.mark.parametrize("variant", [{}, {"momentum": 0.9, "weight_decay": 0.01}], ids=["plain", "momentum"])
def test_a_step_inside_autocast_is_the_step_outside(variant):
    finals = []
    for inside in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = SNGD(model.parameters(), lr=0.1, **variant)
        for step in range(3):
            x = torch.randn(16, 6, generator=generator(step))
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).square().mean()
            loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                optimizer.step()
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
        finals.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(*finals)


# --- loss scaling

VARIANTS = {
    "plain": {},
    "sngm": {"momentum": 0.9},
    "decay": {"weight_decay": 0.1},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "capped": {"max_scale": 0.05},
    "nsgd-momentum": {"momentum": 0.9, "normalize": "momentum"},
    "nsgd-momentum, capped, decay": {"momentum": 0.9, "normalize": "momentum", "max_scale": 0.05, "weight_decay": 0.1},
}


def trained(scaler, options, dtype=torch.float32, wrap=lambda optimizer: optimizer, accumulate=1, unscale=False):
    """Weights and optimizer after some steps under a GradScaler (None: without one)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    optimizer = wrap(SNGD(model.parameters(), lr=0.05, **options))
    for step in range(6):
        optimizer.zero_grad()
        for x in torch.randn(16, 6, generator=generator(step)).to(dtype).chunk(accumulate):
            loss = model(x).square().mean() / accumulate
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            optimizer.step()
        else:
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    return nn.utils.parameters_to_vector(model.parameters()).detach(), optimizer


def scaler(scale, **options):
    return torch.amp.GradScaler("cpu", init_scale=scale, **options)


@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 2.0**16, 12345.6])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_step_is_the_same_at_every_loss_scale(variant, implementation, scale):
    options = {**VARIANTS[variant], **IMPLEMENTATIONS[implementation]}
    expected, plain = trained(None, options)
    scaled, optimizer = trained(scaler(scale), options)
    assert_close(scaled, expected, rtol=1e-5, atol=1e-6)
    assert_close(optimizer.last_norm, plain.last_norm, rtol=1e-5, atol=0)
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_scale_that_grows_between_steps_changes_nothing(variant):
    growing = scaler(1.0, growth_interval=1, growth_factor=4.0)
    scaled, _ = trained(growing, VARIANTS[variant])
    assert growing.get_scale() == 4.0**6
    assert_close(scaled, trained(None, VARIANTS[variant])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_unscaled_beforehand_are_not_unscaled_again(variant):  # as for a look at the gradients
    scaled, _ = trained(scaler(2.0**16), VARIANTS[variant], unscale=True)
    assert_close(scaled, trained(None, VARIANTS[variant])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_accumulation_under_a_scaler_is_the_whole_batch_without_one(variant):
    scaled, _ = trained(scaler(2.0**16), VARIANTS[variant], accumulate=4)
    assert_close(scaled, trained(None, VARIANTS[variant])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_float16_gradients_below_its_smallest_number_need_the_scale_only(variant, implementation):
    """True gradients near 1e-9 exist in float16 only while they are scaled; the step must not lose them again."""
    w = nn.Parameter(torch.ones(4, dtype=torch.float16))
    options = {**VARIANTS[variant], "weight_decay": 0.0, **IMPLEMENTATIONS[implementation]}
    optimizer = SNGD([w], lr=0.5, **({**options, "max_scale": 1e10} if "max_scale" in options else options))
    scaling = scaler(2.0**24)
    scaling.scale((w.float() * torch.tensor([3e-9, 4e-9, 0.0, 0.0])).sum()).backward()
    scaling.step(optimizer)
    assert_close((1 - w.detach()).float(), torch.tensor([0.3, 0.4, 0, 0]), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_scaler_that_found_inf_makes_the_step_wait(implementation, capturable):
    w = nn.Parameter(torch.ones(3))
    optimizer = SNGD([w], lr=0.5, momentum=0.5, capturable=capturable, **IMPLEMENTATIONS[implementation])
    scaling = scaler(2.0**10)
    for factor, length in ((torch.inf, 0.0), (1.0, 0.5)):
        optimizer.zero_grad()
        before = w.detach().clone()
        scaling.scale(factor * w.sum()).backward()
        scaling.step(optimizer)
        scaling.update()
        assert (w.detach() - before).norm().item() == pytest.approx(length)
        assert scaling.get_scale() == 2.0**9  # halved by the first, kept by the second
        assert optimizer.skipped_steps == 1
    assert not hasattr(optimizer, "grad_scale")


def test_an_inf_that_only_the_scaler_saw_counts():  # another rank's, say: here all gradients are finite
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    optimizer = SNGD([w])
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(w, torch.ones(3))
    assert optimizer.skipped_steps == 1


def test_a_disabled_scaler_does_nothing():
    assert torch.equal(trained(scaler(2.0, enabled=False), {})[0], trained(None, {})[0])


def test_perturbed_steps_under_a_scaler_as_without():
    def noisy(optimizer):
        return Perturbed(optimizer, std=0.01, every=2, generator=generator(5))

    scaled, _ = trained(scaler(2.0**16), {}, wrap=noisy)
    assert_close(scaled, trained(None, {}, wrap=noisy)[0], rtol=1e-5, atol=1e-6)


def test_a_state_dict_taken_between_scaled_steps_resumes():
    options = VARIANTS["nsgd-momentum"]
    w = nn.Parameter(torch.ones(3))
    optimizer, scaling = SNGD([w], **options), scaler(2.0**10)

    def step(w, optimizer, scaling, factor):
        optimizer.zero_grad()
        scaling.scale((w * torch.tensor([1.0, 2.0, factor])).sum()).backward()
        scaling.step(optimizer)
        scaling.update()

    step(w, optimizer, scaling, 3.0)
    saved = copy.deepcopy((w.detach(), optimizer.state_dict(), scaling.state_dict()))
    step(w, optimizer, scaling, -1.0)
    again = nn.Parameter(saved[0])
    fresh, rescaling = SNGD([again]), scaler(1.0)
    fresh.load_state_dict(saved[1])
    rescaling.load_state_dict(saved[2])
    step(again, fresh, rescaling, -1.0)
    assert torch.equal(again, w)
