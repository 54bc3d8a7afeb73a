"""Pool the tokens of an encoder as timm does not: by attention with learned queries, or the mean of class tokens."""

import math

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

MOST_QUERIES = 32
"""EP's number of queries (arXiv:2506.10178); fewer where they do not divide the width."""


class EfficientProbe(nn.Module):
    """EP's pooling: each query attends to the patches and averages its own part of their values.

    Queries and keys are not projected, as in the authors' code; values are, without a bias.

    Source  arXiv:2506.10178.
    """

    def __init__(self, width: int) -> None:
        """Draw the queries as the authors do."""
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(math.gcd(MOST_QUERIES, width), width))
        self.values = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one vector per image, (b, n, d) -> (b, d)."""
        count, width = self.queries.shape
        weights = (tokens @ self.queries.T / math.sqrt(width)).softmax(dim=1)
        values = self.values(tokens).unflatten(2, (count, width // count))
        pooled: Tensor = (weights.unsqueeze(3) * values).sum(dim=1).flatten(1)
        return pooled


class ClassTokenMean(nn.Module):
    """Mean of the class tokens, of which timm has one and calls the others registers."""

    def __init__(self, count: int) -> None:
        """Take the number of class tokens, which come first."""
        super().__init__()
        self.count = count

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one vector per image, (b, n, d) -> (b, d)."""
        return tokens[:, : self.count].mean(dim=1)


def build_attention(*, ep: bool, width: int, heads: int) -> nn.Module:
    """Build EP's pooling, or attention of one query with projections and an MLP."""
    return EfficientProbe(width) if ep else AttentionPoolLatent(width, num_heads=heads)
