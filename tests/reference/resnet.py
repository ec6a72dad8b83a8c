"""Naive twin of ``sngd.problems.resnet.cifar_resnet`` in training mode: formulas on a flat list of its parameters."""

import torch
from torch.nn.functional import conv2d


def resnet_scores(params, x):
    """``params`` in the order of the layers: weight, scale, shift of each convolution, then the linear layer's two."""
    params = list(params)
    n = (len(params) - 5) // 18
    x = conv_normalize(params, x, stride=1).clamp(min=0)
    for width in (16, 32, 64):
        for _ in range(n):
            grows = x.shape[1] != width
            y = conv_normalize(params, x, stride=2 if grows else 1).clamp(min=0)
            y = conv_normalize(params, y, stride=1)
            if grows:
                x = x[:, :, ::2, ::2]
                x = torch.cat([x, torch.zeros_like(x)], dim=1)
            x = (y + x).clamp(min=0)
    weight, bias = params
    return x.mean(dim=(2, 3)) @ weight.T + bias


def conv_normalize(params, x, stride):
    weight, scale, shift = (params.pop(0) for _ in range(3))
    x = conv2d(x, weight, stride=stride, padding=1)
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
