"""SNGD in every norm, and in mixtures with an l2 group: what ``test_sngd`` and ``test_extremes`` ask of l2."""

import copy
import io
import math
import pickle
import re
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_extremes import LR, RANGES, exact, exact_norm, random_gradient
from test_sngd import IMPLEMENTATIONS, TOLERANCE, VARIANTS, flat, set_gradients
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from reference.sngd_in_norms import NaiveSNGDInNorms
from sngd import SNGD, StagewiseLR, stages
from sngd.norms import Sign, Spectral, find_norm

SHAPES = [(6, 4), (3, 5), (5,), (), (3, 2, 2, 2), (4, 6)]
L2 = "l2"

# For each tensor its norm; the twin knows those with an exact unit step.
EXACT = {
    "layer": ["layer"] * 6,
    "sign": ["sign"] * 6,
    "spectral, svd": ["spectral(coefficients=svd)"] * 6,
    "row": ["row"] * 6,
    "col": ["col"] * 6,
    "bare row": ["row(scaled=False)"] * 6,
    "row with l2": ["row", L2, L2, "row", L2, "row"],
    "all": ["spectral(coefficients=svd)", "row(table=True)", L2, L2, "layer", "col"],
}
ITERATED = {
    "spectral": ["spectral"] * 6,
    "polar express": ["spectral(coefficients=polar-express)"] * 6,
    "spectral, sign, l2": ["spectral", "sign(scaled=False)", L2, "sign", "spectral", L2],
}
MIXTURES = EXACT | ITERATED

mixture = pytest.mark.parametrize("mixture", MIXTURES)
implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def parameters(dtypes=(torch.float64,), shapes=SHAPES, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(shape, generator=draws, dtype=torch.float64).to(dtypes[i % len(dtypes)]))
        for i, shape in enumerate(shapes)
    ]


def optimizer_of(params, mixture, lr=0.05, **options):
    """An optimizer with a group for each norm; the groups' learning rates differ."""
    groups = {}
    for p, norm in zip(params, MIXTURES[mixture], strict=True):
        groups.setdefault(norm, []).append(p)
    return SNGD(
        [{"params": some, "norm": norm, "lr": rate(lr, i)} for i, (norm, some) in enumerate(groups.items())],
        **options,
    )


def rate(lr, i):
    return lr / (i + 1)


def lrs(mixture, lr=0.05):
    norms = list(dict.fromkeys(MIXTURES[mixture]))
    return [rate(lr, norms.index(norm)) for norm in MIXTURES[mixture]]


def run(mixture, options, dtypes=(torch.float64,), steps=20, **more):
    params = parameters(dtypes)
    optimizer = optimizer_of(params, mixture, **options, **more)
    draws = torch.Generator().manual_seed(1)
    for _ in range(steps):
        set_gradients(params, draws)
        optimizer.step()
    return params, optimizer


def spelled(text):
    norm = find_norm(text)
    return norm.name, norm.scaled, norm.table


def arrays(tensors):
    return [t.detach().double().numpy().astype(np.longdouble) for t in tensors]


@cache
def twin(mixture, variant):
    params = parameters()
    norms = [spelled(text) for text in MIXTURES[mixture]]
    naive = NaiveSNGDInNorms(arrays(params), norms, lrs(mixture), **VARIANTS[variant])
    draws = torch.Generator().manual_seed(1)
    for _ in range(20):
        set_gradients(params, draws)
        naive.step(arrays(p.grad for p in params))
    return naive


# --- closed forms and properties


@pytest.mark.parametrize("mixture", EXACT)
@pytest.mark.parametrize(("variant", "implementation"), list(product(VARIANTS, IMPLEMENTATIONS)))
def test_each_implementation_equals_the_naive_twin(variant, implementation, mixture):
    params, optimizer = run(mixture, {**VARIANTS[variant], **IMPLEMENTATIONS[implementation]})
    naive = twin(mixture, variant)
    for ours, true in zip(params, naive.ws, strict=True):
        assert_close(ours.detach(), torch.from_numpy(np.asarray(true, dtype=np.float64)), rtol=1e-9, atol=1e-10)
    assert optimizer.last_norm.item() == pytest.approx(naive.last_norm, rel=1e-9)


