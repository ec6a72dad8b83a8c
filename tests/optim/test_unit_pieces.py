"""Unit steps that are made in batches and pieces are those of whole tensors."""

import gc
import weakref

import pytest
import torch
from torch import nn

from sngd import SNGD
from sngd.norms import Layer, Row, Sign, find_norm
from sngd.optim import clipped, pieces, unit_pieces
from sngd.optim.unit_pieces import UnitPieces

RULES = {
    "plain": {},
    "gradient momentum": {"momentum": 0.9},
    "averaged": {"momentum": 0.9, "normalize": "momentum"},
    "decay": {"weight_decay": 0.1},
    "decoupled decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "capped": {"max_scale": 1e-5, "maximize": True},
    "kahan": {"kahan_sum": True},
    "kahan, averaged": {"kahan_sum": True, "momentum": 0.9, "normalize": "momentum"},
}
NORMS = ["layer", "sign", "row", "row(table=True)", "col", "col(scaled=False)"]
SHAPES = [(3, 70), (5,), (1,), (2, 3, 2, 2), (150, 90), (6000,), (2, 1500), (0, 4), ()]


@pytest.fixture(autouse=True)
def no_step_is_watched(monkeypatch):
    """A gradient that is watched for clipping takes a pass of its own."""
    monkeypatch.setattr(clipped, "_told", {"clipped"})


@pytest.fixture
def tiny_pieces(monkeypatch):
    """Nothing is few, and a piece has a thousand entries."""
    monkeypatch.setattr(pieces, "_LENGTH", 1000)
    monkeypatch.setattr(unit_pieces, "_FEW", 0)


class Halves(Sign):
    """A user's norm of which an entry of the unit step depends on that entry of the vector alone, and on its shape."""

    by_entry = True

    def bare_unit(self, m):
        return m.sign() / m.shape[-1]


class InPieces(Sign):
    """A user's norm that says how pieces are made."""

    by_entry = in_pieces = True

    def bare_unit(self, m):
        return 0.5 * m.sign()

    def unit_entries(self, pieces, factors):
        return [0.5 * factor * piece.sign() for piece, factor in zip(pieces, factors, strict=True)]


class Shorter(Row):
    """A user's norm whose ``unit`` is not what ``reduced`` says."""

    reduced = (-1,)

    def unit(self, v):
        return 0.5 * super().unit(v)


