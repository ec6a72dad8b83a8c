"""A small language model: the decoder-only transformer of GPT-2, as nanoGPT has it.

Sources: A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; A. Karpathy, nanoGPT, model.py,
https://github.com/karpathy/nanoGPT.
"""

import torch
from torch import Tensor, nn

_STD = 0.02  # of all initial weights, but those that end a residual branch


class GPT(nn.Module):
    """Scores the next token at every place of a text, from the tokens up to that place.

    Token and position embeddings are added, `layers` blocks follow, then a LayerNorm and a linear layer whose weight is
    the token embedding's ("weight tying"). No layer has a bias. Weights are drawn from N(0, 0.02²). Those of the linear
    layers that end a block's two residual branches are drawn from N(0, 0.02²/(2·layers)), so that the variance of the
    sum over all branches does not grow with the number of layers. LayerNorms start at 1.

    Maps integer tokens of shape (batch, length), length ≤ context, to scores of shape (batch, length, vocabulary).

    Args:
        vocabulary: number of different tokens; tokens are 0 … vocabulary − 1.
        context: longest text in tokens.
        layers: number of blocks.
        heads: attention heads of a block; must divide `width`.
        width: numbers that represent a token between blocks.
        dropout: share of the activations that are dropped in training, in [0, 1).
    """

    def __init__(
        self, vocabulary: int, *, context: int, layers: int, heads: int, width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(heads, width, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.scores = nn.Linear(width, vocabulary, bias=False)
        self.scores.weight = self.tokens.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_STD)
        for module in self.modules():
            if isinstance(module, Attention | MLP):
                nn.init.normal_(module.out.weight, std=_STD / (2 * layers) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(places))
        scores: Tensor = self.scores(self.norm(self.blocks(x)))
        return scores


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(heads, width, dropout)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention. Queries, keys and values, in this order, are the outputs of one linear layer.

    It is written out, because torch's fused kernels have no second derivatives and no batching rule for
    `torch.func.vmap`, which curvature and per-sample gradients need.
    """

    def __init__(self, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        # Each of shape (batch, heads, length, width / heads)
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        affinity = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        weights = self.dropout(affinity.masked_fill(later, float("-inf")).softmax(-1))
        mixed = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return self.dropout(self.out(mixed))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.out(nn.functional.gelu(self.up(x))))  # type: ignore[no-any-return]
