"""Problem: what it accepts, what it says when it does not, and what it derives."""

import re

import pytest
import torch
from torch import nn

from sngd.problems import Problem
from sngd.problems.problem import classifies, initial_loss_not_finite

SAMPLES = "must be a tuple of two tensors (inputs, targets), a Dataset or a DataLoader"
INPUTS, LABELS = torch.zeros(4, 3), torch.tensor([0, 1, 1, 0])
GOOD = {
    "build_model": lambda: nn.Linear(3, 2),
    "loss": nn.functional.cross_entropy,
    "train": (INPUTS, LABELS),
}


def test_n_and_defaults() -> None:
    problem = Problem(**GOOD)
    assert problem.n == 4
    assert problem.test is None
    assert problem.name == ""
    assert problem.augment is None
    assert problem.prepare is None


def test_the_loss_of_prepared_inputs() -> None:
    pixels = torch.tensor([[0, 255, 51], [102, 0, 204]], dtype=torch.uint8)
    problem = Problem(**GOOD, prepare=lambda x: x / 255)
    weight = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    scores = torch.tensor([[2 + 0.6, 1.0], [0.4 + 2.4, 0.0]])
    expected = nn.functional.cross_entropy(scores, LABELS[:2])
    found = problem.mean_loss(lambda x: x @ weight.T, (pixels, LABELS[:2]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("part", [slice(None), slice(1, 3)])
def test_an_augmentation_in_place_does_not_reach_the_stored_samples(part) -> None:
    problem = Problem(**GOOD | {"train": (torch.ones(4, 3), LABELS)}, augment=lambda x, _: x.neg_())
    inputs, targets = problem.train
    varied, same = problem.augmented((inputs[part], targets[part]), torch.Generator())
    assert (varied == -1).all()
    assert (inputs == 1).all()
    assert torch.equal(same, targets[part])


def test_a_loss_may_be_a_module() -> None:
    assert Problem(**{**GOOD, "loss": nn.CrossEntropyLoss()}).n == 4


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ((4, 3), LABELS, True),
        ((4, 3), LABELS.to(torch.uint8), True),
        ((4, 3), LABELS.float(), False),
        ((4, 3), LABELS.bool(), False),
        ((4, 3), LABELS.to(torch.complex64), False),
        ((4, 3), LABELS[:, None], False),
        ((4, 1), LABELS[:, None], False),  # numbers to be predicted that happen to be integers
        ((4,), LABELS, False),
        ((4, 5, 3), LABELS[:, None].expand(4, 5), True),  # a label for each of five places
        ((4, 3, 5), LABELS[:, None].expand(4, 5), False),
    ],
)
def test_integers_with_one_score_a_class_are_labels(
    scores: tuple[int, ...], targets: torch.Tensor, expected: bool
) -> None:
    assert classifies(torch.zeros(scores), targets) is expected


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            {"build_model": nn.Linear(3, 2)},
            TypeError,
            "build_model must be a function that builds a new nn.Module, got a value of type Linear",
        ),
        (
            {"build_model": None},
            TypeError,
            "build_model must be a function that builds a new nn.Module, got None",
        ),
        (
            {"loss": nn.CrossEntropyLoss},
            TypeError,
            "loss must be a function of (outputs, targets), got the class CrossEntropyLoss",
        ),
        (
            {"loss": "mse"},
            TypeError,
            "loss must be a function of (outputs, targets), got a value of type str",
        ),
        (
            {"train": INPUTS},
            TypeError,
            f"train {SAMPLES}, got a value of type Tensor",
        ),
        (
            {"train": (INPUTS, [0, 1, 1, 0])},
            TypeError,
            f"train {SAMPLES}, got the tuple (Tensor, list)",
        ),
        (
            {"test": (INPUTS, LABELS, LABELS)},
            TypeError,
            f"test {SAMPLES}, got the tuple (Tensor, Tensor, Tensor)",
        ),
        ({"train": (INPUTS, LABELS[:3])}, ValueError, "train has 4 inputs and 3 targets, must be as many"),
        ({"test": (INPUTS[:0], LABELS[:0])}, ValueError, "test has no samples, must have at least 1"),
        (
            {"train": (INPUTS, torch.tensor(1.0))},
            ValueError,
            "train has a tensor of no dimensions, the first dimension must count samples",
        ),
        (
            {"augment": 0.5},
            TypeError,
            "augment must be a function of (inputs, generator), or None, got a value of type float",
        ),
        (
            {"augment": nn.Dropout},
            TypeError,
            "augment must be a function of (inputs, generator), or None, got the class Dropout",
        ),
        (
            {"prepare": torch.zeros(3)},
            TypeError,
            "prepare must be a function of inputs, or None, got a value of type Tensor",
        ),
        (
            {"prepare": nn.Flatten},
            TypeError,
            "prepare must be a function of inputs, or None, got the class Flatten",
        ),
        ({"name": 3}, TypeError, "name must be a str, got a value of type int"),
    ],
)
def test_wrong_fields(wrong: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Problem(**{**GOOD, **wrong})


@pytest.mark.parametrize(
    ("inputs", "targets", "cause"),
    [
        (INPUTS + torch.nan, LABELS, "100% of the numbers in train's inputs are not finite."),
        (INPUTS, LABELS * torch.inf, "100% of the numbers in train's targets are not finite."),
        (
            torch.tensor([[1.0, torch.nan]] * 4),
            torch.tensor([torch.inf, -torch.inf, torch.nan, 0]),
            "50% of the numbers in train's inputs and 75% of the numbers in train's targets are not finite.",
        ),
        (INPUTS, LABELS, "the data are, so look at build_model and loss."),
        (
            torch.eye(1000).index_put((torch.tensor(3), torch.tensor(5)), torch.tensor(torch.nan)),
            torch.zeros(1000),
            "0.0001% of the numbers in train's inputs are not finite.",
        ),
    ],
)
def test_the_cause_of_an_initial_loss_that_is_not_finite(
    inputs: torch.Tensor, targets: torch.Tensor, cause: str
) -> None:
    problem = Problem(**{**GOOD, "train": (inputs, targets)})
    assert initial_loss_not_finite(problem) == f"The training loss is not finite at the initial weights: {cause}"
