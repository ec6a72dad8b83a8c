"""The generated classes: how many samples each has, and that a linear model can tell them apart."""

import pytest
import torch

from sngd.problems import load_problem
from sngd.problems.imbalanced import imbalanced
from sngd.problems.problem import classifies


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_groups_of_classes_of_equal_frequency(groups: int) -> None:
    inputs, labels = imbalanced(groups)
    n = groups * 2**groups
    assert inputs.shape == (n, (groups + 1) * 2**groups)
    assert inputs.dtype == torch.float32
    counts = labels.bincount().tolist()
    assert len(counts) == 2**groups - 1
    for k, count in enumerate(counts, start=1):
        assert count / n == 1 / (groups * 2 ** (k.bit_length() - 1))  # ⌊log₂ k⌋ is the bit length less 1
        assert 2**groups / k <= count < 2 * 2**groups / k  # ∝ 1/k in steps
    for i in range(groups):
        assert sum(counts[2**i - 1 : 2 ** (i + 1) - 1]) == 2**groups


def test_inputs_are_uniform_and_the_same_at_every_call() -> None:
    inputs, labels = imbalanced()
    assert inputs.min() >= 0
    assert inputs.max() <= 1
    assert inputs.mean().item() == pytest.approx(1 / 2, abs=1e-3)
    assert inputs.var().item() == pytest.approx(1 / 12, abs=1e-3)
    again = imbalanced()
    assert torch.equal(inputs, again[0])
    assert torch.equal(labels, again[1])
    assert inputs[0, :3].tolist() == pytest.approx([0.49625659, 0.76822180, 0.08847743])
    # The most frequent class is an eighth of any part, so the order is random.
    assert (labels[:512] == 0).float().mean().item() == pytest.approx(1 / 8, abs=0.05)


def test_a_row_that_is_linear_and_has_no_test_samples() -> None:
    problem = load_problem("imbalanced")
    assert (problem.name, problem.n, problem.test) == ("imbalanced", 2048, None)
    model = problem.build_model()
    assert [tuple(p.shape) for p in model.parameters()] == [(255, 2304), (255,)]
    outputs = model(problem.train[0])
    assert classifies(outputs, problem.train[1])
    assert problem.loss(outputs, problem.train[1]).item() == pytest.approx(5.54, abs=0.3)  # log 255


def test_a_linear_model_can_tell_all_samples_apart() -> None:
    inputs, labels = imbalanced(5)
    scores = torch.nn.functional.one_hot(labels).double()
    weights = torch.linalg.lstsq(inputs.double(), scores).solution
    assert torch.equal((inputs.double() @ weights).argmax(1), labels)
