"""The product of balls over a model's weights: against its formulas, and against the steps that SNGD takes."""

import math

import pytest
import torch

import sngd
from sngd.norms import L2, NORMS, Sign, Spectral, product_of

DOUBLE = torch.float64
EXACT = [*(kind() for name, kind in NORMS.items() if name != "spectral"), Spectral(coefficients="svd")]


def weights(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, dtype=DOUBLE, generator=generator)) for shape in shapes]


def mixed():
    """Two l2 weights (one ball), a sign weight of radius 3 and two layer weights of radius ½ (two balls)."""
    params = weights((2, 3), (4,), (3, 3), (2,), (5, 2))
    groups = [
        {"params": [params[1]], "norm": "l2", "lr": 0.1},
        {"params": [params[2]], "norm": Sign(scaled=False), "lr": 0.3},
        {"params": [params[3], params[4]], "norm": "layer(scaled=False)", "lr": 0.05},
        {"params": [params[0]], "lr": 0.1},
    ]
    return params, groups


def test_it_is_the_largest_size_and_the_sum_of_duals():
    params, groups = mixed()
    norm = product_of(params, groups)
    a, b, c, d, e = (p.detach() for p in params)
    joint = math.hypot(a.norm(), b.norm())
    assert norm.dual(params).item() == pytest.approx(joint + 3 * c.abs().sum() + 0.5 * d.norm() + 0.5 * e.norm())
    assert norm.size(params).item() == pytest.approx(max(joint, c.abs().max() / 3, d.norm() / 0.5, e.norm() / 0.5))
    assert norm.kappa == pytest.approx(math.sqrt(1 + 9 * 9 + 0.25 + 0.25))
    assert str(norm) == "3 × sign(scaled=False), 0.5 × layer(scaled=False), l2"
    assert not norm.is_euclidean
    units = norm.units(params)
    for unit, expected in zip(
        units, [a / joint, b / joint, 3 * c.sign(), d / d.norm() / 2, e / e.norm() / 2], strict=True
    ):
        torch.testing.assert_close(unit, expected)


@pytest.mark.parametrize("norm", EXACT, ids=str)
def test_holders_inequality_and_kappa(norm):
    shapes = [(2, 3), (4,), (3, 2, 2, 2), ()]
    product = product_of(weights(*shapes), norm)
    for seed in range(20):
        v, w = weights(*shapes, seed=seed), weights(*shapes, seed=seed + 100)
        dual = product.dual(v).item()
        flat_v, flat_w = (torch.cat([p.detach().flatten() for p in some]) for some in (v, w))
        assert product.size(product.units(v)).item() == pytest.approx(1)
        assert flat_v @ flat_w <= dual * product.size(w).item() * (1 + 1e-12)
        assert dual <= product.kappa * flat_v.norm().item() * (1 + 1e-12)


def test_l2_is_one_ball_and_euclidean():
    params = weights((2, 3), (4,))
    product = product_of(params)
    assert product.is_euclidean
    assert (product.kappa, str(product), product.inexactness) == (1.0, "l2", (0.0, 0.0))
    assert product.dual(params).item() == pytest.approx(math.hypot(*(p.norm().item() for p in params)))
    assert product_of(params, product) is product


@pytest.mark.parametrize("norm", ["l2", "sign", "spectral", None])
def test_its_unit_steps_are_sngds(norm):
    """Mixed norms and learning rates too: a step of length α = 0.1 of the product with radii lr/α."""
    params, groups = mixed() if norm is None else (weights((2, 3), (4, 3)), norm)
    product = product_of(params, groups)
    before = [p.detach().clone() for p in params]
    for p, gradient in zip(params, weights(*product.shapes, seed=7), strict=True):
        p.grad = gradient.detach()
    optimizer = sngd.SNGD(params if norm else groups, lr=0.1, **({"norm": norm} if norm else {}))
    optimizer.step()
    for p, old, unit in zip(params, before, product.units([p.grad for p in params]), strict=True):
        torch.testing.assert_close(old - p.detach(), 0.1 * unit, rtol=1e-9, atol=1e-12)
    if norm:
        assert optimizer.last_norm.item() == pytest.approx(product.dual([p.grad for p in params]).item())


