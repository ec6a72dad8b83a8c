import contextlib
import copy
import io
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from reference.stagewise import s_sngd
from sngd.iterates import RandomIterate
from sngd.optim.sngd import SNGD
from sngd.optim.stagewise import StagewiseLR
from sngd.stages import StagePlan

# Each statistical test rejects a correct implementation with this probability; with its fixed seed it never does.
ALPHA = 1e-4
REPETITIONS = 4000


def exactly(message: str) -> str:
    return rf"^{re.escape(message)}$"


def draw_index(weights: list[float], generator: torch.Generator) -> int:
    """Which of the iterates 0, 1, … of a one-number model is drawn."""
    w = torch.zeros(1)
    iterate = RandomIterate([w], generator)
    for index, weight in enumerate(weights):
        w.fill_(index)
        iterate.update(weight)
    iterate.swap()
    return int(w.item())


def assert_drawn_with(weights: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = Counter(draw_index(weights, generator) for _ in range(REPETITIONS))
    likely = [index for index, weight in enumerate(weights) if weight > 0]
    assert set(counts) <= set(likely)
    expected = [REPETITIONS * weights[index] / sum(weights) for index in likely]
    assert stats.chisquare([counts[index] for index in likely], expected).pvalue > ALPHA


# --- Distribution


def test_equal_weights_draw_uniformly():
    assert_drawn_with([1.0] * 12, seed=1)


def test_weights_are_proportions():
    assert_drawn_with([3.0, 0.5, 1.0, 6.0, 2.0, 0.25, 4.0], seed=2)


def test_zero_weights_are_never_drawn():
    assert_drawn_with([0.0, 2.0, 0.0, 1.0, 0.0], seed=3)


@pytest.mark.slow
def test_one_weighted_draw_has_the_law_of_algorithm_2():
    stages = [(0.5, 4, 1.0), (0.25, 2, 3.0), (0.125, 5, 3.5)]
    plan = StagePlan(stages)
    weights = [plan.iterate_weight(step) for step in range(plan.steps)]
    assert_drawn_with(weights, seed=4)

    rng, generator = random.Random(5), torch.Generator().manual_seed(6)
    # With a constant gradient all iterates differ, so the drawn one tells its index.
    position = [0.0]
    for step in range(plan.steps):
        position.append(position[-1] - plan.lr_at(step))
    two_level = Counter(position.index(s_sngd(lambda _: [3.0], [0.0], stages, rng)[1][0]) for _ in range(REPETITIONS))
    single = Counter(draw_index(weights, generator) for _ in range(REPETITIONS))
    table = [[counts[index] for index in range(plan.steps)] for counts in (two_level, single)]
    assert stats.chi2_contingency(table).pvalue > ALPHA


def test_s_sngd_in_an_ordinary_loop_is_algorithm_2():
    stages = [(0.5, 4, 1.0), (0.25, 2, 3.0), (0.125, 5, 3.5)]
    plan = StagePlan(stages)
    w = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = SNGD([w])
    scheduler = StagewiseLR(optimizer, plan)
    iterate = RandomIterate([w], torch.Generator().manual_seed(7))
    visited = []
    for step in range(plan.steps):
        optimizer.zero_grad()
        (w[0] ** 2 / 2 + 5 * w[1] ** 2).backward()
        visited.append(w.tolist())
        iterate.update(plan.iterate_weight(step))
        optimizer.step()
        scheduler.step()
    last, _ = s_sngd(lambda v: [v[0], 10 * v[1]], [2.0, -1.0], stages, random.Random(0))
    assert w.tolist() == pytest.approx(last, abs=1e-12)
    with iterate.swapped():
        assert w.tolist() in visited


# --- Copies and exchange


def mixed_params() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        nn.Parameter(torch.randn(3, 2)),
        nn.Parameter(torch.randn(5).double()),
        torch.randn(4).bfloat16(),
        torch.tensor(7),  # BatchNorm's counter
        nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)),
    ]


def test_swap_exchanges_in_place_and_back():
    params = mixed_params()
    iterate = RandomIterate(params)
    iterate.update()
    drawn = [p.detach().clone() for p in params]
    storages = [p.data_ptr() for p in params]
    with torch.no_grad():
        for p in params:
            p.add_(1)
    live = [p.detach().clone() for p in params]

    def hold(values: list[torch.Tensor]) -> bool:
        return all(torch.equal(p, v) and p.dtype == v.dtype for p, v in zip(params, values, strict=True))

    iterate.swap()
    assert hold(drawn)
    iterate.swap()
    assert hold(live)
    with iterate.swapped():
        assert hold(drawn)
    assert hold(live)
    with contextlib.suppress(KeyError), iterate.swapped():
        raise KeyError
    assert hold(live)
    assert [p.data_ptr() for p in params] == storages


