"""Newton–Schulz: where singular values end, what rank-deficient matrices give, and torch's own iteration."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sngd.norms import Spectral, spectral
from sngd.norms.spectral import newton_schulz

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
MUON = (3.4445, -4.7750, 2.0315)


def draw(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rotation(n, seed):
    return torch.linalg.qr(draw((n, n), seed, torch.float64)).Q


def with_singular_values(s, seed=0, extra=3):
    """An n × (n + extra) matrix with these singular values."""
    n = len(s)
    return rotation(n, seed) @ torch.diag(s.double()) @ rotation(n + extra, seed + 1)[:n]


def reached(norm, relative):
    """Where singular values that are these parts of ‖V‖_F go; the largest takes the rest of ‖V‖_F."""
    out = []
    for part in relative:
        s = torch.tensor([np.sqrt(1 - part**2), part], dtype=torch.float64)
        u = rotation(2, 3) @ torch.diag(s) @ rotation(2, 4)
        out.append(torch.linalg.svdvals(norm.unit(u)))
    return torch.stack(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("coefficients", "steps", "least", "low", "high", "never_above"),
    [
        ("muon", 5, 1e-2, 0.68, 1.14, 1.21),
        ("polar-express", 5, 1e-3, 0.84, 1.13, 1.14),
        ("polar-express", 6, 1e-3, 0.994, 1.002, 1.02),
    ],
)
def test_singular_values_end_where_the_documentation_says(coefficients, steps, least, low, high, never_above):
    norm = Spectral(scaled=False, coefficients=coefficients, steps=steps)
    ends = reached(norm, np.geomspace(least, np.sqrt(0.5), 2000))
    assert low <= ends.min()
    assert ends.max() <= high
    all_ends = reached(norm, np.geomspace(1e-9, np.sqrt(0.5), 4000))
    assert all_ends.max() <= never_above


@pytest.mark.parametrize("coefficients", ["muon", "polar-express"])
def test_more_steps_of_polar_express_come_nearer_and_muons_do_not(coefficients):
    """Muon's polynomial has no fixed point that attracts: with many steps values still move between 0.7 and 1.2."""
    parts = np.geomspace(1e-3, np.sqrt(0.5), 200)
    errors = [
        (reached(Spectral(scaled=False, coefficients=coefficients, steps=steps), parts) - 1).abs().max().item()
        for steps in (3, 5, 8, 12)
    ]
    if coefficients == "polar-express":
        assert errors[0] > errors[1] > errors[2]
        assert errors[3] < 1e-8
    else:
        assert min(errors) > 0.2


@pytest.mark.parametrize("coefficients", ["muon", "polar-express", "svd"])
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)], ids=str)
def test_a_rank_deficient_matrix_moves_in_its_own_rows_and_columns_alone(shape, rank, coefficients):
    """A gradient of a batch smaller than the layer has a rank smaller than the layer."""
    v = draw((shape[0], rank), 1, torch.float64) @ draw((rank, shape[1]), 2, torch.float64)
    unit = Spectral(scaled=False, coefficients=coefficients).unit(v)
    s = torch.linalg.svdvals(unit)
    assert (s > 0.6).sum() == rank
    assert s[rank:].abs().max() < 1e-9 if rank < 6 else True
    u, _, vh = torch.linalg.svd(v)
    assert (u[:, rank:].T @ unit).abs().max() < 1e-9 if rank < shape[0] else True
    assert (unit @ vh[rank:].T).abs().max() < 1e-9 if rank < shape[1] else True
    if coefficients == "svd":
        assert_close(unit, u[:, :rank] @ vh[:rank], rtol=0, atol=1e-10)


@pytest.mark.parametrize("coefficients", ["muon", "polar-express"])
def test_it_turns_no_singular_vector(coefficients):
    v = with_singular_values(torch.tensor([3.0, 1.0, 0.4, 0.1]))
    unit = Spectral(scaled=False, coefficients=coefficients).unit(v)
    u, _, vh = torch.linalg.svd(v, full_matrices=False)
    middle = u.T @ unit @ vh.T
    assert_close(middle, torch.diag(middle.diagonal()), rtol=0, atol=1e-12)
    assert (middle.diagonal() > 0.6).all()


