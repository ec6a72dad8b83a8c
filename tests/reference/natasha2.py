"""Naive twin of ``sngd.training.natasha2``: one flat vector, sample after sample, dense Hessians, whole sub-epochs."""

import torch
from torch.autograd.functional import hessian, jacobian


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def natasha2(
    f,
    y,
    draw,
    generator,
    *,
    lr,
    batch_size,
    anchor_batch_size,
    sub_epochs,
    period,
    delta,
    smoothness,
    hessian_lipschitz,
    sigma,
    oja_steps,
    oja_batch_size,
    oja_lr,
):
    """Yields ("search" | "move" | "anchor" | "inner", weights) for ever; f(w, sample) is the loss of one sample.

    ``draw(size)`` gives the next samples, a list. Where the samples cannot matter, none are drawn.
    """
    radius = delta / hessian_lipschitz
    identity = torch.eye(len(y), dtype=y.dtype)
    while True:
        v = torch.randn(len(y), dtype=torch.float64, generator=generator)
        v = v / v.norm()
        for _ in range(oja_steps):
            h = mean(hessian(lambda w, a=a: f(w, a), y) for a in draw(oja_batch_size))
            v = (identity + oja_lr * (identity - h / smoothness) / 2) @ v
            v = v / v.norm()
            yield "search", y

        batch = draw(anchor_batch_size)
        if v @ mean(hessian(lambda w, a=a: f(w, a), y) for a in batch) @ v <= -delta / 2:
            sign = [-1, 1][torch.randint(2, (), generator=generator)]
            y = y + sign * radius * v
            yield "move", y
            continue

        def gradient(x, samples, y=y):
            def penalized(w, a):
                return f(w, a) + smoothness * ((w - y).norm() - radius).clamp(min=0) ** 2

            return mean(jacobian(lambda w, a=a: penalized(w, a), x) for a in samples)

        anchor, mu = y, gradient(y, batch)
        picks = torch.randint(period, (sub_epochs,), generator=generator).tolist()
        if max(picks) == 0:
            yield "anchor", y
        x_hat = y
        for pick in picks:
            x, iterates = x_hat, []
            for t in range(period):
                iterates.append(x)
                matters = t < pick and not torch.equal(x, anchor)
                samples = draw(batch_size) if matters else batch[:1]
                estimate = gradient(x, samples) - gradient(anchor, samples) + mu + 2 * sigma * (x - x_hat)
                x = x - lr * estimate
                if t < pick:
                    yield "inner" if matters else "anchor", x
            x_hat = iterates[pick]
        y = x_hat
