"""Every norm against its naive twin, and against what makes it a norm with a unit step; spelling; one's own norms."""

import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from reference.norms import NaiveNorm
from sngd import SNGD
from sngd.norms import NORMS, Col, Layer, Norm, Row, Sign, Spectral, find_norm
from sngd.norms.norm import normalized, normalized_in_float64

# Norms whose unit step is exact, with what the twin needs to know.
EXACT = {
    **{name: {} for name in ("l2", "layer", "sign", "row", "col")},
    **{f"{name}(scaled=False)": {"scaled": False} for name in ("layer", "sign", "row", "col")},
    **{f"{name}(table=True)": {"table": True} for name in ("layer", "sign", "row", "col")},
    "spectral(coefficients=svd)": {},
    "spectral(scaled=False, coefficients=svd)": {"scaled": False},
    "spectral(table=True, coefficients=svd)": {"table": True},
    "spectral(scaled=max, coefficients=svd)": {"scaled": "max"},
    "spectral(scaled=adamw, coefficients=svd)": {"scaled": "adamw"},
}
ITERATED = ["spectral", "spectral(coefficients=polar-express)", "spectral(scaled=max)", "spectral(table=True)"]
SHAPES = [(3, 8), (8, 3), (5, 5), (1, 6), (6, 1), (4, 3, 2), (6, 2, 3, 3), (2, 3, 1, 2, 2), (7,), (1,), ()]
EMPTY = [(0,), (0, 3), (3, 0), (4, 0, 3, 3), (0, 0)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EPS = {torch.float16: 1e-5, torch.bfloat16: 1e-5, torch.float32: 1e-5, torch.float64: 1e-12}  # all but float64: float32
ROUNDING = 1e-4  # of float32 in five steps, each of which may multiply it by 3.4445

exact = pytest.mark.parametrize("text", EXACT)
every = pytest.mark.parametrize("text", [*EXACT, *ITERATED])


def twin(text):
    return NaiveNorm(text.split("(")[0], **EXACT[text])


def draw(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wide(t):
    return t.detach().double().numpy().astype(np.longdouble)


def close(ours, true, rel):
    true = np.asarray(true)
    assert np.abs(np.asarray(ours) - true).max() <= rel * np.abs(true).max()


# --- the naive twins


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@exact
def test_it_is_its_naive_twin(text, shape, dtype):
    norm, v = find_norm(text), draw(shape, dtype=dtype)
    unit = norm.unit(v)
    assert unit.dtype == norm.size(v).dtype == torch.promote_types(dtype, torch.float32)
    assert unit.shape == v.shape
    assert norm.size(v).shape == norm.dual(v).shape == ()
    close(wide(unit), twin(text).unit(wide(v)), EPS[dtype])
    close(norm.size(v).item(), twin(text).size(wide(v)), EPS[dtype])
    close(norm.dual(v).item(), twin(text).dual(wide(v)), EPS[dtype])
    assert norm.kappa(shape) == pytest.approx(twin(text).kappa(shape), rel=1e-12)


@pytest.mark.parametrize("exponents", [(-45, -40), (-45, 37), (-20, -15), (36, 37), (-1, 18)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@exact
def test_entries_may_be_as_small_or_large_as_the_dtype_allows(text, dtype, exponents):
    """The rows of one matrix have sizes between 10^low and 10^high; those of float64 are seven times as extreme.

    For the spectral norm all rows are of size 10^high: URᵀ is no continuous function at singular values of zero.
    """
    reach = 1 if dtype == torch.float32 else 7
    low, high = (reach * np.longdouble(e) for e in exponents)
    rows = np.logspace(high if text.startswith("spectral") else low, high, 6, dtype=np.longdouble)
    v = torch.from_numpy((rows[:, None] * wide(draw((6, 4), 2))).astype(np.float64)).to(dtype)
    norm, true = find_norm(text), wide(v)
    close(wide(norm.unit(v)), twin(text).unit(true), 2e-5 if dtype == torch.float32 else 1e-11)
    tiny = torch.finfo(dtype).smallest_normal  # a subnormal number has few digits
    size, dual = twin(text).size(true), twin(text).dual(true)
    if tiny < size < torch.finfo(dtype).max:
        close(norm.size(v).item(), size, 1e-5)
    if torch.finfo(torch.float64).smallest_normal < dual < torch.finfo(torch.float64).max:
        close(norm.dual(v).item(), dual, 1e-5)


@pytest.mark.parametrize("dim", [-1, -2, (-2, -1)], ids=str)
@pytest.mark.parametrize("exponents", [(-44, -40), (-45, 37), (36, 37), (-1, 18)], ids=str)
def test_in_float64_a_matrix_is_normalized_as_otherwise(dim, exponents):
    """Which spares a GPU the search for the largest entry."""
    sizes = torch.logspace(*exponents, 12, dtype=torch.float64)
    m = (draw((6, 12), 1) * (sizes if dim == -2 else sizes[::2, None])).float()
    m[:, 3] = m[2] = 0
    close(normalized_in_float64(m, dim), normalized(m.double(), dim), 1e-6)
    assert torch.equal(normalized_in_float64(m * 0, dim), torch.zeros_like(m))
    m[4, 4] = torch.inf
    assert normalized_in_float64(m, dim).isnan().any()


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@every
def test_a_weight_without_entries_has_size_zero(text, shape):
    norm, v = find_norm(text), torch.zeros(shape)
    assert norm.unit(v).shape == v.shape
    assert [u.shape for u in norm.units([v, torch.ones(2, 2), v])] == [v.shape, (2, 2), v.shape]
    assert norm.size(v) == norm.dual(v) == 0
    assert math.isfinite(norm.kappa(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every
def test_zero_has_no_direction(text, shape):
    norm, zero = find_norm(text), torch.zeros(shape)
    assert torch.equal(norm.unit(zero), zero)
    assert torch.equal(norm.unit(-zero) + 0, zero)
    assert norm.size(zero) == norm.dual(zero) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every
def test_a_bad_entry_makes_the_dual_norm_bad(text, shape, bad):
    norm, v = find_norm(text), draw(shape, dtype=torch.float32)
    v.view(-1)[-1] = bad
    assert not norm.dual(v).isfinite()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every
def test_memory_layout_does_not_matter(text, dtype):
    norm = find_norm(text)
    image = draw((6, 2, 3, 3), dtype=dtype)
    for v in (
        draw((5, 8), dtype=dtype).t(),
        draw((8, 10), dtype=dtype)[:, ::2],
        draw((4, 3, 2), dtype=dtype).transpose(0, 2),
        image.to(memory_format=torch.channels_last),
        draw((9,), dtype=dtype)[::2],
        draw((1, 1), dtype=dtype).expand(4, 3),
    ):
        before = v.clone()
        assert norm.unit(v).is_contiguous()
        assert all(u.is_contiguous() for u in norm.units([v, v]))
        close(wide(norm.unit(v)), wide(norm.unit(v.contiguous())), ROUNDING if norm.name == "spectral" else 1e-6)
        close(wide(norm.dual(v)), wide(norm.dual(v.contiguous())), 1e-5)
        close(wide(norm.size(v)), wide(norm.size(v.contiguous())), 1e-6)
        assert torch.equal(v, before)


@every
def test_many_tensors_at_once_are_each_alone(text):
    norm = find_norm(text)
    shapes = [(3, 8), (8, 3), (3, 8), (2, 12), (6, 2, 2, 1), (7,), (), (8, 3), (1, 7), (0, 3), (3, 4, 2)]
    vs = [draw(s, i, DTYPES[i % 4]) for i, s in enumerate(shapes)]
    for v, unit in zip(vs, norm.units(vs), strict=True):
        assert unit.dtype == torch.promote_types(v.dtype, torch.float32)
        assert_close(unit, norm.unit(v), rtol=1e-5, atol=ROUNDING if norm.name == "spectral" else 2e-6)
    assert norm.units([]) == []


@every
def test_nothing_is_recorded_for_autograd(text):
    v = nn.Parameter(draw((4, 3), dtype=torch.float32))
    norm = find_norm(text)
    assert not any(t.requires_grad for t in (norm.unit(v), norm.dual(v), norm.size(v), *norm.units([v, v])))


# --- what makes it a norm with its unit step


@given(text=st.sampled_from(list(EXACT)), shape=st.sampled_from(SHAPES), seed=st.integers(0, 10_000))
def test_the_unit_step_is_the_best_of_its_size(text, shape, seed):
    norm, v, other = find_norm(text), draw(shape, seed), draw(shape, seed + 1)
    unit, dual = norm.unit(v), norm.dual(v)
    assert norm.size(unit) <= 1 + 1e-12
    assert (v * unit).sum().item() == pytest.approx(dual.item(), rel=1e-12)
    for direction in (other, unit + 0.01 * other, norm.unit(other)):
        assert (v * direction / norm.size(direction)).sum() <= dual * (1 + 1e-12)


@given(text=st.sampled_from(list(EXACT)), shape=st.sampled_from(SHAPES), seed=st.integers(0, 10_000))
def test_size_and_dual_are_norms(text, shape, seed):
    norm, v, w = find_norm(text), draw(shape, seed), draw(shape, seed + 1)
    for measure in (norm.size, norm.dual):
        assert measure(v) > 0
        assert measure(-3 * v).item() == pytest.approx(3 * measure(v).item(), rel=1e-12)
        assert measure(v + w) <= (measure(v) + measure(w)) * (1 + 1e-12)
    assert_close(norm.unit(5 * v), norm.unit(v), rtol=1e-9, atol=1e-12)
    assert_close(norm.unit(-v), -norm.unit(v), rtol=1e-9, atol=1e-12)


@given(text=st.sampled_from(list(EXACT)), shape=st.sampled_from(SHAPES), seed=st.integers(0, 10_000))
def test_kappa_bounds_the_dual_norm(text, shape, seed):
    norm, v = find_norm(text), draw(shape, seed)
    assert norm.dual(v) <= norm.kappa(shape) * v.norm() * (1 + 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@exact
def test_kappa_is_the_least_bound(text, shape):
    rows = shape[0] if shape else 1
    even = torch.ones(shape, dtype=torch.float64).reshape(rows, -1)
    if text.startswith("spectral"):
        even = torch.eye(*even.shape, dtype=torch.float64)
    even = even.reshape(shape)
    norm = find_norm(text)
    assert norm.dual(even).item() == pytest.approx(norm.kappa(shape) * even.norm().item(), rel=1e-12)


# --- what the factors mean


def rms(t):
    return t.square().mean().sqrt().item()


def worst_input(w):
    """The input of RMS 1 that an (out, in) matrix maps to the largest RMS."""
    right = torch.linalg.svd(w, full_matrices=False).Vh[0]
    return right * math.sqrt(w.shape[1])


@pytest.mark.parametrize("shape", [(4, 16), (16, 4), (9, 9)], ids=str)
@pytest.mark.parametrize("norm", [Layer(), Spectral(coefficients="svd"), Row(), Col(), Sign()], ids=str)
def test_a_unit_step_changes_the_outputs_by_one_at_most_and_nearly_attains_it(norm, shape):
    """For inputs of RMS 1; the extreme is a gradient of rank one whose sides are even."""
    for seed in range(20):
        step = norm.unit(draw(shape, seed))
        for x in (worst_input(step), *(n / rms(n) for n in draw((5, shape[1]), seed + 1))):
            assert rms(step @ x) <= 1 + 1e-12
    step = norm.unit(torch.ones(shape, dtype=torch.float64))
    assert rms(step @ worst_input(step)) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("norm", [Layer(), Spectral(coefficients="svd"), Row(), Col(), Sign()], ids=str)
def test_a_unit_step_of_a_convolution_changes_no_position_by_more_than_one(norm, kernel):
    """For inputs of RMS 1 at every position. The factor 1/k² is Scion's; sign, row and col attain the bound."""
    convolve = nn.functional.conv1d if len(kernel) == 1 else nn.functional.conv2d
    even = torch.ones(6, 4, *kernel, dtype=torch.float64)
    for seed in range(10):
        step = norm.unit(even if seed == 0 else draw((6, 4, *kernel), seed))
        for x in (torch.ones(1, 4, *kernel, dtype=torch.float64), draw((1, 4, *kernel), seed + 50)):
            x = x / x.square().mean(1, keepdim=True).sqrt()
            assert convolve(x, step).square().mean(1).sqrt().max() <= 1 + 1e-12
    if norm.name in ("sign", "col", "row"):
        step = norm.unit(even)
        assert rms(convolve(torch.ones(1, 4, *kernel, dtype=torch.float64), step)) == pytest.approx(1)


@pytest.mark.parametrize("table", [(30, 8), (5, 12), (10,)], ids=str)
@pytest.mark.parametrize("kind", [Layer, Spectral, Row, Col, Sign])
def test_a_unit_step_of_a_table_changes_a_looked_up_row_by_one_at_most(kind, table):
    norm = kind(table=True, coefficients="svd") if kind is Spectral else kind(table=True)
    for seed in range(20):
        step = norm.unit(draw(table, seed)).reshape(table[0], -1)
        assert max(rms(row) for row in step) <= 1 + 1e-12
    lone = torch.zeros(table, dtype=torch.float64)  # one index in the batch, its gradient even
    lone[1] = 1
    assert rms(norm.unit(lone)[1]) == pytest.approx(1)


def test_an_index_that_is_not_in_the_batch_stays_where_it_is():
    gradient = torch.zeros(5, 3)
    gradient[2] = torch.tensor([3.0, 0.0, 4.0])
    step = Row(table=True).unit(gradient)
    assert step[[0, 1, 3, 4]].abs().max() == 0
    assert step[2].norm().item() == pytest.approx(math.sqrt(3))


# --- spelling


@pytest.mark.parametrize(
    "norm",
    [
        *(kind() for kind in NORMS.values()),
        Row(table=True),
        Sign(scaled=False, table=True),
        Spectral(scaled="max", steps=7, coefficients="polar-express"),
        Spectral(scaled="adamw", coefficients="svd"),
    ],
    ids=str,
)
def test_a_norm_is_found_by_its_own_text(norm):
    assert find_norm(str(norm)) == norm
    assert hash(find_norm(f"  {norm} ")) == hash(norm)
    assert find_norm(norm) is norm


def test_spaces_and_order_of_options_do_not_matter():
    assert find_norm(" spectral ( steps = 7,coefficients=svd ) ") == Spectral(coefficients="svd", steps=7)
    assert find_norm("row()") == Row()
    assert str(Row()) == "row"
    assert str(Row(table=True, scaled=False)) == "row(scaled=False, table=True)"


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (
            "spectrl",
            ValueError,
            "unknown norm 'spectrl', did you mean 'spectral'? must be one of l2, layer, sign, spec",
        ),
        ("", ValueError, "unknown norm ''; must be one of l2, layer, sign, spectral, row, col"),
        ("row(table=True", ValueError, "unknown norm 'row(table=True'; must be one of l2"),
        ("row(width=3)", ValueError, "norm row takes scaled=…, table=…, got 'width=3'"),
        ("row(table)", ValueError, "norm row takes scaled=…, table=…, got 'table'"),
        ("row(table=1)", ValueError, "table must be True or False, got 1"),
        ("row(scaled=max)", ValueError, "scaled must be one of True, False, got 'max'"),
        ("row(table=True, table=False)", ValueError, "norm row: table is given twice"),
        ("spectral(steps=0)", ValueError, "steps must be a whole number of at least 1, got 0"),
        ("spectral(steps=-1)", ValueError, "steps must be a whole number of at least 1, got '-1'"),
        ("spectral(steps=2.5)", ValueError, "steps must be a whole number of at least 1, got '2.5'"),
        ("spectral(steps=True)", ValueError, "steps must be a whole number of at least 1, got True"),
        (
            "spectral(coefficients=cubic)",
            ValueError,
            "coefficients must be one of muon, polar-express, svd, got 'cubic'",
        ),
        ("x" * 10_000, ValueError, "unknown norm 'xxx"),
        (None, TypeError, "norm must be a name or a sngd.norms.Norm, got None"),
        (2, TypeError, "norm must be a name or a sngd.norms.Norm, got 2"),
        (Spectral, TypeError, "norm must be a name or a sngd.norms.Norm, got <class 'sngd.norms.spectral.Spectral'>"),
    ],
)
def test_a_wrong_norm_is_named_in_one_line(wrong, kind, message):
    for use in (find_norm, lambda norm: SNGD([nn.Parameter(torch.ones(1))], norm=norm)):
        with pytest.raises(kind, match=f"^{re.escape(message)}") as error:
            use(wrong)
        assert len(str(error.value)) < 400
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [2.5, "5", True, 0, None])
def test_steps_are_a_whole_number(wrong):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        Spectral(steps=wrong)


# --- a norm of one's own


@dataclass(frozen=True)
class Total(Norm):
    """‖W‖ = Σ|W_ij|: the unit step moves the one entry with the largest derivative."""

    name = "total"

    def bare_unit(self, m):
        flat = m.flatten(-2)
        first = nn.functional.one_hot(flat.abs().argmax(-1), flat.shape[-1]).view_as(m)
        return first * m.sign()

    def bare_size(self, m):
        return m.abs().sum((-2, -1))

    def bare_kappa(self, rows, columns):
        return 1.0

    def factor(self, weight):
        return 1.0


def test_a_norm_of_ones_own_steps_and_is_saved():
    w = nn.Parameter(torch.zeros(2, 2))
    w.grad = torch.tensor([[1.0, -3.0], [2.0, 0.0]])
    optimizer = SNGD([w], lr=0.5, norm=Total(), momentum=0.9)
    optimizer.step()
    assert w.tolist() == [[0, 0.5], [0, 0]]
    assert optimizer.last_norm == 3
    state = optimizer.state_dict()
    assert state["param_groups"][0]["norm"] == "total"
    SNGD([w], norm=Total(), momentum=0.9).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^the norm of param group 0 is sign, but the saved one's is 'total'$"):
        SNGD([w], norm="sign", momentum=0.9).load_state_dict(state)


@pytest.mark.parametrize("shape", [(12_000_000,), (3000, 4000), (1, 12_000_000)])
def test_the_length_of_a_large_tensor_keeps_its_digits(shape):
    """torch's single sum of so many squares in float32 is wrong by several parts in a thousand."""
    v = torch.full(shape, 0.3)
    norm = find_norm("layer(scaled=False)")
    expected = 0.3 * 12_000_000**0.5
    assert norm.size(v).item() == pytest.approx(expected, rel=1e-4)
    assert norm.unit(v).double().norm().item() == pytest.approx(1, rel=1e-4)
    w = torch.nn.Parameter(torch.zeros(shape))
    w.grad = v
    SNGD([w], lr=1.0, norm=norm, foreach=False).step()
    assert w.detach().double().norm().item() == pytest.approx(1, rel=1e-4)