def sizes(steps, mixture):
    """The size of a step in each ball."""
    joint = [s for s, norm in zip(steps, MIXTURES[mixture], strict=True) if norm == L2]
    alone = [find_norm(n).size(s).item() for s, n in zip(steps, MIXTURES[mixture], strict=True) if n != L2]
    return alone + ([torch.cat([s.flatten() for s in joint]).norm().item()] if joint else [])


@given(
    lr=st.floats(1e-3, 10),
    size=st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e18, 1e30]),
    seed=st.integers(0, 10_000),
    mixture=st.sampled_from(list(EXACT)),
    implementation=st.sampled_from(list(IMPLEMENTATIONS)),
)
def test_every_step_has_its_length_in_every_ball(lr, size, seed, mixture, implementation):
    params = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    draws = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = size * torch.randn(p.shape, generator=draws)
    optimizer = optimizer_of(params, mixture, lr=lr, **IMPLEMENTATIONS[implementation])
    optimizer.step()
    joint = [rate for rate, norm in zip(lrs(mixture, lr), MIXTURES[mixture], strict=True) if norm == L2]
    alone = [rate for rate, norm in zip(lrs(mixture, lr), MIXTURES[mixture], strict=True) if norm != L2]
    assert sizes([p.detach() for p in params], mixture) == pytest.approx(alone + joint[:1], rel=2e-5)


@pytest.mark.slow
@given(
    mixture=st.sampled_from(list(MIXTURES)),
    c=st.floats(1e-6, 1e6),
    variant=st.sampled_from(["plain", "sngm", "nsgd-momentum"]),
    seed=st.integers(0, 100),
)
def test_scaling_the_loss_changes_nothing(mixture, c, variant, seed):
    ends = []
    for scale in (c, 1.0):
        params = parameters(seed=seed)
        optimizer = optimizer_of(params, mixture, **VARIANTS[variant])
        draws = torch.Generator().manual_seed(seed)
        for _ in range(5):
            for p in params:
                p.grad = scale * torch.randn(p.shape, generator=draws, dtype=p.dtype)
            optimizer.step()
        ends.append(flat(params))
    assert_close(*ends, rtol=1e-7, atol=1e-9)


@implementation
@mixture
def test_the_last_norm_is_the_sum_of_the_duals(mixture, implementation):
    params = parameters()
    set_gradients(params, torch.Generator().manual_seed(1))
    optimizer = optimizer_of(params, mixture, **IMPLEMENTATIONS[implementation])
    optimizer.step()
    norms = MIXTURES[mixture]
    duals = sum(find_norm(n).dual(p.grad).item() for p, n in zip(params, norms, strict=True) if n != L2)
    squares = sum(p.grad.square().sum().item() for p, n in zip(params, norms, strict=True) if n == L2)
    assert optimizer.last_norm.item() == pytest.approx(duals + math.sqrt(squares), rel=1e-9)


@implementation
@pytest.mark.parametrize("beta", [1e-4, 1.0])
@pytest.mark.parametrize("mixture", EXACT)
def test_a_cap_compares_the_dual_norm_of_the_whole(mixture, beta, implementation):
    params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    draws = torch.Generator().manual_seed(3)
    for p in params:
        p.grad = torch.randn(p.shape, generator=draws, dtype=p.dtype)
    optimizer = optimizer_of(params, mixture, max_scale=beta, **IMPLEMENTATIONS[implementation])
    optimizer.step()
    longest = beta * optimizer.last_norm.item()
    length = {n: min(lr, longest) for n, lr in zip(MIXTURES[mixture], lrs(mixture), strict=True)}
    expected = [length[n] for n in MIXTURES[mixture] if n != L2] + ([length[L2]] if L2 in length else [])
    assert sizes([p.detach() for p in params], mixture) == pytest.approx(expected, rel=1e-9)
    assert (longest < min(lrs(mixture))) == (beta < 1)


