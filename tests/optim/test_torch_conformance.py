"""What torch's own test suite asks of every optimizer in ``torch.optim``, asked of SNGD.

SNGD is described to torch's ``OptimizerInfo``, as torch describes its own, and the properties of torch's
``test/test_optim.py`` are run on every configuration of that description. Left out, and why:

* groups equal to several optimizers: one norm spans all groups, so a step of one group depends on the others' gradients
  (what a group keeps to itself, its lr and options, is tested);
* ``differentiable``: a skipped step has no derivative, and torch's fused and foreach paths have none either;
* sparse gradients (Rosenbrock): refused with an error, which is tested; an uncoalesced gradient has no norm yet;
* defaults switching to foreach on CUDA: SNGD's default is the quickest implementation, on the CPU too;
* state["step"] as a number: SNGD counts no steps;
* tensors of 2³² entries, several GPUs: no such machine runs these tests.
"""

import copy
import functools
import gc
import pickle
import re
import warnings
from itertools import product

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing import assert_close
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
    optim_db,
)
from torch.testing._internal.common_utils import TestCase

from sngd import SNGD

# common_utils forbids the whole process to set cuDNN's flags outside of a with block, as sngd.train does
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

TORCHS_SGD = next(info for info in optim_db if info.optim_cls is torch.optim.SGD)


def inputs(device, dtype=None):  # noqa: ARG001
    configurations = {
        "default": {},
        "lr": {"lr": 1e-2},
        "tensor lr": {"lr": torch.tensor(1e-3)},
        "decay": {"weight_decay": 0.5},
        "capped": {"max_scale": 0.02},
        "maximize, decay": {"maximize": True, "weight_decay": 0.1},
        "sngm": {"momentum": 0.9},
        "sngm, decay": {"momentum": 0.9, "weight_decay": 0.1},
        "nsgd-momentum": {"momentum": 0.9, "normalize": "momentum"},
        "kahan": {"kahan_sum": True, "momentum": 0.5},
        "capturable": {"capturable": True, "momentum": 0.9},
    }
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in configurations.items()]


def error_inputs(device, dtype):
    shared = [  # SNGD names the shape of a bad lr, and so words it differently
        error
        for error in get_error_inputs_for_all_optims(device, dtype)
        if error.optimizer_error_input.desc != "Tensor lr must be 1-element"
    ]
    ours = OptimizerInput(params=None, kwargs={"lr": torch.ones(2)}, desc="two learning rates")
    return [*shared, ErrorOptimizerInput(ours, error_type=ValueError, error_regex="lr must be .* one-element tensor")]


SNGDS = OptimizerInfo(
    SNGD,
    optim_inputs_func=inputs,
    optim_error_inputs_func=error_inputs,
    scheduler_inputs=TORCHS_SGD.scheduler_inputs,
    supported_impls=("foreach", "fused"),
    not_og_supported_flags=("foreach", "fused", "maximize", "capturable", "kahan_sum"),
    supports_fused_on=("cpu", "cuda"),
    has_capturable_arg=True,
)
IMPLEMENTATIONS = {"loop": {"foreach": False}, **{flag: {flag: True} for flag in SNGDS.supported_impls}}
assert_same = functools.partial(TestCase().assertEqual, rtol=0, atol=0)  # nested dicts of tensors too


@pytest.fixture(params=product(inputs("cpu"), IMPLEMENTATIONS), ids=lambda pair: f"{pair[0].desc}-{pair[1]}")
def options(request):
    """Keyword arguments for SNGD: every configuration in every implementation."""
    described, implementation = request.param
    return copy.deepcopy({**described.kwargs, **IMPLEMENTATIONS[implementation]})


@pytest.fixture(params=inputs("cpu"), ids=lambda i: i.desc)
def configuration(request):
    """Keyword arguments for SNGD, the implementation left to the test."""
    return copy.deepcopy(request.param.kwargs)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def affine(contiguous=True):
    """The torch suite's small problem, (weight · x + bias)²: parameters and closure(optimizer)."""
    if contiguous:
        weight, bias = nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(10))
    else:
        weight, bias = nn.Parameter(torch.randn(10, 5, 2)[..., 0]), nn.Parameter(torch.randn(10, 2)[..., 0])
        assert not weight.is_contiguous()
    x = torch.randn(5)

    def closure(optimizer):
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss

    return [weight, bias], closure


