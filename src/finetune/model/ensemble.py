"""Several heads on one frozen backbone that answer together: one pass of the blocks, the mean of the answers.

Shapes: B images, C classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ENSEMBLE = "ensemble"
"""The strategy of such a model in its folder."""


class EnsembleHead(nn.Module):
    """Heads on the last block's activations; the softmax of the output is the weighted mean of theirs."""

    strategy = ENSEMBLE
    pools = False
    """False, since each head has a pooling of its own."""

    def __init__(self, pool: nn.Module, heads: Sequence[nn.Module], shares: Sequence[float]) -> None:
        super().__init__()
        self.pool = pool
        self.new = nn.ModuleList(heads)
        self.shares = tuple(shares)
        """Weight of each head; they add up to 1."""

    def reduce(self, h: Tensor) -> Tensor:
        """Return `h` itself."""
        return h

    def classify(self, h: Tensor) -> Tensor:
        """Return the logarithm of the mean probabilities, (B, C)."""
        return mean_logits([head(h) for head in self.new], self.shares)

    def forward(self, h: Tensor) -> Tensor:
        """Return the logarithm of the mean probabilities, (B, C), for the last block's activations `h`."""
        return self.classify(h)


def mean_logits(logits: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return what an ensemble answers, (B, C), from the logits of its heads."""
    told = [
        one.float().log_softmax(dim=1) + math.log(share) for one, share in zip(logits, shares, strict=True)
    ]
    return torch.stack(told).logsumexp(dim=0)