@implementation
@pytest.mark.parametrize("variant", ["plain", "sngm", "nsgd-momentum", "capped"])
@mixture
def test_a_ball_without_a_gradient_stays_and_the_others_step(mixture, variant, implementation):
    """One tensor's gradient is zero; all of the l2 group's, where there is one."""
    params = parameters((torch.float32,))
    set_gradients(params, torch.Generator().manual_seed(1))
    resting = [i for i, norm in enumerate(MIXTURES[mixture]) if norm == L2] or [1]
    for i in resting:
        params[i].grad.zero_()
    before = [p.detach().clone() for p in params]
    optimizer = optimizer_of(params, mixture, **VARIANTS[variant], **IMPLEMENTATIONS[implementation])
    optimizer.step()
    assert optimizer.skipped_steps == 0
    for i, (p, old) in enumerate(zip(params, before, strict=True)):
        assert torch.equal(p, old) == (i in resting)
        assert p.isfinite().all()


def test_one_group_in_another_norm_leaves_the_l2_ball_as_it_was():
    """The l2 group's step is along its own gradient. Its norm is summed in another order, as over ranks."""
    ends = []
    for others in ([], ["sign"]):
        params = parameters((torch.float32,))
        set_gradients(params, torch.Generator().manual_seed(1))
        groups = [{"params": params[:3]}, *({"params": params[3:], "norm": norm} for norm in others)]
        SNGD(groups, lr=0.05).step()
        ends.append(flat(params[:3]))
    assert_close(*ends, rtol=2e-7, atol=1e-8)


def test_l2_is_the_formula_bit_for_bit():
    params = parameters((torch.float32,))
    set_gradients(params, torch.Generator().manual_seed(1))
    before, norm = [p.detach().clone() for p in params], torch.cat([p.grad.flatten() for p in params]).norm()
    optimizer = SNGD(params, lr=0.5, norm="l2", foreach=False)
    optimizer.step()
    assert optimizer.last_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    for p, old in zip(params, before, strict=True):
        assert torch.equal(p, old - 0.5 * (optimizer.last_norm.reciprocal() * p.grad))


def test_a_schedule_drives_every_group():
    params = parameters((torch.float32,))
    optimizer = optimizer_of(params, "all", lr=1.0)
    schedule = StagewiseLR(optimizer, stages.multistep(1.0, 4, (2,), steps_per_epoch=1))
    for _ in range(3):
        before = [p.detach().clone() for p in params]
        set_gradients(params, torch.Generator().manual_seed(1))
        optimizer.step()
        schedule.step()
    steps = [p.detach() - old for p, old in zip(params, before, strict=True)]
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.1 * rate(1.0, i) for i in range(len(rates))])  # each keeps its part of the plan's
    assert sizes(steps, "all")[0] == pytest.approx(rates[0], rel=1e-4)


def test_step_returns_the_closures_loss_and_works_under_no_grad():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = SNGD([w], lr=0.1, norm="spectral")

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 4
    assert (w < 1).all()


@implementation
@mixture
def test_the_gradient_is_left_as_it_was(mixture, implementation):
    for options in VARIANTS.values():
        params = parameters((torch.float32,))
        set_gradients(params, torch.Generator().manual_seed(3))
        before = [p.grad.clone() for p in params]
        optimizer_of(params, mixture, **options, **IMPLEMENTATIONS[implementation]).step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


@implementation
@mixture
def test_memory_layout_does_not_matter(mixture, implementation):
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        params = parameters((torch.float32,))
        if layout == torch.channels_last:
            params[4] = nn.Parameter(params[4].detach().to(memory_format=layout))
            params[0] = nn.Parameter(params[0].detach().t().contiguous().t())
        optimizer = optimizer_of(params, mixture, momentum=0.9, **IMPLEMENTATIONS[implementation])
        draws = torch.Generator().manual_seed(1)
        for _ in range(4):
            for p in params:
                g = torch.randn(p.shape, generator=draws)
                p.grad = torch.empty_like(p).copy_(g)
            optimizer.step()
        ends.append(flat(params))
    assert_close(*ends, rtol=1e-4, atol=1e-5)


