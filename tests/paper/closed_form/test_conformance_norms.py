"""The conformance study in every norm: its constants, its walk, and that its checks can fail."""

import json

import pytest
import torch

from sngd.norms import Sign, Spectral
from sngd.paper.closed_form import any_norm
from sngd.stages import constant
from sngd.theory import Smooth


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(any_norm.INSTANCES, "quick", 1)
        return any_norm.measure("quick")


@pytest.mark.slow
def test_nothing_is_violated_and_a_quarter_of_L_is_caught(measured):
    assert set(measured["families"]) == set(any_norm.FAMILIES)
    for family in measured["families"].values():
        assert family["lemma_violations"] == family["bound_violations"] == 0
        assert family["caught"] == family["instances"] == 1
        assert family["comparisons"] in (4, 5)
        assert 0.5 < family["largest_lemma_ratio"] <= 1 + 1e-9
        assert family["largest_ratio"] < 1
    assert sum(family["caught_by_bound"] for family in measured["families"].values()) > 0


@pytest.mark.slow
def test_it_can_be_written_and_drawn(measured, tmp_path):
    json.dumps(measured, allow_nan=False)
    assert [path.name for path in any_norm.draw(measured, tmp_path)] == ["norms.png", "norms.svg"]


def drawn(family, seed):
    return any_norm.FAMILIES[family](torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", any_norm.FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_L_is_the_largest_curvature_in_the_norm(family, seed):
    """By ascent: from u, the unit step along Hu has no smaller ⟨u, Hu⟩, for H ≥ 0; the best of many ascents is L."""
    instance = drawn(family, seed)
    u = torch.randn(200, len(instance.hessian), dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for _ in range(30):
        u = units(instance, u @ instance.hessian)
    curvature = 2 * instance.value(u)
    assert instance.size(u).max().item() == pytest.approx(1)
    assert curvature.max().item() == pytest.approx(instance.L, rel=1e-3)


def units(instance, v):
    parts = zip(instance.balls, instance.parts(v), strict=True)
    return torch.cat([ball.scale * ball.norm.bare_unit(ball.matrices(part)).flatten(-2) for ball, part in parts], -1)


@pytest.mark.parametrize("family", any_norm.FAMILIES)
def test_kappa_bounds_the_dual_norm(family):
    instance = drawn(family, 0)
    v = torch.randn(1000, len(instance.hessian), dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    assert (instance.dual(v) <= instance.kappa * v.norm(dim=1) * (1 + 1e-12)).all()


@pytest.mark.parametrize("family", any_norm.FAMILIES)
def test_steps_have_length_lr_in_the_norm_and_follow_the_mean(family):
    """ε and δ that the walk measures are zero for exact steps, with momentum too, and not for Newton–Schulz."""
    path = any_norm.walk(drawn(family, 1), constant(0.1, 6), 4, {"momentum": 0.8}, torch.Generator().manual_seed(2))
    worst = max(path.shortfalls.max().item(), path.overshoots.max().item())
    if family == "spectral, Newton–Schulz":
        assert 1e-3 < worst < 0.6
    else:
        assert worst < 1e-9


def test_a_walk_is_what_a_plain_loop_does():
    instance, beta = drawn("sign", 4), 0.7
    path = any_norm.walk(instance, constant(0.1, 5), 3, {"momentum": beta}, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    w, m = instance.start.repeat(any_norm.SEEDS, 1), 0.0
    norm, shape = Sign(), instance.balls[0].shape
    for t in range(5):
        g = w @ instance.hessian
        drawn_samples = torch.randint(len(instance.noise), (any_norm.SEEDS, 3), generator=generator)
        m = beta * m + (1 - beta) * (g + instance.noise[drawn_samples].mean(1))
        for seed in range(any_norm.SEEDS):
            assert path.values[t, seed].item() == pytest.approx(instance.value(w[seed]).item())
            assert path.norms[t, seed].item() == pytest.approx(norm.dual(g[seed].view(shape)).item())
            error = norm.dual((g - m / (1 - beta ** (t + 1)))[seed].view(shape))
            assert path.errors[t, seed].item() == pytest.approx(error.item())
        w = w - 0.1 * torch.stack([norm.unit(row.view(shape)).flatten() for row in m])
    assert path.values[5].tolist() == pytest.approx(instance.value(w).tolist())


def test_a_lemma_without_the_error_or_with_exact_steps_assumed_is_refuted():
    generator = torch.Generator().manual_seed(0)
    instance, plan = drawn("sign", 0), constant(0.05, 40)
    path = any_norm.walk(instance, plan, 1, {}, generator)
    assert any_norm._lemma(Smooth(instance.L), plan, path, {}, True)[1] == 0
    blind = path._replace(errors=torch.zeros_like(path.errors))
    assert any_norm._lemma(Smooth(instance.L), plan, blind, {}, True)[1] > 0
    rough = drawn("spectral", 3)
    rough = rough._replace(balls=(rough.balls[0]._replace(spelling=Spectral(steps=1)),))
    path = any_norm.walk(rough, plan, None, {}, generator)
    assert any_norm._lemma(Smooth(rough.L), plan, path, {}, False)[1] == 0
    assert any_norm._lemma(Smooth(rough.L), plan, path, {}, True)[1] > 0


def test_an_unknown_profile_is_named():
    with pytest.raises(ValueError, match=r"^profile must be one of quick, small, got 'huge'$"):
        any_norm.measure("huge")