def test_the_copy_follows_later_draws_of_mixed_tensors():
    params = mixed_params()
    iterate = RandomIterate(params)
    iterate.update(1e-300)
    with torch.no_grad():
        for p in params:
            p.add_(1)
    iterate.update(1e300)  # drawn with probability 1 − 1e-600
    drawn = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p in params:
            p.zero_()
    iterate.swap()
    assert all(torch.equal(p, v) for p, v in zip(params, drawn, strict=True))


def test_a_tensor_given_twice_is_exchanged_once():
    w = torch.zeros(2)
    iterate = RandomIterate([w, w])
    iterate.update()
    w.fill_(1)
    with iterate.swapped():
        assert w.tolist() == [0, 0]
    assert w.tolist() == [1, 1]


def test_keeps_one_copy_for_any_number_of_steps():
    w = torch.zeros(1000)
    iterate = RandomIterate([w])
    iterate.update()
    stored = [t.data_ptr() for t in iterate.state_dict()["iterate"]]
    for _ in range(100):
        w.add_(1)
        iterate.update()
    assert [t.data_ptr() for t in iterate.state_dict()["iterate"]] == stored
    assert stored != [w.data_ptr()]


def test_training_is_the_same_with_and_without():
    def run(with_iterate: bool) -> torch.Tensor:
        torch.manual_seed(3)
        w = torch.zeros(3)
        iterate = RandomIterate([w]) if with_iterate else None
        for _ in range(20):
            if iterate is not None:
                iterate.update()
            w += torch.randn(3)
        return w

    assert torch.equal(run(True), run(False))


def test_private_draws_follow_the_global_seed():
    def drawn(seed: int) -> list[float]:
        torch.manual_seed(seed)
        w = torch.zeros(1)
        iterate = RandomIterate([w])
        for index in range(1000):
            w.fill_(index)
            iterate.update()
        iterate.swap()
        return w.tolist()

    assert drawn(0) == drawn(0)
    assert len({drawn(seed)[0] for seed in range(4)}) > 1
    drawn(2**64 - 1)  # the largest seed there is


# --- Saving


def walk(w: torch.Tensor, iterate: RandomIterate, start: int, stop: int) -> None:
    for step in range(start, stop):
        iterate.update(1.0 + step % 3)
        w.add_(torch.sin(torch.tensor(float(step))))


@pytest.mark.parametrize(
    ("at", "swapped"), [(0, False), (1, False), (13, False), (50, False), (1, True), (13, True), (50, True)]
)
def test_resumes_bitwise(at, swapped):
    w = torch.zeros(2, 2)
    iterate = RandomIterate([w], torch.Generator().manual_seed(8))
    walk(w, iterate, 0, at)
    if swapped:
        iterate.swap()
    file = io.BytesIO()
    torch.save({"w": w, "iterate": iterate.state_dict()}, file)
    if swapped:
        iterate.swap()
    walk(w, iterate, at, 60)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again_w = saved["w"]
    again = RandomIterate([again_w])
    again.load_state_dict(saved["iterate"])
    if swapped:
        again.swap()
    walk(again_w, again, at, 60)
    for mine, theirs in ((w, again_w), *zip(*(i.state_dict()["iterate"] for i in (iterate, again)), strict=True)):
        assert torch.equal(mine, theirs)
    assert torch.equal(iterate.state_dict()["generator"], again.state_dict()["generator"])
    assert iterate.state_dict()["total"] == again.state_dict()["total"]


def test_loading_copies():
    w = torch.zeros(2)
    iterate = RandomIterate([w])
    iterate.update()
    state = copy.deepcopy(iterate.state_dict())
    iterate.load_state_dict(state)
    w.fill_(5)
    iterate.swap()
    assert state["iterate"][0].tolist() == [0, 0]
    assert state["swapped"] is False


# --- Errors


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), -float("inf")])
def test_rejects_weight(weight):
    with pytest.raises(
        ValueError, match=exactly(f"weight must be ≥ 0 and finite, and so must the sum of weights, got {weight}")
    ):
        RandomIterate([torch.zeros(1)]).update(weight)


def test_rejects_weights_whose_sum_overflows_and_stays_usable():
    iterate = RandomIterate([torch.zeros(1)])
    iterate.update(1e308)
    with pytest.raises(ValueError, match=r"sum of weights, got 1e\+308$"):
        iterate.update(1e308)
    assert iterate.state_dict()["total"] == 1e308


def test_rejects_swap_before_a_draw():
    iterate = RandomIterate([torch.zeros(1)])
    iterate.update(0.0)
    with pytest.raises(
        RuntimeError, match=exactly("no iterate has been drawn: call update with a positive weight before swap")
    ):
        iterate.swap()
    with pytest.raises(RuntimeError), iterate.swapped():
        pass


