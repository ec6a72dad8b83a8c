"""The table of problems and the way to them by name."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sngd.problems import PROBLEMS, load_problem
from sngd.problems.models import mlp
from sngd.problems.problem import classifies


@pytest.mark.parametrize(
    ("name", "folder", "n", "inputs"),
    [("digits-mlp", "", 1437, 64), ("mnist-mlp", "mnist", 6, 784), ("fashion-mlp", "fashion-mnist", 6, 784)],
)
def test_every_perceptron_trains(
    name: str, folder: str, n: int, inputs: int, mnist_like: Callable[[Path], Path], tmp_path: Path
) -> None:
    if folder:
        mnist_like(tmp_path / folder)
    problem = load_problem(name, tmp_path)
    assert (problem.name, problem.n) == (name, n)
    assert problem.test is not None
    model = problem.build_model()
    assert [tuple(p.shape) for p in model.parameters()] == [(100, inputs), (100,), (10, 100), (10,)]
    assert classifies(problem.outputs(model, problem.train[0]), problem.train[1])
    loss = problem.mean_loss(model, problem.train)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(2.3026, abs=0.3)  # log 10: knows nothing yet


@pytest.mark.parametrize(("depth", "parameters"), [(8, 75_290), (20, 269_722), (56, 853_018)])
def test_every_residual_network_trains(
    depth: int, parameters: int, cifar10_like: Callable[[Path], Path], tmp_path: Path
) -> None:
    cifar10_like(tmp_path)
    problem = load_problem(f"cifar10-resnet{depth}", tmp_path)
    assert (problem.name, problem.n) == (f"cifar10-resnet{depth}", 6)
    assert problem.augment is not None
    assert problem.prepare is not None
    torch.manual_seed(0)
    model = problem.build_model()
    assert sum(p.numel() for p in model.parameters()) == parameters
    inputs = problem.prepare(problem.augment(problem.train[0], torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = problem.loss(model(inputs), problem.train[1])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(2.3, abs=1)
    assert losses[-1] < losses[0] / 2


def test_all_problems_are_tested_above() -> None:
    perceptrons = ["digits-mlp", "mnist-mlp", "fashion-mlp"]
    residual = ["cifar10-resnet8", "cifar10-resnet20", "cifar10-resnet56"]
    others = ["shakespeare-gpt", "imbalanced"]  # in test_shakespeare.py and test_imbalanced.py
    analytic = ["saddle", "sharp-flat", "relaxed-smooth", "tensor-decomposition"]  # in test_analytic.py
    assert list(PROBLEMS) == [*perceptrons, *residual, *others, *analytic]
    assert all(name == row.name and row.summary for name, row in PROBLEMS.items())


def test_each_model_is_a_new_one() -> None:
    problem = load_problem("digits-mlp")
    first, second = problem.build_model(), problem.build_model()
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_mlp_is_linear_elu_linear() -> None:
    assert [type(layer) for layer in mlp(3, 2, 4)] == [nn.Linear, nn.ELU, nn.Linear]
    assert mlp(3, 2, 4)(torch.zeros(5, 3)).shape == (5, 4)


KNOWN = f"must be one of {', '.join(PROBLEMS)}, or path/to/file.py:factory"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist-mpl", f"unknown problem 'mnist-mpl', did you mean 'mnist-mlp'? {KNOWN}"),
        ("zebra", f"unknown problem 'zebra', {KNOWN}"),
        ("", f"unknown problem '', {KNOWN}"),
    ],
)
def test_unknown_name(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_problem(spec)
