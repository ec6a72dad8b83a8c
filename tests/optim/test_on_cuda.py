"""On a GPU a step gives the CPU's results, never waits for the device, and fits into one graph with the gradient."""

import copy

import pytest
import torch
from torch import nn

from sngd import SNGD, RandomIterate, groups

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]

RULES = {
    "sngd": {},
    "sngm": {"momentum": 0.9},
    "nsgd-momentum": {"momentum": 0.9, "normalize": "momentum"},
    "decay": {"weight_decay": 0.1},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "capped": {"max_scale": 0.05},
    "loop": {"foreach": False},
    "foreach": {"foreach": True, "momentum": 0.9},
    "fused": {"fused": True, "momentum": 0.9},
    "sign": {"norm": "sign"},
    "layer": {"norm": "layer", "momentum": 0.9},
    "row": {"norm": "row"},
    "col": {"norm": "col", "momentum": 0.9},
    "spectral": {"norm": "spectral", "momentum": 0.9},
}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 10)).cuda().to(dtype)


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 20, generator=generator).cuda().to(dtype), (torch.arange(32) % 10).cuda()


def backward(model, x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


@pytest.fixture
def waiting_is_an_error():
    """Inside, whatever makes the host wait for the GPU raises a RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode(before)


def test_waiting_is_seen(waiting_is_an_error):
    number = torch.ones((), device="cuda")
    waiting_is_an_error()
    with pytest.raises(RuntimeError, match="synchroniz"):
        number.item()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_never_waits_for_the_gpu(rule, dtype, waiting_is_an_error):
    model, (x, y) = network(dtype), batch(dtype)
    optimizer = SNGD(model.parameters(), lr=0.1, **RULES[rule])
    for step in range(3):
        optimizer.zero_grad()
        backward(model, x, y)
        if step == 1:  # the first one may load kernels
            torch.cuda.synchronize()
            waiting_is_an_error()
        optimizer.step()
    torch.cuda.set_sync_debug_mode("default")
    assert optimizer.skipped_steps == 0
    assert optimizer.last_norm > 0


def test_neither_do_several_norms_a_learning_rate_on_the_gpu_and_a_random_iterate(waiting_is_an_error):
    model, (x, y) = network(), batch()
    optimizer = SNGD(groups(model, 0.01), momentum=0.9, normalize="momentum")
    other = SNGD(network().parameters(), lr=torch.tensor(0.1, device="cuda"))
    iterate = RandomIterate(model.parameters(), torch.Generator().manual_seed(0))
    for step in range(3):
        backward(model, x, y)
        for p, q in zip(other.param_groups[0]["params"], model.parameters(), strict=True):
            p.grad = q.grad.clone()
        if step == 1:
            torch.cuda.synchronize()
            waiting_is_an_error()
        iterate.update(1.0)
        optimizer.step()
        other.step()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "spectral"])  # which is in bfloat16 on a GPU
def test_the_results_are_those_of_the_cpu(rule):
    there, (x, y) = network(), batch()
    here = copy.deepcopy(there).cpu()
    optimizers = [SNGD(model.parameters(), lr=0.1, **RULES[rule]) for model in (there, here)]
    for _ in range(5):
        backward(there, x, y)
        for p, q in zip(here.parameters(), there.parameters(), strict=True):
            p.grad = q.grad.cpu()
        for optimizer in optimizers:
            optimizer.step()
        there.zero_grad()
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "normalize": "momentum"}])
def test_forward_backward_and_step_are_one_graph(options):
    """Captured once and replayed, they lead where single calls lead."""
    models = network(), network()
    x, y = batch()
    lr = torch.tensor(0.1, device="cuda")
    captured, plain = (SNGD(m.parameters(), lr, capturable=True, **options) for m in models)

    side = torch.cuda.Stream()  # capture needs warm kernels and buffers; this step counts, so both models take it
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        backward(models[0], x, y)
        captured.step()
    torch.cuda.current_stream().wait_stream(side)
    backward(models[1], x, y)
    plain.step()

    graph = torch.cuda.CUDAGraph()
    captured.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        backward(models[0], x, y)
        captured.step()
    for _ in range(4):
        graph.replay()
        plain.zero_grad()
        backward(models[1], x, y)
        plain.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