# --- one truth, several implementations

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16,), DTYPES], ids=["float32", "bfloat16", "all"])
@pytest.mark.parametrize("variant", VARIANTS)
@mixture
def test_implementations_equal_the_loop(mixture, variant, dtypes):
    options = VARIANTS[variant]
    truth, _ = run(mixture, {**options, "foreach": False}, dtypes, steps=5)
    for implementation, capturable in (("foreach", False), ("fused", True), ("fused", False), ("default", True)):
        params, _ = run(mixture, options | IMPLEMENTATIONS[implementation], dtypes, steps=5, capturable=capturable)
        for ours, true in zip(params, truth, strict=True):
            # a batched iteration rounds otherwise, five times multiplied; gradients of bfloat16 are the same
            tolerance = 1e-5 if ours.dtype == torch.float32 else TOLERANCE[ours.dtype]
            tolerance = max(tolerance, 1e-9, 0 if len(dtypes) == 1 else 1e-5)
            assert_close(ours, true, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("capturable", [False, True])
@implementation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", ["layer", "sign(scaled=False)", "spectral(coefficients=svd)", "row", "col"])
def test_kahan_sums_keep_what_rounding_drops(norm, dtype, implementation, capturable):
    w = nn.Parameter((torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) + 0.5).to(dtype))
    start = w.detach().double()
    direction = torch.randn(w.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    unit = find_norm(norm).unit(direction).double()
    lr = 1e-4
    optimizer = SNGD([w], lr=lr, norm=norm, kahan_sum=True, capturable=capturable, **IMPLEMENTATIONS[implementation])
    for _ in range(300):
        w.grad = direction.clone()
        optimizer.step()
    error = (start - w.detach().double() - 300 * lr * unit).abs().max()
    eps = torch.finfo(dtype).eps
    assert error <= eps + 300 * eps**2 / 8


# --- nothing to normalize


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("capturable", [False, True])
@implementation
@pytest.mark.parametrize("mixture", ["sign", "row with l2", "all", "spectral, sign, l2"])
def test_a_zero_or_bad_norm_changes_nothing_and_is_counted(mixture, implementation, capturable, bad):
    options = {} if bad == 0 else {"momentum": 0.9, "weight_decay": 0.1}
    params, optimizer = run(mixture, {**options, **IMPLEMENTATIONS[implementation]}, DTYPES, 3, capturable=capturable)
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])
    for place in range(len(params)):
        for p in params:
            p.grad = torch.zeros_like(p) if bad == 0 else torch.ones_like(p)
        params[place].grad.view(-1)[0] = bad
        optimizer.step()
        assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
        for key, buffers in state.items():
            assert torch.equal(optimizer.state_dict()["state"][key]["momentum_buffer"], buffers["momentum_buffer"])
        assert optimizer.skipped_steps == place + 1
    set_gradients(params, torch.Generator().manual_seed(5))
    optimizer.step()
    assert optimizer.skipped_steps == len(params)
    assert not torch.equal(params[0], before[0])


# --- gradients whose squares no float holds


RULES = {
    "plain": {},
    "sngm": {"momentum": 0.9},
    "nsgd-momentum": {"momentum": 0.9, "normalize": "momentum"},
}
EXACT_NORMS = ["layer", "sign", "row", "col(scaled=False)", "spectral(coefficients=svd)"]


