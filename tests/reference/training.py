"""Naive twin of the engine: one loop, everything in the open, nothing but torch."""

import hashlib

import torch


def generator(seed, purpose):
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def naive_training(problem, seed, lrs, batch_size, normalized, weight_decay=0.0):
    """Weights after one step for each learning rate in ``lrs``; batches are cut from endless shuffled passes."""
    digest = hashlib.sha256(f"{seed} model".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7]))
    model = problem.build_model()
    inputs, targets = problem.train
    shuffle, queue = generator(seed, "samples"), []
    for lr in lrs:
        while len(queue) < batch_size:
            queue += torch.randperm(len(inputs), generator=shuffle).tolist()
        batch, queue = queue[:batch_size], queue[batch_size:]
        model.zero_grad()
        problem.loss(model(inputs[batch]), targets[batch]).backward()
        gradients = [p.grad + weight_decay * p.detach() for p in model.parameters()]
        norm = torch.cat([g.flatten() for g in gradients]).norm() if normalized else 1.0
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= lr * g / norm
    return [p.detach() for p in model.parameters()]
