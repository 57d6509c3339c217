"""What stands behind the last block: one head per strategy.

A head reads the last block's activations and returns logits. Its submodule `source_fc`, where it
has one beside new layers, is a parameter group of its own; all else in it is the group `head`.

Shapes: B images, D pooled features, K source classes, C classes.
"""

import torch
from torch import Tensor, nn


class MLPHead(nn.Sequential):
    """New layers: (B, D) -> (B, C).

    `head_size` hidden units with ReLU, then dropout and the last Linear; 0: dropout and one Linear.
    """

    def __init__(self, features: int, head_size: int, classes: int, dropout: float) -> None:
        hidden = [nn.Linear(features, head_size), nn.ReLU()] if head_size else []
        last = nn.Linear(head_size or features, classes)
        super().__init__(*hidden, nn.Dropout(dropout), last)


class ReplaceHead(nn.Module):
    """`replace`: the source FC is gone; new layers read the pooled activations."""

    strategy = "replace"

    def __init__(self, pool: nn.Module, new: MLPHead) -> None:
        super().__init__()
        self.pool = pool
        self.new = new

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the last block's activations `h`."""
        logits: Tensor = self.new(self.pool(h))
        return logits


class LoadHead(nn.Module):
    """`load`: the source FC itself, its last layer with a row per class of the new task."""

    strategy = "load"

    def __init__(self, new: nn.Module) -> None:
        super().__init__()
        self.new = new

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the last block's activations `h`."""
        logits: Tensor = self.new(h)
        return logits


class FuseHead(nn.Module):
    """`fuse`: new layers read the pooled activations (D) and the source FC's softmax (K) side by side.

    The softmax, as the logits themselves are so large beside the features that a rate good for the
    trunk is too high for the head (figures: docs/decisions.md).
    """

    strategy = "fuse"

    def __init__(self, pool: nn.Module, source_fc: nn.Module, new: MLPHead) -> None:
        super().__init__()
        self.pool = pool
        self.source_fc = source_fc
        self.new = new

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the last block's activations `h`."""
        both = torch.cat([self.pool(h), self.source_fc(h).softmax(dim=1)], dim=1)  # (B, D + K)
        logits: Tensor = self.new(both)
        return logits


Head = ReplaceHead | LoadHead | FuseHead