@given(
    norm=st.sampled_from(EXACT_NORMS),
    dtype=st.sampled_from(list(RANGES)),
    implementation=st.sampled_from(list(IMPLEMENTATIONS)),
    rule=st.sampled_from(list(RULES)),
    where=st.floats(0, 1),
    cap_exponent=st.one_of(st.none(), st.integers(-60, 60)),
    beside=st.sampled_from([None, 0, 1]),
    capturable=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_a_finite_gradient_of_any_size_takes_its_step(
    norm, dtype, implementation, rule, where, cap_exponent, beside, capturable, seed
):
    """``beside``: a second tensor, in an l2 group, whose gradient is zero or as large as the first's."""
    low, high, tolerance = RANGES[dtype]
    gradient = random_gradient(dtype, round(low + where * (high - low)), seed)
    w, other = (nn.Parameter(torch.zeros(70, dtype=dtype).reshape(shape)) for shape in ((10, 7), (70,)))
    w.grad = gradient.clone().reshape(10, 7)
    groups = [{"params": [w], "norm": norm}]
    if beside is not None:
        other.grad = beside * gradient.clone()
        groups.append({"params": [other]})
    max_scale = math.inf if cap_exponent is None else 10.0**cap_exponent
    options = {"max_scale": max_scale, "capturable": capturable, **RULES[rule], **IMPLEMENTATIONS[implementation]}
    optimizer = SNGD(groups, lr=LR, **options)
    optimizer.step()

    v = exact(gradient) * (1 - np.longdouble(0.9) if rule == "nsgd-momentum" else 1)
    naive = NaiveSNGDInNorms([np.zeros((10, 7)), np.zeros(70)], [spelled(norm), ("l2",)], [LR, LR], max_scale=max_scale)
    naive.step([v.reshape(10, 7), v * (beside or 0)])
    least = torch.finfo(dtype).smallest_normal  # below it entries of the weights are rounded more coarsely
    if dtype == torch.float16 and rule == "nsgd-momentum":  # so are those of a mean of small gradients
        tolerance += 70**0.5 * 3e-8 / float(exact_norm(v))
    assert optimizer.skipped_steps == 0
    if norm == "sign" and where < 0.01:
        return  # an entry that rounds to zero has no sign
    condition = 50 if norm.startswith("spectral") else 5 if norm.startswith(("row", "col")) else 1
    for ours, true in ((w, naive.ws[0]), (other, naive.ws[1])):
        assert exact_norm(exact(ours) - true) <= condition * tolerance * exact_norm(true) + 70 * least


@implementation
@pytest.mark.parametrize("norm", EXACT_NORMS)
@pytest.mark.parametrize("size", [2.0**-1074, 2.0**-149, 1e-30, 1e30, 1e300])
def test_balls_of_very_different_size_step_alike(norm, size, implementation):
    """A ball's step does not depend on the gradient of others: one of size 1 beside one near the dtype's end."""
    dtype = torch.float32 if 2.0**-149 <= size <= 1e38 else torch.float64
    a, b = (nn.Parameter(torch.zeros(4, 3, dtype=dtype)) for _ in range(2))
    draws = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sign()
    draws[0, 0] *= 2
    a.grad, b.grad = draws.to(dtype), (size * draws).to(dtype)
    SNGD([a, b], lr=LR, norm=norm, **IMPLEMENTATIONS[implementation]).step()
    assert_close(a.detach(), b.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # dynamo's own
@pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-20, 1e-14, 1.0, 1e18, 3e38])
@pytest.mark.parametrize("norm", ["row", "spectral"])
def test_where_the_host_is_not_asked_a_step_is_right_or_left_out(size, norm):
    """As on an accelerator. A ball whose gradient has lost its digits stays; nothing becomes nan or goes too far."""
    torch._dynamo.reset()
    a, b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(4))
    a.grad, b.grad = torch.ones(2, 2), torch.full((4,), size)
    optimizer = SNGD([{"params": [a], "norm": norm}, {"params": [b]}], lr=torch.tensor(LR))
    torch.compile(optimizer.step, backend="eager")()
    taken = [find_norm(norm).unit(a.grad).mul(-LR), torch.zeros(2, 2)][optimizer.skipped_steps]
    assert_close(a.detach(), taken, rtol=1e-4, atol=1e-6)
    assert b.tolist() in (pytest.approx([-LR / 2] * 4, rel=1e-5), [0.0] * 4)
    assert (b != 0).all() == (1e-14 <= size <= 1e18)


# --- state