def test_a_models_groups_with_their_ratios():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    product = product_of(list(model.parameters()), sngd.groups(model, lr=0.05))
    assert str(product) == "spectral(scaled=max), layer, 16 × sign"
    kappas = [Spectral(scaled="max").kappa((4, 6)), math.sqrt(4), 16 * Sign().kappa((3, 4)), math.sqrt(3)]
    assert product.kappa == pytest.approx(math.hypot(*kappas))
    assert product_of(list(model.parameters()), sngd.groups(model, lr=0.05), lr=0.025).kappa == pytest.approx(
        2 * product.kappa
    )
    assert "svd" in str(product.exact)


def test_what_is_no_product_is_named():
    params, groups = mixed()
    with pytest.raises(ValueError, match="every one of the model's 5 weights once, got 4"):
        product_of(params, groups[:-1])
    with pytest.raises(ValueError, match=r"norm has a weight of shape \(4,\) that is none of the model's"):
        product_of(params[2:], groups)
    with pytest.raises(ValueError, match=r"lr must be the same in all groups of norm l2, .* got 0\.2, 0\.1"):
        product_of(params, [{**groups[0], "lr": 0.2}, *groups[1:]])
    with pytest.raises(ValueError, match="lr of a param group must be finite and greater than 0, got 0"):
        product_of(params, [*groups[:-1], {**groups[-1], "lr": 0.0}])
    with pytest.raises(ValueError, match="norm must be one of the model's 2 weights, got one of 5"):
        product_of(params[:2], product_of(params, groups))
    with pytest.raises(ValueError, match="unknown norm 'sing'"):
        product_of(params, "sing")
    with pytest.raises(ValueError, match="at least one param group"):
        product_of(params, [])


@pytest.mark.parametrize(("coefficients", "steps"), [("muon", 5), ("muon", 2), ("polar-express", 5)])
def test_newton_schulz_is_no_more_inexact_than_said(coefficients, steps):
    norm = Spectral(coefficients=coefficients, steps=steps, scaled=False)
    exact = Spectral(coefficients="svd", scaled=False)
    generator = torch.Generator().manual_seed(0)
    closest = [1.0, 1.0]
    for rank in (2, 6):
        shortfall, overshoot = norm.inexactness((rank, 8))
        for decay in torch.linspace(0, 4, 60).tolist():
            spectrum = torch.rand(rank, dtype=DOUBLE, generator=generator) * 10 ** -(
                decay * torch.rand(rank, dtype=DOUBLE, generator=generator)
            )
            u, _, v = torch.linalg.svd(torch.randn(rank, 8, dtype=DOUBLE, generator=generator), full_matrices=False)
            g = u @ spectrum.diag() @ v
            lost, longer = 1 - (norm.dual(g) / exact.dual(g)).item(), exact.size(norm.unit(g)).item() - 1
            assert lost <= shortfall + 1e-3
            assert longer <= overshoot + 1e-3
            closest = [min(closest[0], shortfall - lost), min(closest[1], overshoot - longer)]
    assert closest[0] < 0.05  # neither is far from what happens
    assert closest[1] < 0.02
    assert exact.inexactness((6, 8)) == L2().inexactness((6, 8)) == norm.inexactness((8,)) == (0.0, 0.0)
    assert product_of([torch.zeros(2, 8), torch.zeros(6, 8)], norm).inexactness == norm.inexactness((6, 8))


@pytest.mark.parametrize("shape", [(100,), (128, 128), (300, 300)])
@pytest.mark.parametrize("norm", ["sign(scaled=False)", "layer", "row", "col"])
def test_a_sum_that_is_too_large_for_float32_is_none_for_the_dual_norm(shape, norm):
    v = torch.full(shape, 1e35)
    product = product_of([v], norm)
    assert product.dual([v]).item() == pytest.approx(1e35 * product.dual([torch.ones(shape)]).item(), rel=2e-5)


@pytest.mark.parametrize("n", [10, 5000, 2**16, 2**16 + 1])
@pytest.mark.parametrize("layout", ["contiguous", "strided", "expanded"])
def test_equal_entries_are_summed_well_in_every_layout(n, layout):
    """The worst for a sum in float32: every addition rounds the same way."""
    layouts = {"contiguous": lambda: torch.full((n,), 0.1), "strided": lambda: torch.full((n, 3), 0.1)[:, 0]}
    v = layouts.get(layout, lambda: torch.tensor(0.1).expand(n))()
    assert Sign(scaled=False).dual(v).item() == pytest.approx(v.double().sum().item(), rel=2e-5)
