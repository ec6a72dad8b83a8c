"""SNGD takes the steps of torch's Muon, of Scion and of Signum: same weights after 20 steps."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from reference.muon_scion import NaiveScion
from sngd import SNGD
from sngd.norms import Spectral
from sngd.norms.spectral import newton_schulz

SCION = {
    "Spectral": ("spectral", (6, 9)),
    "Spectral, max": ("spectral(scaled=max)", (9, 6)),
    "SpectralConv": ("spectral", (6, 4, 3, 3)),
    "SpectralConv, 1-D": ("spectral", (6, 4, 3)),
    "ColNorm, transposed": ("row(table=True)", (12, 5)),
    "ColNorm, normalized": ("col", (6, 9)),
    "RowNorm, normalized": ("row", (6, 9)),
    "RowNorm": ("row(scaled=False)", (6, 9)),
    "BiasRMS": ("layer", (7,)),
    "Sign": ("sign", (6, 9)),
    "Sign, not normalized": ("sign(scaled=False)", (6, 9)),
}


def gradients(shape, dtype, steps=20):
    draws = torch.Generator().manual_seed(7)
    for step in range(steps):
        yield (10.0 ** (step % 3 - 1) * torch.randn(shape, generator=draws, dtype=torch.float64)).to(dtype)


def start(shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("unconstrained", [True, False])
@pytest.mark.parametrize("momentum", [1.0, 0.1])
@pytest.mark.parametrize("kind", SCION)
def test_scion(kind, momentum, unconstrained):
    """With learning rate γ and radius ρ: SNGD's step has length γρ, and decay 1/ρ, so that αλ = γ."""
    norm, shape = SCION[kind]
    gamma, radius = 0.02, 3.0
    theirs = NaiveScion(start(shape, torch.float64), kind.removesuffix(", 1-D"), gamma, momentum, radius, unconstrained)
    w = nn.Parameter(start(shape, torch.float64))
    decay = {} if unconstrained else {"weight_decay": 1 / radius, "decoupled_weight_decay": True}
    optimizer = SNGD([w], lr=gamma * radius, norm=norm, momentum=1 - momentum, normalize="momentum", **decay)
    for g in gradients(shape, torch.float64):
        w.grad = g
        optimizer.step()
        theirs.step(g)
    assert_close(w.detach(), theirs.w, rtol=0, atol=1e-6)  # Scion adds 1e-8 to norms


@dataclass(frozen=True)
class InBfloat16(Spectral):
    """All of it in bfloat16, the normalization too, as in torch's Muon."""

    def bare_unit(self, m):
        narrow = m.bfloat16()
        norms = torch.stack([one.norm() for one in narrow]).view(-1, 1, 1) if m.dim() > 2 else narrow.norm()
        return newton_schulz(narrow / norms, [(3.4445, -4.7750, 2.0315)] * 5).to(m.dtype)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)], ids=str)
@pytest.mark.parametrize(("scaled", "adjust"), [("max", "original"), ("adamw", "match_rms_adamw")])
@pytest.mark.parametrize(("kind", "tolerance"), [(InBfloat16, 1e-5), (Spectral, 0.1)])
def test_torchs_muon(kind, tolerance, scaled, adjust, shape, decay):
    """To float32's rounding with the same bfloat16 products. Else each of torch's five steps rounds entries by 2⁻⁹.

    A step multiplies what belongs to small singular values, and so its rounding, by up to 3.4445. So torch's
    step is up to 6 % away from the iteration without rounding, the most where a square matrix is nearly singular; in
    float32 SNGD's is within 0.01 %.
    """
    ours, theirs = (nn.Parameter(start(shape, torch.float32)) for _ in range(2))
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": decay}
    optimizer = SNGD([ours], norm=kind(scaled=scaled), normalize="momentum", decoupled_weight_decay=True, **options)
    muon = torch.optim.Muon([theirs], nesterov=False, adjust_lr_fn=adjust, **options)
    walked = start(shape, torch.float32)
    for g in gradients(shape, torch.float32):
        ours.grad, theirs.grad = g.clone(), g.clone()
        before = theirs.detach().clone(), ours.detach().clone()
        optimizer.step()
        muon.step()
        steps = theirs.detach() - before[0], ours.detach() - before[1]
        assert (steps[0] - steps[1]).norm() <= tolerance * steps[0].norm()
    walked = (theirs.detach() - walked).norm()
    assert (ours.detach() - theirs.detach()).norm() <= tolerance * walked


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_signum(momentum):
    """w ← w − α sign(m) with m ← βm + (1−β)g."""
    w = nn.Parameter(start((6, 9), torch.float64))
    ours = SNGD([w], lr=0.01, norm="sign(scaled=False)", momentum=momentum, normalize="momentum")
    average = torch.zeros(6, 9, dtype=torch.float64)
    expected = w.detach().clone()
    for g in gradients((6, 9), torch.float64):
        w.grad = g
        ours.step()
        average = momentum * average + (1 - momentum) * g
        expected -= 0.01 * average.sign()
    assert_close(w.detach(), expected, rtol=0, atol=1e-12)
