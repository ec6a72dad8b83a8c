"""Naive twins of the methods: plain loops on one flat vector of weights, written from the paper's update formulas.

``gradient(w, batch)`` is the mean gradient over a batch, ``draw(size)`` the next samples (None: all of them). Each twin
yields the weights after every step.
"""

from math import inf

import torch


def norm(v):
    return float((v * v).sum()) ** 0.5


def minibatch_steps(gradient, w, draw, size, steps, update):
    """Any method with a plain gradient: ``update(w, g, t)`` gives the next weights."""
    for t in range(steps):
        w = update(w, gradient(w, draw(size)), t)
        yield w


def capped(w, g, alpha, beta=inf):
    return w - min(alpha / norm(g), beta) * g


def spider_sfo(gradient, w, draw, steps, alpha, beta, anchor, size, period):
    """Algorithm 3: μ is begun anew every ``period`` steps; at m = 1 the difference is zero."""
    t = 0
    while True:
        mu = gradient(w, draw(anchor))
        previous = w
        for m in range(1, period + 1):
            if m > 1:
                batch = draw(size)
                mu = gradient(w, batch) - gradient(previous, batch) + mu
            previous, w = w, capped(w, mu, alpha, beta)
            yield w
            t += 1
            if t == steps:
                return


def anchored(gradient, w, draw, steps, alpha, anchor, size, periods):
    """SVRG (``anchor`` None: all samples) and SCSG; ``periods`` yields the number of steps of each period."""
    t = 0
    while True:
        start, anchor_gradient = w, gradient(w, draw(anchor))
        for m in range(next(periods)):
            g = anchor_gradient
            if m > 0:
                batch = draw(size)
                g = gradient(w, batch) - gradient(start, batch) + anchor_gradient
            w = w - alpha * g
            yield w
            t += 1
            if t == steps:
                return


def sngm(gradient, w, draw, size, steps, alpha, beta):
    """u ← βu + g/‖g‖, w ← w − αu."""
    u = 0 * w
    for _ in range(steps):
        g = gradient(w, draw(size))
        u = beta * u + g / norm(g)
        w = w - alpha * u
        yield w


def nsgd_momentum(gradient, w, draw, size, steps, alpha, beta):
    """m ← βm + (1 − β)g, w ← w − α m/‖m‖."""
    m = 0 * w
    for _ in range(steps):
        m = beta * m + (1 - beta) * gradient(w, draw(size))
        w = w - alpha * m / norm(m)
        yield w


def in_norms(gradient, w, draw, size, steps, beta, tensors):
    """m ← βm + (1 − β)g, then w ← w − α unit(m) tensor by tensor.

    ``tensors``: (shape, α, unit) of each, in the order in which the flat vector holds them; unit takes a matrix.
    """
    m = 0 * w
    for _ in range(steps):
        m = beta * m + (1 - beta) * gradient(w, draw(size))
        moves, start = [], 0
        for (rows, columns), alpha, unit in tensors:
            v = m[start : start + rows * columns].reshape(rows, columns)
            moves.append((alpha * unit(v)).flatten())
            start += rows * columns
        w = w - torch.cat(moves)
        yield w


def newton_schulz(v, steps=5):
    """Muon's quintic iteration: singular values near 1."""
    x = v / norm(v)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def heavy_ball(gradient, w, draw, size, steps, alpha, beta):
    u = 0 * w
    for _ in range(steps):
        u = beta * u + gradient(w, draw(size))
        w = w - alpha * u
        yield w


def adamw(gradient, w, draw, size, steps, alpha, beta1, beta2, eps=1e-8):
    """Without weight decay."""
    m = v = 0 * w
    for t in range(1, steps + 1):
        g = gradient(w, draw(size))
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        w = w - alpha * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps)
        yield w
