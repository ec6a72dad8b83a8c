"""Classes of heavy-tailed frequencies, as words have them, with nothing else that would make the problem hard.

Source: F. Kunstner, R. Yadav, A. Milligan, M. Schmidt, A. Bietti, "Heavy-Tailed Class Imbalance and Why Adam
Outperforms Gradient Descent on Language Models", NeurIPS 2024, https://arxiv.org/abs/2402.19449: the linear model on
synthetic data.
"""

import torch

from sngd.problems.problem import Samples

GROUPS = 8


def imbalanced(groups: int = GROUPS) -> Samples:
    """Samples of 2^m − 1 classes in m groups: 2^i classes of 2^(m − i) samples each, for i = 0 … m − 1.

    The classes of a group are equally frequent, and each group has 2^m samples, an m-th of all. The k-th most frequent
    class, k = 1, 2, …, has a share of 1/(m·2^⌊log₂ k⌋): in steps, ∝ 1/k as the frequencies of words. The most frequent
    class has 2^(m − 1) times as many samples as each of the 2^(m − 1) rarest.

    Inputs are independent and uniform on [0, 1]^d with d = (m + 1)·2^m, and have nothing to do with their class. As
    d ≥ n, a linear model can nevertheless tell all samples apart, so that inf F = 0. What is left that is hard is the
    imbalance: gradient descent is slow on the rare classes.

    With m = 8, there are n = 2048 samples of d = 2304 numbers in 255 classes. All draws come from a generator of fixed
    seed: the samples are the same at every call. They are in random order, and any first ones of them are a random
    sample. There is no test set, as labels that are independent of the inputs cannot be predicted.

    Args:
        groups: m ≥ 1.

    Returns:
        Inputs, float32 of shape (m·2^m, d), and labels, int64 of shape (m·2^m,), in which class 0 is the most frequent.
    """
    sizes = [2 ** (groups - i) for i in range(groups) for _ in range(2**i)]
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(len(labels), (groups + 1) * 2**groups, generator=generator)
    return inputs, labels[torch.randperm(len(labels), generator=generator)]
