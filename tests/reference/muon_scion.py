"""The steps of Muon and Scion in plain formulas, to hold ``SNGD(norm=…)`` against; facts from their papers and code.

Muon: torch.optim.Muon; Jordan et al. 2024. Scion: Pethick et al. 2025, arXiv 2502.07529, and LIONS-EPFL/scion.
"""

from math import sqrt

import torch

EPS = 1e-8  # that Scion adds to root mean squares


def orthogonalized(g):
    """The quintic Newton–Schulz iteration of both, without rounding to bfloat16."""
    x = g.flatten(1)
    x = x / torch.linalg.matrix_norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.view_as(g)


def scion_direction(kind, g):
    """The direction of the linear minimization oracle, by the name that Scion gives the norm."""
    if kind == "Spectral":
        return sqrt(g.shape[0] / g.shape[1]) * orthogonalized(g)
    if kind == "Spectral, max":
        return max(1.0, sqrt(g.shape[0] / g.shape[1])) * orthogonalized(g)
    if kind == "SpectralConv":
        return sqrt(g.shape[0] / g.shape[1]) / g.shape[2] ** (g.dim() - 2) * orthogonalized(g)
    if kind == "ColNorm, transposed":  # an embedding as (vocabulary, width)
        return g / (g.square().mean(1, keepdim=True).sqrt() + EPS)
    if kind == "ColNorm, normalized":
        return g / (g.square().mean(0, keepdim=True).sqrt() * g.shape[1] + EPS)
    if kind == "RowNorm, normalized":
        return g / (g.square().sum(1, keepdim=True).sqrt() * sqrt(g.shape[1]) + EPS)
    if kind == "RowNorm":
        return g / (g.square().sum(1, keepdim=True).sqrt() + EPS)
    if kind == "BiasRMS":
        return g / (g.square().mean().sqrt() + EPS)
    return g.sign() / (g.shape[1] if kind == "Sign" else 1)


class NaiveScion:
    """m ← (1 − a)m + a g; w ← (1 − γ)w − γ ρ lmo(m), without the factor 1 − γ if unconstrained."""

    def __init__(self, w, kind, lr, momentum, scale, unconstrained):
        self.w, self.m = w.clone(), torch.zeros_like(w)
        self.kind, self.lr, self.momentum, self.scale, self.unconstrained = kind, lr, momentum, scale, unconstrained

    def step(self, gradient):
        self.m = (1 - self.momentum) * self.m + self.momentum * gradient
        if not self.unconstrained:
            self.w = (1 - self.lr) * self.w
        self.w = self.w - self.lr * self.scale * scion_direction(self.kind, self.m)