def descends(optimizer, closure, schedulers=(), maximize=False):
    """Whether twenty steps change the loss in the right direction."""
    before = closure(optimizer).item()
    for _ in range(20):
        loss = optimizer.step(functools.partial(closure, optimizer))
        for scheduler in schedulers:
            scheduler.step(*([loss.item()] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    after = closure(optimizer).item()
    return after > before if maximize else after < before


def copies(params):
    return [nn.Parameter(p.detach().clone()) for p in params]


# --- the step


def test_the_description_leaves_the_implementation_to_the_tests():
    for described in inputs("cpu"):
        assert not {"foreach", "fused", "differentiable"} & set(described.kwargs)


@pytest.mark.parametrize("error", error_inputs("cpu", torch.float32), ids=lambda e: e.optimizer_error_input.desc)
def test_errors(error):
    bad = error.optimizer_error_input
    params = bad.params if bad.params is not None else [nn.Parameter(torch.ones(1))]
    raised = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    with raised(error.error_type, match=error.error_regex):
        SNGD(params, **bad.kwargs)


@pytest.mark.parametrize("contiguous", [True, False])
def test_goes_in_the_right_direction(options, contiguous):
    params, closure = affine(contiguous)
    assert descends(SNGD(params, **options), closure, maximize=options.get("maximize", False))


@pytest.mark.parametrize("constructors", SNGDS.scheduler_inputs)
def test_goes_in_the_right_direction_under_torchs_combinations_of_schedulers(configuration, constructors):
    params, closure = affine()
    optimizer = SNGD(params, foreach=False, **configuration)
    schedulers = [constructor(optimizer) for constructor in constructors]
    assert descends(optimizer, closure, schedulers, configuration.get("maximize", False))


@pytest.mark.parametrize("constructors", SNGDS.scheduler_inputs)
def test_groups_go_in_the_right_direction_under_schedulers(constructors):
    (weight, bias), closure = affine()
    optimizer = SNGD([{"params": [weight]}, {"params": [bias], "lr": 0.01}])
    assert descends(optimizer, closure, [constructor(optimizer) for constructor in constructors])


def test_groups_with_and_without_weight_decay(options):
    (weight, bias), closure = affine()
    optimizer = SNGD([{"params": [weight], **options}, {"params": [bias], **options, "weight_decay": 0.0}])
    assert descends(optimizer, closure, maximize=options.get("maximize", False))


def test_a_group_with_almost_no_lr_stays(options):
    params, closure = affine()
    still = nn.Parameter(torch.randn(2))
    start = still.detach().clone()
    optimizer = SNGD([{"params": params, "lr": 1e-2, **options}, {"params": [still]}], lr=1e-28)

    def with_still(optimizer):
        loss = closure(optimizer)
        still.grad = torch.rand_like(still)
        return loss

    assert descends(optimizer, with_still, maximize=options.get("maximize", False))
    assert torch.equal(still, start)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_tensor_lr_is_a_float_lr(options, shape):
    params, closure = affine()
    theirs = copies(params)
    ours = SNGD(params, **{**options, "lr": 1e-3})
    other = SNGD(theirs, **{**options, "lr": torch.full(shape, 1e-3, dtype=torch.float64)})
    for _ in range(5):
        closure(ours)
        for p, q in zip(params, theirs, strict=True):
            q.grad = p.grad.clone()
        ours.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, theirs, strict=True))