def test_rejects_update_while_swapped():
    iterate = RandomIterate([torch.zeros(1)])
    iterate.update()
    with (
        iterate.swapped(),
        pytest.raises(
            RuntimeError, match=exactly("update needs the live weights, but the drawn iterate is in: call swap first")
        ),
    ):
        iterate.update()
    iterate.update()


def test_rejects_no_params():
    with pytest.raises(ValueError, match=exactly("params must hold at least one tensor, got none")):
        RandomIterate([])


def refused(iterate: RandomIterate, state: dict, message: str) -> None:
    before = repr(iterate.state_dict())
    with pytest.raises(ValueError, match=exactly(message)):
        iterate.load_state_dict(state)
    assert repr(iterate.state_dict()) == before


def test_rejects_state_of_another_shape():
    iterate = RandomIterate([torch.zeros(3)])
    iterate.update()
    refused(
        RandomIterate([torch.zeros(2)]),
        iterate.state_dict(),
        "state_dict's iterate must have shape (2,) for params[0], got (3,)",
    )


def test_rejects_state_that_would_be_broadcast_or_cast():
    iterate = RandomIterate([torch.ones(3, 3), torch.tensor(7)])
    iterate.update()
    state = copy.deepcopy(iterate.state_dict())
    for tensors, message in [
        ([torch.ones(1, 3), torch.tensor(7)], "have shape (3, 3) for params[0], got (1, 3)"),
        ([torch.ones(3, 3)], "hold 2 tensors, got 1"),
        ([torch.ones(3, 3), torch.tensor(7.5)], "be integer (torch.int64) for params[1], got torch.float32"),
        (
            [torch.ones(3, 3).cfloat(), torch.tensor(7)],
            "be floating-point (torch.float32) for params[0], got torch.complex64",
        ),
    ]:
        refused(iterate, {**state, "iterate": tensors}, f"state_dict's iterate must {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total": -1.0}, "total must be finite and at least 0, got -1.0"),
        ({"total": float("nan")}, "total must be finite and at least 0, got nan"),
        ({"total": "2"}, "total must be finite and at least 0, got '2'"),
        ({"swapped": 1}, "swapped must be False, or True if total > 0, got 1"),
        ({"swapped": True, "total": 0.0}, "swapped must be False, or True if total > 0, got True"),
        (
            {"generator": torch.zeros(3, dtype=torch.uint8)},
            "generator must be a uint8 tensor of shape (5056,), got torch.uint8 of shape (3,)",
        ),
    ],
)
def test_rejects_state_out_of_range(change, message):
    iterate = RandomIterate([torch.ones(3)])
    iterate.update()
    refused(iterate, {**copy.deepcopy(iterate.state_dict()), **change}, f"state_dict's {message}")


@pytest.mark.parametrize("key", ["total", "iterate", "swapped", "generator"])
def test_rejects_state_that_lacks_an_entry(key):
    iterate = RandomIterate([torch.ones(3)])
    iterate.update()
    state = copy.deepcopy(iterate.state_dict())
    del state[key]
    refused(iterate, state, f"state_dict lacks '{key}'")


def test_a_tensor_that_has_grown_is_an_error_and_not_a_broadcast():
    w = torch.nn.Parameter(torch.ones(1, 3))
    iterate = RandomIterate([w])
    iterate.update(1e-300)
    state = repr([iterate.state_dict()[key] for key in ("total", "iterate", "swapped")])
    w.data = torch.full((3, 3), 2.0)
    for use in (lambda: iterate.update(1e300), iterate.swap):  # drawn with probability 1 − 1e-600
        with pytest.raises(
            ValueError, match=exactly("the drawn iterate must have shape (3, 3) for params[0], got (1, 3)")
        ):
            use()
        assert repr([iterate.state_dict()[key] for key in ("total", "iterate", "swapped")]) == state
        assert torch.equal(w, torch.full((3, 3), 2.0))


def test_the_drawn_iterate_follows_the_model_to_another_dtype():
    model = nn.Linear(2, 2)
    drawn = [p.detach().double() for p in model.parameters()]
    iterate = RandomIterate(model.parameters())
    iterate.update()
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    iterate.update(1e-300)  # hardly ever drawn
    with iterate.swapped():
        assert all(torch.equal(p, d) and p.dtype == d.dtype for p, d in zip(model.parameters(), drawn, strict=True))


def test_weights_of_numpy_can_be_saved_and_loaded():
    iterate = RandomIterate([torch.ones(2)])
    for weight in (*np.linspace(1, 2, 3), np.float32(0.1)):
        iterate.update(weight)
    file = io.BytesIO()
    torch.save(iterate.state_dict(), file)
    file.seek(0)
    iterate.load_state_dict(torch.load(file, weights_only=True))
