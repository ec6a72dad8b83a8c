import copy
import io
import re

import pytest
import torch

from sngd.optim.stagewise import StagewiseLR
from sngd.stages import Stage, StagePlan

PLAN = StagePlan([(0.5, 3), (0.05, 4, 2.0), (0.2, 1)])
NAIVE = [0.5] * 3 + [0.05] * 4 + [0.2] * 3  # two steps past the end


def param() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(2))


def step(optimizer: torch.optim.Optimizer, scheduler: StagewiseLR) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    scheduler.step()


def play(optimizer: torch.optim.Optimizer, scheduler: StagewiseLR, steps: int) -> list[list[float]]:
    """The learning rate of every group at each of the next steps."""
    lrs = []
    for _ in range(steps):
        lrs.append([float(group["lr"]) for group in optimizer.param_groups])
        step(optimizer, scheduler)
    return lrs


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_plays_the_plan_on_any_optimizer(make):
    optimizer = make([param()], lr=0.7)
    assert play(optimizer, StagewiseLR(optimizer, PLAN), 10) == [[lr] for lr in NAIVE]


def test_moves_parameters_by_the_plan():
    p = param()
    optimizer = torch.optim.SGD([p], lr=1.0)
    play(optimizer, StagewiseLR(optimizer, PLAN), 8)
    assert p.tolist() == pytest.approx([1 - 3 * 0.5 - 4 * 0.05 - 0.2] * 2, abs=1e-6)


def test_other_groups_keep_their_ratio_to_the_first():
    optimizer = torch.optim.SGD(
        [{"params": [param()], "lr": 0.25}, {"params": [param()], "lr": 0.5}, {"params": [param()], "lr": 0.0}]
    )
    assert play(optimizer, StagewiseLR(optimizer, PLAN), 10) == [[lr, 2 * lr, 0.0] for lr in NAIVE]


def test_a_step_does_not_read_the_optimizers_learning_rates(monkeypatch):
    """Where they are tensors on a GPU, the host would wait for it."""
    optimizer = torch.optim.SGD([param()], lr=torch.tensor(0.25))
    scheduler = StagewiseLR(optimizer, PLAN)
    monkeypatch.setattr("sngd.optim.stagewise._ratios_to_first", lambda _: pytest.fail("they were read"))
    for _ in range(8):
        step(optimizer, scheduler)


def test_a_group_that_is_added_later_keeps_its_ratio_too():
    optimizer = torch.optim.SGD([param()], lr=0.25)
    scheduler = StagewiseLR(optimizer, PLAN)
    play(optimizer, scheduler, 2)
    optimizer.add_param_group({"params": [param()], "lr": 0.5})
    optimizer.step()
    scheduler.step()
    assert play(optimizer, scheduler, 7) == [[lr, 2 * lr] for lr in NAIVE[3:]]
    twin = torch.optim.SGD([{"params": [param()]}, {"params": [param()], "lr": 0.5}], lr=0.25)
    resumed = StagewiseLR(twin, PLAN)
    resumed.load_state_dict(scheduler.state_dict())
    assert [group["lr"] for group in twin.param_groups] == [group["lr"] for group in optimizer.param_groups]
    scheduler.load_state_dict(resumed.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensor_lr_is_filled_in_place(dtype):
    lr = torch.tensor(0.7, dtype=dtype)
    optimizer = torch.optim.Adam([param()], lr=lr, foreach=False)
    scheduler = StagewiseLR(optimizer, PLAN)
    assert optimizer.param_groups[0]["lr"] is lr
    expected = [[float(torch.tensor(value, dtype=dtype))] for value in NAIVE]
    assert play(optimizer, scheduler, 10) == expected
    assert optimizer.param_groups[0]["lr"] is lr
    scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert optimizer.param_groups[0]["lr"] is lr


def test_plan_and_stage_tell_the_position():
    optimizer = torch.optim.SGD([param()], lr=1.0)
    scheduler = StagewiseLR(optimizer, PLAN)
    stages = []
    for _ in range(10):
        stages.append(scheduler.stage)
        step(optimizer, scheduler)
    assert stages == [0] * 3 + [1] * 4 + [2] * 3
    assert scheduler.plan is PLAN
    assert scheduler.get_last_lr() == [0.2]


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("order", ["optimizer first", "scheduler first", "optimizer before the scheduler is made"])
@pytest.mark.parametrize("done", [0, 1, 3, 5, 9])
def test_resumes_in_mid_stage(done, order, tensor_lr):
    def make_optimizer() -> torch.optim.Optimizer:
        lrs = [torch.tensor(0.1), torch.tensor(0.3)] if tensor_lr else [0.1, 0.3]
        return torch.optim.SGD([{"params": [param()], "lr": lr} for lr in lrs], foreach=False)

    optimizer = make_optimizer()
    scheduler = StagewiseLR(optimizer, PLAN)
    play(optimizer, scheduler, done)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    expected = play(optimizer, scheduler, 10)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_optimizer()
    if order == "optimizer before the scheduler is made":
        resumed.load_state_dict(saved["optimizer"])
    again = StagewiseLR(resumed, StagePlan([Stage(9.0, 1)]))  # the saved plan replaces this one
    if order == "optimizer first":
        resumed.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["scheduler"])
    if order == "scheduler first":
        resumed.load_state_dict(saved["optimizer"])
    assert again.plan == PLAN
    assert [float(lr) for lr in again.get_last_lr()] == expected[0]
    assert play(resumed, again, 10) == expected