def test_complex_parameters_beside_real_ones_step_as_pairs_of_reals(options):
    params = [
        nn.Parameter(torch.randn(s, dtype=d))
        for s, d in (((10, 5), torch.complex64), (10, torch.complex64), (4, torch.float32))
    ]
    reals = [nn.Parameter(_as_real(p).detach().clone()) for p in params]
    ours, theirs = SNGD(params, **options), SNGD(reals, **options)
    for _ in range(3):
        for p, r in zip(params, reals, strict=True):
            p.grad = torch.randn_like(p)
            r.grad = _as_real(p.grad).clone()
        ours.step()
        theirs.step()
    for p, r in zip(params, reals, strict=True):
        assert_close(_as_real(p), r)


def test_a_complex_parameter_equals_its_real_and_imaginary_parts(options):
    z = nn.Parameter(torch.randn(2, dtype=torch.complex64))
    x, y = nn.Parameter(z.real.detach().clone()), nn.Parameter(z.imag.detach().clone())
    ours, theirs = SNGD([z], **options), SNGD([x, y], **options)
    for _ in range(3):
        for optimizer, point in ((ours, lambda: z), (theirs, lambda: torch.complex(x, y))):
            optimizer.zero_grad()
            a, b = point()
            ((1 - a) ** 2 + 100 * (b - a**2) ** 2).abs().backward()
        ours.step()
        theirs.step()
        assert_close(z.real, x.data, rtol=1e-4, atol=1e-5)
        assert_close(z.imag, y.data, rtol=1e-4, atol=1e-5)


def _as_real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def test_sparse_gradients_are_refused():
    w = nn.Parameter(torch.ones(2, 2))
    w.grad = torch.eye(2).to_sparse()
    with pytest.raises(RuntimeError, match="SNGD does not support sparse gradients"):
        SNGD([w]).step()


def test_nothing_moves_without_gradients(options):
    params = [torch.randn(2, 3) for _ in range(2)]
    before = [p.clone() for p in params]
    assert SNGD(params, **options).step(lambda: 1.0) == 1.0
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_nothing_moves_on_zero_gradients(options):
    w = nn.Parameter(torch.randn(5, 1))
    before = w.detach().clone()
    w.grad = torch.zeros_like(w)
    SNGD([w], **{**options, "weight_decay": 0.0}).step()
    assert torch.equal(w, before)