@mixture
def test_resumes_bitwise_from_a_state_dict_saved_safely(mixture):
    options = {"momentum": 0.9, "weight_decay": 0.01}
    whole, _ = run(mixture, options, steps=20)
    params, optimizer = run(mixture, options, steps=10)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in params]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    params = [nn.Parameter(p) for p in saved["params"]]
    optimizer = optimizer_of(params, mixture, lr=7.0)
    optimizer.load_state_dict(saved["optimizer"])
    assert all(str(find_norm(group["norm"])) == group["norm"] for group in optimizer.param_groups)
    draws = torch.Generator().manual_seed(1)
    for step in range(20):
        set_gradients(params, draws)
        if step >= 10:
            optimizer.step()
    assert torch.equal(flat(params), flat(whole))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@mixture
def test_copies_step_as_the_original(mixture, copied):
    params, optimizer = run(mixture, {"momentum": 0.9}, steps=3)
    twin = copied(optimizer)
    others = [p for group in twin.param_groups for p in group["params"]]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    assert torch.equal(twin.last_norm, optimizer.last_norm)
    assert [g["norm"] for g in twin.param_groups] == [g["norm"] for g in optimizer.param_groups]
    set_gradients(own, torch.Generator().manual_seed(9))
    for p, q in zip(own, others, strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    twin.step()
    assert torch.equal(flat(own), flat(others))
    assert params


def test_a_state_saved_before_norms_existed_is_that_of_an_l2_optimizer():
    params, optimizer = run_l2({"momentum": 0.9})
    old = optimizer.state_dict()
    for group in old["param_groups"]:
        del group["norm"]
    fresh = SNGD(params, momentum=0.9)
    fresh.load_state_dict(old)
    assert fresh.param_groups[0]["norm"] == "l2"
    fresh.step()
    other = SNGD(params, momentum=0.9, norm="spectral")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"^the norm of param group 0 is spectral, but the saved one's is 'l2'$"):
        other.load_state_dict(old)
    assert str(other.state_dict()) == str(before)


def test_an_optimizer_pickled_before_norms_existed_has_the_l2_norm():
    _, optimizer = run_l2({"momentum": 0.9})
    state = optimizer.__getstate__()
    state["defaults"] = {k: v for k, v in state["defaults"].items() if k != "norm"}
    state["param_groups"] = [{k: v for k, v in g.items() if k != "norm"} for g in state["param_groups"]]
    old = SNGD.__new__(SNGD)
    old.__setstate__(state)
    assert old.param_groups[0]["norm"] == "l2"
    old.step()


def run_l2(options):
    params = parameters()
    optimizer = SNGD(params, **options)
    set_gradients(params, torch.Generator().manual_seed(1))
    optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("other", ["l2", "sign", "spectral(steps=6)", Spectral(scaled="max")], ids=str)
def test_another_norms_state_is_refused(other):
    params = parameters()
    optimizer = SNGD(params, norm="spectral")
    state = SNGD(params, norm=other).state_dict()
    message = f"the norm of param group 0 is spectral, but the saved one's is {str(other)!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        optimizer.load_state_dict(state)


def test_another_optimizers_state_is_loaded_as_before():
    params = parameters()
    muon_like = torch.optim.SGD(params, lr=0.3, momentum=0.9)
    set_gradients(params, torch.Generator().manual_seed(1))
    muon_like.step()
    optimizer = SNGD(params, norm="spectral", momentum=0.9)
    optimizer.load_state_dict(muon_like.state_dict())
    assert str(optimizer.param_groups[0]["norm"]) == "spectral"
    optimizer.step()


@pytest.mark.parametrize("norm", ["sign", Sign()], ids=["text", "norm"])
def test_groups_take_text_and_norms_and_keep_the_callers_dict(norm):
    group = {"params": [nn.Parameter(torch.zeros(2))], "norm": norm}
    optimizer = SNGD([group])
    assert optimizer.param_groups[0]["norm"] == "sign"
    assert group["norm"] is norm
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "norm": "layer"})
    assert "norm: sign" in repr(optimizer)
    assert "norm: layer" in repr(optimizer)


# --- loss scaling, compilers, devices without numbers


