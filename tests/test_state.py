"""What must fit a model's tensors, and what a saved state may hold."""

import re

import pytest
import torch
from torch import nn

from sngd.state import check_keys, fitted, saved_count, saved_generator, saved_tensors, trainable

KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.int64, torch.uint8, torch.bool]
SAME = [{torch.float16, torch.bfloat16, torch.float32}, {torch.int64, torch.uint8}]


def test_tensors_that_fit_are_taken_as_they_are_and_others_are_converted():
    params = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4).double())]
    tensors = [torch.zeros(2, 3), torch.zeros(4)]
    first, second = fitted("it", tensors, params, ["a", "b"])
    assert first is tensors[0]
    assert second.dtype == torch.float64


@pytest.mark.parametrize("given", KINDS, ids=str)
@pytest.mark.parametrize("wanted", KINDS, ids=str)
def test_a_dtype_is_converted_into_one_of_its_kind_alone(given, wanted):
    tensors, params = [torch.ones(2, dtype=given)], [torch.ones(2, dtype=wanted)]
    if given == wanted or {given, wanted} in [pair for kind in SAME for pair in map(set, _pairs(kind))]:
        assert fitted("it", tensors, params, ["a"])[0].dtype == wanted
    else:
        with pytest.raises(ValueError, match=rf"^it must be [a-z-]+ \({wanted}\) for a, got {given}$"):
            fitted("it", tensors, params, ["a"])


def _pairs(kind):
    return [(one, other) for one in kind for other in kind]


@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 2), (2, 3, 1), (0, 3), ()])
def test_no_other_shape_fits(shape):
    message = f"it must have shape (2, 3) for a, got {shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fitted("it", [torch.zeros(shape)], [torch.zeros(2, 3)], ["a"])


def test_saved_tensors_are_copies():
    kept = torch.ones(2)
    (copy,) = saved_tensors({"x": [kept]}, "x", [torch.zeros(2)], ["a"])
    copy.zero_()
    assert torch.equal(kept, torch.ones(2))


def test_trainable_parameters_are_named():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0].requires_grad_(False)
    params, names = trainable(model)
    assert [id(p) for p in params] == [id(p) for p in model[1].parameters()]
    assert names == ["parameter '1.weight'", "parameter '1.bias'"]


def test_entries_counts_and_generators():
    check_keys({"a": 1}, "a")
    with pytest.raises(ValueError, match=r"^epoch lacks 'b', 'c'$"):
        check_keys({"a": 1}, "a", "b", "c", what="epoch")
    assert saved_count({"n": 3}, "n", 3, 3) == 3
    for n in (2, 4):
        with pytest.raises(ValueError, match=rf"^state_dict's n must be a whole number from 3 to 3, got {n}$"):
            saved_count({"n": n}, "n", 3, 3)
    with pytest.raises(ValueError, match=r"^state_dict's n must be a whole number of at least 0, got 1000"):
        saved_count({"n": 10**39}, "n")  # no float holds the share of a budget that it would be
    state = torch.Generator().manual_seed(7).get_state()
    assert torch.equal(saved_generator({"g": state}, "g"), state)
    with pytest.raises(ValueError, match=r"^state_dict's g must be a generator's state: "):
        saved_generator({"g": torch.full_like(state, 255)}, "g")