class Gain(Row):
    """A user's norm with a factor that is no field of it."""

    gain = 1.0

    def factor(self, weight):
        return self.gain * super().factor(weight)


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def stepped(norm, options, dtype=torch.float32, spoil=None):
    ws = weights(dtype)
    optimizer = SNGD(ws, lr=0.1, norm=norm, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for w in ws:
            w.grad = torch.randn(w.shape, generator=generator).to(dtype)
        if spoil:
            spoil([w.grad for w in ws])
        optimizer.step()
    return ws, optimizer


def assert_alike(some, others, dtype=torch.float32):
    (ours, optimizer), (theirs, other) = some, others
    close = {"rtol": 0, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-6}
    for w, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(w, expected, **close)
    assert optimizer.last_norm.item() == pytest.approx(other.last_norm.item(), rel=1e-5 if dtype.itemsize > 2 else 1e-3)
    assert optimizer.skipped_steps == other.skipped_steps


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", [*NORMS, Halves(), InPieces(), Shorter(), Gain()], ids=repr)
def test_the_step_is_that_of_the_readable_loop(norm, rule, dtype):
    options = RULES[rule]
    assert_alike(stepped(norm, options, dtype), stepped(norm, {**options, "foreach": False}, dtype), dtype)


@pytest.mark.parametrize("rule", ["plain", "gradient momentum", "averaged", "kahan"])
@pytest.mark.parametrize("norm", NORMS)
def test_pieces_change_nothing_but_rounding(norm, rule, monkeypatch):
    whole = stepped(norm, RULES[rule])
    monkeypatch.setattr(pieces, "_LENGTH", 1000)
    monkeypatch.setattr(unit_pieces, "_FEW", 0)
    assert_alike(stepped(norm, RULES[rule]), whole)


def with_zeros(grads):
    """As of an embedding: indices that are not in the batch have no gradient."""
    grads[4][3:7] = 0
    grads[4][:, 5] = 0
    grads[5][:] = 0


def with_tiny_rows(grads):
    """Their squares are 0 in float32."""
    grads[4][3:7] *= 1e-30


def with_large_rows(grads):
    grads[4][3:7] *= 1e30


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("spoil", [with_zeros, with_tiny_rows, with_large_rows], ids=lambda f: f.__name__)
@pytest.mark.parametrize("rule", ["plain", "averaged"])
@pytest.mark.parametrize("norm", NORMS)
def test_zeros_and_the_smallest_and_largest_entries_are_right(norm, rule, spoil):
    options = RULES[rule]
    found, expected = stepped(norm, options, spoil=spoil), stepped(norm, {**options, "foreach": False}, spoil=spoil)
    assert_alike(found, expected)


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rule", ["plain", "averaged"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_that_is_skipped_changes_nothing(norm, rule, bad):
    def spoil(grads):
        grads[-3][1, 1] = bad  # in the last piece that is measured but two

    ws, optimizer = stepped(norm, RULES[rule], spoil=spoil)
    assert optimizer.skipped_steps == 3
    assert all(torch.equal(w, start) for w, start in zip(ws, weights(), strict=True))
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("norm", ["layer", "row", "col", "sign"])
def test_batches_are_small_and_are_all_there(norm):
    ws = weights()
    found = UnitPieces(find_norm(norm), [ws, ws], lambda lists: lists[1])
    assert found.dual() is not None
    batches = [lists for lists, _, _ in found.units()]
    assert len(batches) > 15
    for lists in batches:
        entries = sum(w.numel() for w in lists[0])
        assert entries <= 1000 or (len(lists[0]) == 1 and len(lists[0][0]) == 1)  # a single row is not cut
    flat = torch.cat([w.reshape(-1) for lists in batches for w in lists[0]])
    assert torch.equal(flat, torch.cat([w.reshape(-1) for w in ws]))


def test_few_entries_are_made_once():
    ws, made = weights(), []

    def vectors_of(lists):
        made.append(lists)
        return lists[0]

    found = UnitPieces(find_norm("sign"), [ws], vectors_of)
    assert found.dual() is not None
    (first,), (second,) = found.units(), found.units()
    assert len(made) == 1
    assert first[2] is second[2]


def part_of(norm):
    w = nn.Parameter(torch.ones(2, 2))
    w.grad = torch.ones(2, 2)
    (part,) = SNGD([w], norm=norm)._usual_parts()
    return part


def test_only_norms_that_say_so_are_taken_in_pieces():
    norms = InPieces(), Row(), Halves(), Shorter(), Gain(), find_norm("spectral"), Layer()
    assert [part_of(norm).by_pieces for norm in norms] == [True, True, False, False, False, False, True]


def test_every_spelling_of_l2_is_one_ball_of_all_tensors():
    ws = weights()
    for w in ws:
        w.grad = torch.ones_like(w)
    SNGD(ws, lr=0.1, norm="l2(table=True)").step()
    moved = [w.detach() - start.detach() for w, start in zip(ws, weights(), strict=True)]
    assert torch.cat([m.reshape(-1) for m in moved]).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_a_factor_that_is_no_field_is_asked_of_each_norm():
    louder = Gain()
    object.__setattr__(louder, "gain", 2.0)
    moved = []
    for norm in (Gain(), louder):
        w = nn.Parameter(torch.zeros(3, 4))
        w.grad = torch.ones(3, 4)
        SNGD([w], norm=norm).step()
        moved.append(w.detach().clone())
    torch.testing.assert_close(moved[1], 2 * moved[0])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rule", ["plain", "averaged", "decay"])
def test_a_step_keeps_no_gradient_alive(norm, rule):
    """Not even until Python looks for cycles."""
    w = nn.Parameter(torch.randn(64, 64))
    optimizer = SNGD([w], norm=norm, **RULES[rule])
    gc.collect()
    gc.disable()
    try:
        w.grad = torch.randn(64, 64)
        gradient = weakref.ref(w.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert gradient() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("lr", "size"), [(1e30, 1e10), (1e25, 1e14), (1e-32, 1e-12)])
def test_products_that_would_leave_the_range_are_not_made(norm, lr, size):
    w = nn.Parameter(torch.zeros(3, 4))
    w.grad = size * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    SNGD([w], lr=lr, norm=norm).step()
    torch.testing.assert_close(w.detach(), -lr * find_norm(norm).unit(w.grad), rtol=1e-4, atol=0)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="gradients have their weight's dtype there")
@pytest.mark.parametrize("norm", ["sign", "row"])
@pytest.mark.parametrize("rule", ["plain", "gradient momentum", "averaged"])
def test_gradients_of_another_dtype_step_as_in_the_readable_loop(norm, rule):
    stepped = []
    for options in ({}, {"foreach": False}):
        w = nn.Parameter(torch.zeros(4, 4))
        w.grad_dtype = None
        w.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
        SNGD([w], norm=norm, **RULES[rule], **options).step()
        stepped.append(w.detach())
    torch.testing.assert_close(*stepped)


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("norm", ["l2", *NORMS])
def test_pieces_are_also_right_where_the_host_does_not_decide(norm, monkeypatch):
    """As with another group's weights on an accelerator, where the whole norm is then."""
    rule = {"weight_decay": 0.1}
    expected = stepped(norm, {**rule, "foreach": False})
    monkeypatch.setattr("sngd.optim.sngd.host_may_read", lambda _: False)
    monkeypatch.setattr("sngd.optim.sngd.bare_step", lambda *_: None)
    assert_alike(stepped(norm, rule), expected)