@pytest.mark.parametrize("scale", [2.0**16, 12345.6])
@pytest.mark.parametrize("variant", ["plain", "sngm", "decay", "capped", "nsgd-momentum, capped, decay"])
@mixture
def test_the_step_is_the_same_at_every_loss_scale(mixture, variant, scale):
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=scale)):
        params = parameters((torch.float64,))
        optimizer = optimizer_of(params, mixture, **VARIANTS[variant])
        draws = torch.Generator().manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad()
            loss = sum((p * torch.randn(p.shape, generator=draws, dtype=p.dtype)).sum() for p in params)
            (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        ends.append((flat(params), optimizer.last_norm.item()))
    assert_close(ends[0][0], ends[1][0], rtol=1e-6, atol=1e-7)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-6)


def test_a_scaler_that_found_inf_makes_the_step_wait():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = SNGD([w], lr=0.5, norm="sign", momentum=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for factor, skipped in ((torch.inf, 1), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale(factor * w.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.skipped_steps == skipped
    assert w.tolist() == [[0.75, 0.75], [0.75, 0.75]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("variant", ["sngm", "nsgd-momentum, capped, decay"])
@pytest.mark.parametrize("mixture", ["layer", "sign", "all", "spectral, sign, l2"])
def test_the_whole_step_is_one_graph(mixture, variant):
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        params = parameters(DTYPES)
        optimizer = optimizer_of(params, mixture, lr=torch.tensor(0.05), **VARIANTS[variant])
        set_gradients(params, torch.Generator().manual_seed(1))
        step = (
            torch.compile(lambda o=optimizer: o.step(), backend="eager", fullgraph=True) if compiled else optimizer.step
        )
        for _ in range(2):
            step()
        ends.append((params, optimizer.last_norm.item()))
    for ours, true in zip(ends[1][0], ends[0][0], strict=True):
        tolerance = 2e-2 if ours.dtype == torch.bfloat16 else 1e-4
        assert_close(ours, true, rtol=tolerance, atol=tolerance)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"foreach": False}, {"max_scale": 1.0}, {"capturable": True}]
)
@mixture
def test_a_model_on_the_meta_device_steps_and_is_saved(mixture, options):
    params = [nn.Parameter(torch.zeros(shape, device="meta")) for shape in SHAPES]
    optimizer = optimizer_of(params, mixture, **options)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["skipped_steps"] == 0
    optimizer.load_state_dict(state)


@mixture
def test_numbers_do_not_go_from_device_to_device(mixture):
    """A CUDA graph cannot hold a copy from the host. The meta device has the operations of a GPU, and no numbers."""

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
                assert args[0].device == result.device
            return result

    params = [nn.Parameter(torch.zeros(shape, device="meta")) for shape in SHAPES]
    optimizer = optimizer_of(params, mixture, momentum=0.9, normalize="momentum")
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    with Copies():
        optimizer.step()


# --- mistakes


@implementation
@pytest.mark.parametrize("norm", ["layer", "sign", "spectral", "row", "col"])
def test_complex_parameters_get_a_clear_error_and_stay(norm, implementation):
    z = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    z.grad = torch.ones_like(z)
    message = f"norm {norm} does not support complex parameters, and one of shape (2, 2) is complex64: use norm l2"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        SNGD([z], norm=norm, **IMPLEMENTATIONS[implementation]).step()
    assert (z == 1).all()


@mixture
def test_sparse_gradients_get_a_clear_error(mixture):
    params = parameters()
    set_gradients(params, torch.Generator().manual_seed(0))
    params[0].grad = params[0].grad.to_sparse()
    with pytest.raises(RuntimeError, match="SNGD does not support sparse gradients, and a parameter of shape"):
        optimizer_of(params, mixture).step()


@mixture
def test_weights_without_entries_are_no_obstacle(mixture):
    params = parameters(shapes=[(6, 4), (0, 5), (0,), (), (3, 0, 2, 2), (4, 6)])
    set_gradients(params, torch.Generator().manual_seed(0))
    optimizer = optimizer_of(params, mixture, momentum=0.9)
    optimizer.step()
    assert optimizer.skipped_steps == 0