def test_meta_parameters_step_without_data():  # torch's foreach does; its fused kernels cannot
    with torch.device("meta"):
        model = nn.Linear(2, 3)
    optimizer = SNGD(model.parameters(), fused=True, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.rand_like(p)
    optimizer.step()
    assert optimizer.last_norm.is_meta


def test_there_is_no_differentiable():
    with pytest.raises(TypeError, match="differentiable"):
        SNGD([nn.Parameter(torch.ones(1))], differentiable=True)


# --- implementations


@pytest.mark.parametrize("layout", ["gaps", "transposed", "channels last", "channels last, contiguous gradient"])
def test_implementations_match_the_loop_whatever_the_memory_layout(configuration, layout):
    def trained(**implementation):
        torch.manual_seed(2)
        whole = torch.randn(2, 3, 4, 5, 2)  # the parameter is a view of it
        view = {"gaps": whole[..., 0], "transposed": whole[..., 0].contiguous().transpose(1, 2)}.get(layout)
        if view is None:
            view = whole[..., 0].contiguous(memory_format=torch.channels_last)
        w = nn.Parameter(view)
        gaps = whole[..., 1].clone()
        optimizer = SNGD([w], **copy.deepcopy(configuration), **implementation)
        for _ in range(3):
            w.grad = torch.randn(w.shape)
            if layout == "channels last":
                w.grad = w.grad.contiguous(memory_format=torch.channels_last)
            optimizer.step()
        assert torch.equal(whole[..., 1], gaps)
        return w.detach()

    expected = trained(foreach=False)
    for implementation in ({"foreach": True}, {"fused": True}, {}):
        assert_close(trained(**implementation), expected)


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("foreach", torch.float64), *product(["fused"], [torch.float64, torch.float32, torch.bfloat16, torch.float16])],
    ids=str,
)
def test_implementations_match_the_loop(configuration, implementation, dtype):
    x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=dtype).reshape(3, 2)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()).to(dtype)
    scalar, empty = nn.Parameter(torch.rand((), dtype=dtype)), nn.Parameter(torch.empty(0, 3, dtype=dtype))
    scalar.grad, empty.grad = torch.rand_like(scalar), torch.rand_like(empty)
    module = nn.ModuleDict({"model": model, "others": nn.ParameterList([scalar, empty])})
    runs = []
    for flag in (False, True):
        twin = copy.deepcopy(module)
        others = list(twin["others"])
        for p, original in zip(others, (scalar, empty), strict=True):
            p.grad = original.grad.clone()
        # foreach=False is the loop; fused alone says nothing about foreach
        flags = {implementation: True} if flag else {"foreach": False}
        options = copy.deepcopy(configuration)
        runs.append((twin, SNGD([*twin["model"].parameters(), *others], **options, **flags)))
    for step in range(7):
        for twin, optimizer in runs:
            twin["model"].zero_grad()
            twin["model"][2].requires_grad_(step not in (3, 4))  # a layer frozen for two steps
            if step != 2:  # and a step without gradients
                twin["model"](x).sum().backward()
            optimizer.step()
        (loop, first), (other, second) = runs
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(dtype)  # an ulp, for one may round the other way
        for p, q in zip(loop.parameters(), other.parameters(), strict=True):
            assert_close(q, p, rtol=tolerance, atol=tolerance)
            assert first.state[p].keys() == second.state[q].keys()
            for name in first.state[p]:
                if name != "kahan_buffer":  # if one rounded the other way, so do they
                    assert_close(second.state[q][name], first.state[p][name], rtol=tolerance, atol=tolerance)
            with torch.no_grad():  # from the same point again, as in torch's suite
                q.copy_(p)
                for name in first.state[p]:
                    second.state[q][name].copy_(first.state[p][name])


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_default_dtype_does_not_matter(configuration, default):
    def trained():
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(6, dtype=torch.float32))
        optimizer = SNGD([w], **copy.deepcopy(configuration))
        for _ in range(3):
            w.grad = torch.randn(6, dtype=torch.float32)
            optimizer.step()
        return w.detach()

    expected = trained()
    torch.set_default_dtype(default)
    try:
        assert torch.equal(trained(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "lists"),  # torch allows its own one list of intermediates more, and two to some
    [
        ({}, 0),
        ({"momentum": 0.9}, 1),
        ({"momentum": 0.9, "weight_decay": 0.1}, 2),  # a second for g + λw
        ({"momentum": 0.9, "normalize": "momentum"}, 2),  # for m
        ({"momentum": 0.9, "capturable": True}, 2),  # for what the step leaves if it is skipped
    ],
    ids=str,
)
def test_foreach_needs_little_more_memory_than_the_loop(options, lists):
    params = [torch.rand(64, 64) for _ in range(10)]
    for p in params:
        p.grad = torch.rand_like(p)
    peaks = []
    for foreach in (False, True):
        optimizer = SNGD(params, foreach=foreach, **options)
        optimizer.step()
        peaks.append(_peak_bytes(optimizer.step))
    assert peaks[1] <= peaks[0] + lists * sum(p.nbytes for p in params)