@needs_muon
@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (33, 33), (2, 100)], ids=str)
def test_in_bfloat16_it_is_torchs_iteration(shape):
    from torch.optim._muon import _zeropower_via_newtonschulz

    v = draw(shape, 5).bfloat16()
    theirs = _zeropower_via_newtonschulz(v, MUON, 5, 1e-7)
    ours = newton_schulz(v / v.norm(), [MUON] * 5)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)


@needs_muon
@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (33, 33), (2, 100)], ids=str)
def test_in_float32_it_is_nearer_to_the_exact_iteration_than_torchs_in_bfloat16(shape):
    from torch.optim._muon import _zeropower_via_newtonschulz

    v = draw(shape, 5)
    exactly = newton_schulz((v.double() / v.double().norm()), [MUON] * 5)
    theirs = _zeropower_via_newtonschulz(v, MUON, 5, 1e-7).double()
    ours = newton_schulz(v / v.norm(), [MUON] * 5).double()
    assert (ours - exactly).norm() < 1e-4 * exactly.norm()
    assert 1e-3 * exactly.norm() < (theirs - exactly).norm() < 0.03 * exactly.norm()  # bfloat16 rounds to 2⁻⁹


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("coefficients", ["muon", "polar-express"])
@pytest.mark.parametrize("shape", [(7, 14), (40, 9), (3, 5, 64), (1, 6)], ids=str)
def test_iterations_on_the_gram_matrix_are_those_on_the_matrix(shape, coefficients, steps):
    v = draw(shape, 3, torch.float64)
    v = v / v.norm(dim=(-2, -1), keepdim=True)
    schedule = spectral._schedule(coefficients, steps)
    tall = v.shape[-2] > v.shape[-1]
    wide = (v.mT if tall else v).reshape(-1, min(shape[-2:]), max(shape[-2:]))
    truth = spectral._iterate(wide, schedule)
    assert_close(spectral._iterate_on_gram(wide, schedule), truth, rtol=0, atol=1e-12)
    ours = newton_schulz(v, schedule)
    assert_close(ours, (truth.mT if tall else truth).reshape(shape), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("coefficients", ["muon", "polar-express"])
def test_iterations_on_the_gram_matrix_round_no_more_than_those_on_the_matrix(coefficients, steps):
    """Singular values over eight decades: in float32 the Gram matrix's smallest eigenvalues are rounding errors.

    Without starting again these errors grow until the result is another one, after ten steps even to 1e9.
    """
    u, v = (torch.linalg.qr(draw((rows, 64), rows, torch.float64)).Q for rows in (64, 256))
    values = torch.logspace(0, -8, 64, dtype=torch.float64)
    matrix = (u * (values / values.norm())) @ v.T
    schedule = spectral._schedule(coefficients, steps)
    truth = spectral._iterate(matrix[None], schedule)
    errors = [
        (iterate(matrix[None].float(), schedule).double() - truth).norm().item()
        for iterate in (spectral._iterate_on_gram, spectral._iterate)
    ]
    assert errors[0] < 5 * errors[1] < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coefficients", ["muon", "polar-express", "svd"])
def test_a_batch_is_each_matrix_alone(coefficients, dtype):
    norm = Spectral(coefficients=coefficients)
    v = draw((5, 8, 6), 1, dtype)
    together = norm.bare_unit(v)
    for one, m in zip(together, v, strict=True):
        assert_close(one, norm.bare_unit(m), rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("coefficients", ["muon", "polar-express", "svd"])
def test_one_bad_matrix_of_a_batch_spoils_no_other(coefficients):
    norm = Spectral(coefficients=coefficients)
    vs = [draw((4, 6), i) for i in range(3)]
    vs[1][2, 3] = torch.inf
    units = norm.units(vs)
    assert not units[1].isfinite().any()
    for i in (0, 2):
        assert_close(units[i], norm.unit(vs[i]), rtol=0, atol=1e-4)
    assert norm.size(vs[1]).isnan()


@pytest.mark.parametrize("scaled", [True, False])
def test_kappa_is_the_exact_norms_and_newton_schulz_may_exceed_it_by_a_fifth(scaled):
    """What is documented: ⟨v, unit(v)⟩ is at most 1.21 times the exact dual norm."""
    norm, truth = Spectral(scaled=scaled), Spectral(scaled=scaled, coefficients="svd")
    for seed in range(50):
        v = draw((5, 7), seed)
        assert 0.5 < norm.dual(v) / truth.dual(v) < 1.21
        assert truth.dual(v) <= norm.kappa(v.shape) * v.norm() * (1 + 1e-6)