def test_loading_leaves_the_saved_state_as_it_was():
    optimizer = torch.optim.SGD([param()], lr=1.0)
    scheduler = StagewiseLR(optimizer, PLAN)
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    scheduler.load_state_dict(state)
    assert state == before


def test_joins_a_run_at_last_epoch():
    optimizer = torch.optim.SGD([{"params": [param()], "initial_lr": 0.5}], lr=0.5)
    scheduler = StagewiseLR(optimizer, PLAN, last_epoch=4)
    assert scheduler.stage == 1
    assert play(optimizer, scheduler, 5) == [[lr] for lr in NAIVE[5:]]


def test_ratios_are_of_the_initial_lrs_whatever_another_scheduler_did_since():
    groups = [{"params": [param()], "initial_lr": lr} for lr in (0.25, 0.5)]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    assert play(optimizer, StagewiseLR(optimizer, PLAN), 10) == [[lr, 2 * lr] for lr in NAIVE]


@pytest.mark.parametrize("lr", [0.0, float("inf")])
def test_rejects_a_first_group_without_a_ratio(lr):
    optimizer = torch.optim.SGD([{"params": [param()], "lr": lr}, {"params": [param()], "lr": 0.1}])
    with pytest.raises(
        ValueError,
        match=re.escape(
            "optimizer's first param group must have an initial lr that is finite and > 0 "
            f"(the other groups keep their ratio to it), got {lr}"
        ),
    ):
        StagewiseLR(optimizer, PLAN)


@pytest.mark.parametrize(
    ("plan", "got"),
    [
        ([0.1, 0.2], "[0.1, 0.2]"),
        ([(0.5, 3), (0.05, 4)], "[(0.5, 3), (0.05, 4)]"),
        (Stage(0.5, 3), "Stage(lr=0.5, steps=3, weight=1.0, momentum=None)"),
        (0.1, "0.1"),
        (None, "None"),
    ],
)
def test_rejects_what_is_no_plan(plan, got):
    optimizer = torch.optim.SGD([param()], lr=0.7)
    with pytest.raises(
        TypeError,
        match=f"^{re.escape(f'plan must be a StagePlan, for instance StagePlan([(lr, steps), …]), got {got}')}$",
    ):
        StagewiseLR(optimizer, plan)
    assert "initial_lr" not in optimizer.param_groups[0]  # nothing was touched


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("plan", [[0.5, 0]]),
        ("last_epoch", "3"),
        ("last_epoch", -1),
        ("_step_count", torch.zeros(1, dtype=torch.int64).expand(10**10)),
        ("_ratios", [1.0, 2.0]),
        ("_ratios", ["x"]),
        ("_ratios", None),
    ],
)
def test_a_state_that_is_none_changes_nothing(key, value):
    optimizer = torch.optim.SGD([param()], lr=0.7)
    scheduler = StagewiseLR(optimizer, PLAN)
    play(optimizer, scheduler, 2)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="stages\\[0\\]" if key == "plan" else f"state_dict's {key} must be"):
        scheduler.load_state_dict({**before, key: value})
    with pytest.raises(ValueError, match=f"state_dict lacks '{key}'"):
        scheduler.load_state_dict({name: entry for name, entry in before.items() if name != key})
    assert scheduler.state_dict() == before


# --- plans with a momentum

WITH_MOMENTUM = StagePlan([(0.5, 3, 1.0, 0.3), (0.05, 4, 1.0, 0.9)])


def test_a_plan_with_momentum_sets_it_in_every_group():
    optimizer = torch.optim.SGD([{"params": [param()]}, {"params": [param()]}], lr=1.0, momentum=0.5)
    scheduler = StagewiseLR(optimizer, WITH_MOMENTUM)
    seen = []
    for _ in range(9):
        seen.append([group["momentum"] for group in optimizer.param_groups])
        step(optimizer, scheduler)
    assert seen == [[0.3, 0.3]] * 3 + [[0.9, 0.9]] * 6


def test_a_plan_without_momentum_leaves_it_alone():
    optimizer = torch.optim.SGD([param()], lr=1.0, momentum=0.5)
    play(optimizer, StagewiseLR(optimizer, PLAN), 5)
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_a_loaded_plan_brings_its_momentum():
    optimizer = torch.optim.SGD([param()], lr=1.0, momentum=0.5)
    scheduler = StagewiseLR(optimizer, WITH_MOMENTUM)
    play(optimizer, scheduler, 5)
    again = torch.optim.SGD([param()], lr=1.0, momentum=0.5)
    StagewiseLR(again, PLAN).load_state_dict(scheduler.state_dict())
    assert again.param_groups[0]["momentum"] == 0.9
    without = StagewiseLR(torch.optim.SGD([param()], lr=1.0), PLAN)
    with pytest.raises(ValueError, match=r"^optimizer must be made with a momentum above 0"):
        without.load_state_dict(scheduler.state_dict())
    assert without.plan == PLAN


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_plan_with_momentum_needs_an_optimizer_with_momentum(make):
    with pytest.raises(ValueError, match=r"^optimizer must be made with a momentum above 0 in every param group"):
        StagewiseLR(make([param()], lr=0.1), WITH_MOMENTUM)
