"""Gradient noise as the definitions read: one autograd call a sample, one formula a function."""

import torch


def sample_gradients(loss, params, samples):
    """∇f(w; a_i) of every sample, (n, d)."""
    rows = []
    for i in range(len(samples[0])):
        one = tuple(part[i : i + 1] for part in samples)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(one), params)]))
    return torch.stack(rows).double()


def population(gradients):
    """σ² = (1/n) Σ‖∇f_i − ∇F‖² and ‖∇F‖², of all n samples."""
    mean = sum(gradients) / len(gradients)
    return sum(float((g - mean) @ (g - mean)) for g in gradients) / len(gradients), float(mean @ mean)


def two_batch_sizes(small, big, small_norm_squared, big_norm_squared):
    """McCandlish et al. 2018, (A.2) and (A.3): trace of the covariance, and |G|²."""
    norm_squared = (big * big_norm_squared - small * small_norm_squared) / (big - small)
    trace = (small_norm_squared - big_norm_squared) / (1 / small - 1 / big)
    return trace, norm_squared
