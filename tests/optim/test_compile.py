"""The step under torch.compile, and captured in a CUDA graph."""

import copy
import logging
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.testing import assert_close

from sngd import SNGD, Perturbed, StagewiseLR, stages
from sngd.norms.global_norm import global_norm
from sngd.norms.norm import inner

VARIANTS = {
    "plain": {},
    "decay, maximize": {"weight_decay": 0.01, "maximize": True},
    "decoupled decay": {"weight_decay": 0.01, "decoupled_weight_decay": True},
    "sngm": {"momentum": 0.9},
    "nsgd-momentum, capped": {"momentum": 0.9, "normalize": "momentum", "max_scale": 0.02},
    "loop": {"momentum": 0.9, "foreach": False},
    "fused": {"momentum": 0.9, "fused": True},
    "kahan": {"kahan_sum": True, "momentum": 0.9},
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # dynamo's own


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    logging.getLogger("torch").setLevel(logging.ERROR)  # it says that it ignores the profiler's name of the step
    yield
    torch._dynamo.reset()


def parameters(dtypes=(torch.float32, torch.float64, torch.bfloat16), device="cpu"):
    draws = torch.Generator().manual_seed(0)
    shapes = (4, 3), (4,), (9,)
    return [
        nn.Parameter(torch.randn(shape, generator=draws).to(device, dtype))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def set_gradients(params, step):
    """Gradients of very unequal size; zero in step 2, and not finite in step 4."""
    draws = torch.Generator().manual_seed(step)
    for p in params:
        g = {2: 0.0, 4: torch.inf}.get(step, 10.0 ** (step % 3 - 1)) * torch.randn(p.shape, generator=draws).abs()
        p.grad = g.to(p.device, p.dtype) if p.grad is None else p.grad.copy_(g)


def pair(make):
    """Two equal optimizers on equal parameters."""
    return [(params, make(params)) for params in (parameters(), parameters())]


def both_step(eager, compiled, step, t):
    """A plain step of one optimizer and the compiled one of the other, with the same gradients."""
    for params, _ in (eager, compiled):
        set_gradients(params, t)
    eager[1].step()
    step()


def assert_equal_state(ours, theirs):
    (params, optimizer), (others, other) = ours, theirs
    for p, q in zip(params, others, strict=True):
        tolerance = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 1.6e-2}[p.dtype]  # float32 lr
        assert_close(q, p, rtol=tolerance, atol=tolerance)
    assert optimizer.skipped_steps == other.skipped_steps


# --- torch.compile


SCHEDULERS = {
    "ExponentialLR": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    "StagewiseLR": lambda optimizer: StagewiseLR(optimizer, stages.multistep(0.05, 7, (2, 5), steps_per_epoch=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "scheduler"), [*((variant, "ExponentialLR") for variant in VARIANTS), ("sngm", "StagewiseLR")]
)
def test_a_compiled_step_is_the_step_and_one_graph_serves_every_lr(variant, scheduler):
    eager, compiled = pair(lambda params: SNGD(params, lr=torch.tensor(0.05), **VARIANTS[variant]))
    schedulers = [SCHEDULERS[scheduler](optimizer) for _, optimizer in (eager, compiled)]
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(compiled[1].step, backend=counter)
    frames = []
    for t in range(8):
        both_step(eager, compiled, step, t)
        for schedule in schedulers:
            schedule.step()
        frames.append(counter.frame_count)
        assert_equal_state(eager, compiled)
        assert_close(compiled[1].last_norm, eager[1].last_norm, rtol=1e-6, atol=0, equal_nan=True, check_dtype=False)
    assert compiled[1].skipped_steps >= 1
    assert frames[0] == 1
    # where the first step makes buffers, the second meets a state that the graph was not made for; no third does
    assert set(frames[1:]) == {2 if compiled[1].state else 1}


@pytest.mark.slow
def test_the_whole_step_is_one_graph():
    params = parameters()
    optimizer = SNGD(params, lr=torch.tensor(0.05), momentum=0.9, weight_decay=0.01)
    set_gradients(params, 0)
    torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
    assert optimizer.last_norm > 0


@pytest.mark.slow
def test_a_float_lr_is_right_but_compiles_anew_when_it_changes():
    """So it is with torch.optim.SGD: the number is part of the graph. Keep lr in a tensor."""
    eager, compiled = pair(lambda params: SNGD(params, lr=0.05))
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(compiled[1].step, backend=counter)
    frames = []
    for t, lr in enumerate([0.05, 0.05, 0.04, 0.03]):
        for params, optimizer in (eager, compiled):
            set_gradients(params, 5 * t)
            optimizer.param_groups[0]["lr"] = lr
        eager[1].step()
        step()
        frames.append(counter.frame_count)
        assert_equal_state(eager, compiled)
    assert frames[0] == frames[1] < frames[2] < frames[3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at the loss's
def test_forward_backward_and_step_compile_together():
    runs = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager")):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        optimizer = SNGD(model.parameters(), lr=torch.tensor(0.05), momentum=0.9)

        @wrap
        def train(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        draws = torch.Generator().manual_seed(1)
        runs.append([train(torch.randn(16, 4, generator=draws)).item() for _ in range(5)])
    assert_close(*runs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_perturbed_compiles_to_the_same_steps():
    def noisy(params):
        return Perturbed(SNGD(params, lr=torch.tensor(0.05)), 0.01, every=2, generator=torch.Generator().manual_seed(3))

    eager, compiled = pair(noisy)
    step = torch.compile(compiled[1].step, backend="aot_eager")
    for t in range(5):
        both_step(eager, compiled, step, t)
        assert_equal_state(eager, compiled)
    assert compiled[1].steps == 5


@pytest.mark.slow
def test_a_compiled_optimizer_saves_and_loads():
    eager, compiled = pair(lambda params: SNGD(params, lr=torch.tensor(0.05), momentum=0.9))
    step = torch.compile(compiled[1].step, backend="aot_eager")
    for t in range(3):
        both_step(eager, compiled, step, t)
    compiled[1].load_state_dict(copy.deepcopy(eager[1].state_dict()))
    both_step(eager, compiled, step, 0)
    assert_equal_state(eager, compiled)


@pytest.mark.slow
def test_inductor_compiles_it():
    eager, compiled = pair(lambda params: SNGD(params, lr=torch.tensor(0.05), momentum=0.9, kahan_sum=True))
    step = by_inductor(compiled[1].step)
    for t in range(6):
        both_step(eager, compiled, step, t)
        assert_equal_state(eager, compiled)


def by_inductor(function):
    def quiet(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            return compiled(*arguments)

    compiled = torch.compile(function)
    return quiet


KAHAN_VARIANTS = {
    "plain": {},
    "sngm": VARIANTS["sngm"],
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},  # two sums in one graph
    "loop": {"foreach": False},
    "sign": {"norm": "sign"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "dtype"), [*((variant, torch.bfloat16) for variant in KAHAN_VARIANTS), ("plain", torch.float16)]
)
def test_what_rounding_drops_is_kept_by_inductor_too(variant, dtype):
    """Its graphs leave out conversions there and back, so that nothing seemed to be dropped."""
    sums = []
    for wrap in (lambda step: step, by_inductor):
        w = nn.Parameter(torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype))
        optimizer = SNGD([w], lr=torch.tensor(0.01), kahan_sum=True, **KAHAN_VARIANTS[variant])
        step, draws = wrap(optimizer.step), torch.Generator().manual_seed(1)
        for _ in range(20):
            w.grad = torch.randn(w.shape, generator=draws).abs().to(dtype)
            step()
        dropped = optimizer.state[w]["kahan_buffer"].double()
        assert dropped.abs().max() > 0
        sums.append(w.detach().double() + dropped)
    digits = (torch.finfo(dtype).eps / 2) ** 2  # of weight and buffer together
    assert (sums[0] - sums[1]).abs().max() <= 20 * digits * sums[0].abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"foreach": False}, {"weight_decay": 0.1, "decoupled_weight_decay": True}])
def test_so_it_is_for_a_weight_of_no_dimension_and_an_lr_in_float64(options):
    """Their product is float64, unlike that of other weights."""
    w = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
    optimizer = SNGD([w], lr=torch.tensor(1e-3, dtype=torch.float64), kahan_sum=True, **options)
    step = by_inductor(optimizer.step)
    expected = 1.0
    for _ in range(20):
        w.grad = torch.ones_like(w)
        step()
        expected = expected * (1 - 1e-3 * options.get("weight_decay", 0)) - 1e-3
    assert w.item() + optimizer.state[w]["kahan_buffer"].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_a_compiled_norm_has_its_gradient():
    """With inductor the gradient of a norm of norms, of rows and of another tensor, was off by a factor of the norm."""
    tensors = [torch.randn(500, 1001, generator=torch.Generator().manual_seed(0)), torch.ones(5)]
    for t in tensors:
        t.requires_grad_()
    expected = tensors[0].detach() / torch.cat([t.detach().flatten() for t in tensors]).norm()
    (found,) = torch.autograd.grad(by_inductor(global_norm)(tensors), tensors[:1])
    assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_a_compiled_inner_product_is_right_for_other_shapes_too():
    """From the second shapes on, sizes are symbols: a comparison of one is neither True nor False."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda ts: inner(ts, ts), fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    for shapes in ([(4, 3), (5,)], [(7, 3), (5,)], [(9, 4), (6,)]):
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        assert_close(compiled(tensors), inner(tensors, tensors), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_hooks_that_come_after_the_first_compiled_step_run_too():
    w = nn.Parameter(torch.ones(8))
    w.grad = torch.ones(8)
    optimizer, calls = SNGD([w], lr=torch.tensor(0.1)), []
    step = torch.compile(optimizer.step, backend="eager")
    step()
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("own")),
        register_optimizer_step_post_hook(lambda *_: calls.append("of all")),
    ]
    step()
    step()
    for handle in handles:
        handle.remove()
    step()
    assert calls == ["own", "of all"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_of_many_entries_keeps_its_digits_under_inductor(dtype):
    """A single sum of so many equal squares was off by a hundredth."""
    tensors = [torch.full((5000, 1000), 0.3).to(dtype), torch.ones(7)]
    exact = sum(t.double().square().sum() for t in tensors).sqrt()
    found = by_inductor(lambda: global_norm(tensors))()
    assert_close(found.double(), exact, rtol=1e-4, atol=0)


# --- CUDA graphs


@pytest.mark.cuda
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "loop"])
def test_a_captured_step_replays_at_the_lr_of_the_moment(variant):
    runs = []
    for captured in (False, True):
        params = parameters(device="cuda")
        lr = torch.tensor(0.05, device="cuda")
        optimizer = SNGD(params, lr=lr, capturable=True, **VARIANTS[variant])
        set_gradients(params, 0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            optimizer.step()  # a warm-up makes the buffers
        torch.cuda.current_stream().wait_stream(side)
        step = optimizer.step
        if captured:
            graph = torch.cuda.CUDAGraph()
            before = [t.clone() for t in [*params, *(b for s in optimizer.state.values() for b in s.values())]]
            with torch.cuda.graph(graph):
                optimizer.step()
            for t, old in zip(
                [*params, *(b for s in optimizer.state.values() for b in s.values())], before, strict=True
            ):
                assert torch.equal(t, old)  # capturing takes no step
            step = graph.replay
        for t in range(1, 6):
            set_gradients(params, t)
            lr.fill_(0.05 / (t + 1))
            step()
        runs.append((params, optimizer))
    assert_equal_state(*runs)
    assert runs[0][1].skipped_steps == runs[1][1].skipped_steps > 0
    assert_close(runs[0][1].last_norm, runs[1][1].last_norm)