def _peak_bytes(function):
    """Most bytes that the call had allocated at once, beyond those before it."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(profile_memory=True) as profile:
            function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_found_inf_stops_every_implementation(options):  # what a GradScaler sets around its step
    params = [nn.Parameter(torch.ones(1)) for _ in range(5)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = SNGD(params, **options)
    for scale in (None, torch.ones(())):
        optimizer.grad_scale, optimizer.found_inf = scale, torch.ones(())
        optimizer.step()
        assert all(p.item() == 1 for p in params)
    assert optimizer.skipped_steps == 2


# --- state dicts


def test_a_fresh_optimizer_goes_on_from_a_state_dict(options):
    params, closure = affine()
    optimizer = SNGD(params, **options)
    for _ in range(10):
        closure(optimizer)
        optimizer.step()
    twins = copies(params)
    fresh = SNGD(twins, **options)
    state = copy.deepcopy(optimizer.state_dict())
    fresh.load_state_dict(state)
    assert_same(state, optimizer.state_dict())  # loading leaves it as it was
    for _ in range(10):
        closure(optimizer)
        for p, q in zip(params, twins, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        fresh.step()
        assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
    assert_same(optimizer.state_dict(), fresh.state_dict())
    fresh.param_groups.extend(fresh.param_groups)  # a repeated parameter has one place (torch issue 36831)
    assert_same(fresh.state_dict()["param_groups"][-1], optimizer.state_dict()["param_groups"][-1])


@pytest.mark.parametrize(("names", "other_names"), list(product([False, True], repeat=2)))
def test_state_dicts_go_to_and_from_named_parameters(names, other_names, tmp_path):
    params, closure = affine()
    optimizer = SNGD(_named(params, names), momentum=0.9)
    closure(optimizer)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    twins = copies(params)
    fresh = SNGD(_named(twins, other_names))
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    closure(optimizer)
    for p, q in zip(params, twins, strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    fresh.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
    known = fresh.state_dict()["param_groups"][0].get("param_names")
    assert known == (["weight", "bias"] if names or other_names else None)


def _named(params, named):
    return list(zip(("weight", "bias"), params, strict=True)) if named else params


def test_a_state_dict_from_before_the_newer_options_loads(options):
    params, closure = affine()
    optimizer = SNGD(params, **options)
    for _ in range(3):
        closure(optimizer)
        optimizer.step()
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for flag in SNGDS.not_og_supported_flags:
            group.pop(flag, None)
    optimizer.load_state_dict(older)
    closure(optimizer)
    optimizer.step()


def test_saved_and_loaded_with_weights_only_it_is_the_same(options, tmp_path):
    params, closure = affine()
    optimizer = SNGD(params, **options)
    for _ in range(3):
        closure(optimizer)
        optimizer.step()
    state = optimizer.state_dict()
    torch.save(state, tmp_path / "optimizer.pt")
    assert_same(torch.load(tmp_path / "optimizer.pt", weights_only=True), state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_have_every_public_attribute_and_step_alike(options, copied):
    params, closure = affine()
    optimizer = SNGD(params, **options)
    for _ in range(3):
        closure(optimizer)
        optimizer.step()
    twin = copied(optimizer)
    assert _public(twin) == _public(optimizer)
    closure(optimizer)
    for p, q in zip(params, twin.param_groups[0]["params"], strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    twin.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twin.param_groups[0]["params"], strict=True))


def _public(instance):
    return {name for name in vars(instance) if not name.startswith("_")}


def test_no_parameter_has_an_empty_state(options):
    params, closure = affine()
    optimizer = SNGD(params, **options)
    closure(optimizer)
    optimizer.step()
    assert all(len(state) > 0 for state in optimizer.state.values())


def test_it_prints_its_options(options):
    printed = repr(SNGD([nn.Parameter(torch.ones(1))], **options))
    assert printed.startswith("SNGD (")
    assert re.search(rf"normalize: {options.get('normalize', 'gradient')}\n", printed)


def test_a_group_added_later_takes_the_defaults_and_trains():
    (weight, bias), closure = affine()
    optimizer = SNGD([weight], lr=0.02, momentum=0.5)
    closure(optimizer)
    optimizer.step()
    optimizer.add_param_group({"params": [bias], "lr": 0.01})
    added = optimizer.param_groups[1]
    assert (added["lr"], added["momentum"], added["max_scale"]) == (0.01, 0.5, torch.inf)
    before = bias.detach().clone()
    assert descends(optimizer, closure)
    assert not torch.equal(bias, before)


@pytest.mark.cuda
def test_a_state_dict_from_the_cpu_goes_on_on_an_accelerator(configuration):
    params, closure = affine()
    optimizer = SNGD(params, **configuration)
    closure(optimizer)
    optimizer.step()
    there = [nn.Parameter(p.detach().cuda()) for p in params]
    other = SNGD(there, **configuration)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        closure(optimizer)
        for p, q in zip(params, there, strict=True):
            q.grad = p.grad.cuda()
        optimizer.step()
        other.step()
    for p, q in zip(params, there, strict=True):
        assert_close(q.cpu(), p)


# --- hooks


def test_state_dict_hooks_run_before_and_after():
    optimizer = SNGD([nn.Parameter(torch.ones(1))])

    def before(optimizer):
        optimizer.state["note"] = 1

    def after(optimizer, state_dict):  # noqa: ARG001
        return {**state_dict, "noted": state_dict["state"].pop("note")}

    optimizer.register_state_dict_pre_hook(before)
    assert optimizer.state_dict()["state"]["note"] == 1
    optimizer.register_state_dict_post_hook(after)
    state = optimizer.state_dict()
    assert "note" not in state["state"]
    assert state["noted"] == 1


def test_load_state_dict_hooks_run_in_order():
    optimizer = SNGD([nn.Parameter(torch.ones(1))])
    state, seen = optimizer.state_dict(), []

    def in_place(optimizer, state_dict):  # noqa: ARG001
        state_dict["param_groups"][0]["lr"] = 0.002

    def anew(optimizer, state_dict):  # noqa: ARG001
        new = copy.deepcopy(state_dict)
        new["param_groups"][0]["lr"] = 0.003
        return new

    optimizer.register_load_state_dict_pre_hook(in_place)
    optimizer.register_load_state_dict_pre_hook(anew, prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    optimizer.load_state_dict(state)
    assert seen == [0.002]  # `anew` came first


def test_step_hooks_run_in_order_around_the_step():
    w = nn.Parameter(torch.zeros(1))
    w.grad = torch.ones(1)
    optimizer, calls = SNGD([w], lr=1.0), []

    def note(text):
        return lambda optimizer, args, kwargs: calls.append((text, w.item()))  # noqa: ARG005

    handles = [
        register_optimizer_step_pre_hook(note("global before")),
        register_optimizer_step_post_hook(note("global after")),
        optimizer.register_step_pre_hook(note("before")),
        optimizer.register_step_post_hook(note("after")),
    ]
    optimizer.step()
    assert calls == [("global before", 0), ("before", 0), ("after", -1), ("global after", -1)]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(calls) == 4


def test_the_profiler_finds_the_step_by_its_name():
    w = nn.Parameter(torch.ones(1))
    w.grad = torch.ones(1)
    optimizer = SNGD([w])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile() as profile:
            optimizer.step()
            optimizer.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#SNGD.step", "Optimizer.zero_grad#SNGD.zero_grad"} <= names


# --- schedulers

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.3, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=False),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_here():
    assert set(lr_scheduler.__all__) - {"LRScheduler"} <= set(SCHEDULERS)


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_is_as_long_as_the_scheduler_says(name, lr):
    w = nn.Parameter(torch.zeros(7, dtype=torch.float64))
    optimizer = SNGD([w], lr=copy.deepcopy(lr))
    scheduler = SCHEDULERS[name](optimizer)
    lengths = []
    for _ in range(6):
        before = w.detach().clone()
        w.grad = torch.randn_like(w)
        optimizer.step()
        lengths.append((w - before).norm().item())
        assert lengths[-1] == pytest.approx(float(optimizer.param_groups[0]["lr"]), rel=1e-6, abs=1e-12)
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("make", [lr_scheduler.CyclicLR, lr_scheduler.OneCycleLR], ids=lambda c: c.__name__)
def test_schedulers_that_cycle_momentum_find_it(make):
    params, closure = affine()
    optimizer = SNGD(params, momentum=0.9)
    more = {"base_lr": 0.01, "max_lr": 0.1} if make is lr_scheduler.CyclicLR else {"max_lr": 0.1, "total_steps": 30}
    scheduler = make(optimizer, **more, base_momentum=0.5, max_momentum=0.8)
    assert descends(optimizer, closure, [scheduler])
    assert 0.5 <= optimizer.param_groups[0]["momentum"] < 0.8
