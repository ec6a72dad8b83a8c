"""Residual networks for small images.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
"""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu_


def cifar_resnet(depth: int) -> nn.Sequential:
    """The paper's network for CIFAR-10, with `depth` = 6n + 2 layers that have weights.

    A convolution of 16 channels, then three groups of n blocks with 16, 32, 64 channels at 32×32, 16×16, 8×8
    pixels, an average over the pixels and a linear layer. Shortcuts have no parameters (the paper's option A).
    There are 75 290 parameters at depth 8, 269 722 at 20 and 853 018 at 56. Convolutions are drawn as in He et
    al. 2015, normal of variance 2 / fan-in.

    Maps float images of shape (batch, 3, 32, 32) to scores of shape (batch, 10).

    Raises:
        ValueError: depth is not 6n + 2 with n ≥ 1.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise ValueError(f"depth must be 6n + 2 with n of at least 1 (8, 14, 20, …), got {depth}")
    widths = [16] * n + [32] * n + [64] * n
    blocks = [Block(inputs, outputs) for inputs, outputs in zip([16, *widths], widths, strict=False)]
    model = nn.Sequential(*_conv_bn(3, 16), _relu(), *blocks, Average(), nn.Flatten(), nn.Linear(64, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


class Block(nn.Module):
    """relu(residual(x) + shortcut(x)): two 3×3 convolutions beside a way past them.

    With more channels out than in, the block also halves the height and width. The shortcut then takes every
    second pixel, and zeros for the new channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.new_channels = outputs - inputs
        stride = 2 if self.new_channels else 1
        self.residual = nn.Sequential(*_conv_bn(inputs, outputs, stride), _relu(), *_conv_bn(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return relu_(self.residual(x).add_(self.shortcut(x)))

    def shortcut(self, x: Tensor) -> Tensor:
        if not self.new_channels:
            return x
        every_second = avg_pool2d(x, 1, stride=2)  # unlike x[:, :, ::2, ::2] it keeps the order in memory backwards
        return pad(every_second, (0, 0, 0, 0, 0, self.new_channels))


class Average(nn.Module):
    """The mean over an image's pixels, of shape (batch, channels, 1, 1); backwards it keeps the order in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, x.shape[2:])


def _conv_bn(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    # Without a bias, which the normalization would subtract again.
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)


def _relu() -> nn.ReLU:
    # In place, because no gradient needs its input, and new memory takes the system longer than the arithmetic.
    return nn.ReLU(inplace=True)
