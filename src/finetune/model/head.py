"""The heads, one class per strategy: the part of a model after its last block.

A head turns the last block's activations into logits in two steps. `reduce` is the first part, which has no
weights and is usually the pooling; `classify` is the rest. After a frozen backbone the reduced activations
never change, so they can be stored. The optimiser puts a submodule `source_fc`, which only `fuse` has, into a
parameter group of its own; all other weights of a head are the group `head`.

Shapes: B images, D pooled features, K source classes, C classes.
"""

import torch
from torch import Tensor, nn

from finetune.model.backbones.parts import GlobalAveragePool
from finetune.model.backbones.transformers import ClassToken
from finetune.strategy import FUSE, LOAD, REPLACE


class MLPHead(nn.Sequential):
    """New layers, (B, D) -> (B, C): `head_size` hidden units with ReLU, dropout, and the last Linear.

    With a `head_size` of 0 there are no hidden units: dropout and one Linear.
    """

    def __init__(self, features: int, head_size: int, classes: int, dropout: float) -> None:
        hidden = [nn.Linear(features, head_size), nn.ReLU()] if head_size else []
        last = nn.Linear(head_size or features, classes)
        super().__init__(*hidden, nn.Dropout(dropout), last)
        self.head_size = head_size


class ReplaceHead(nn.Module):
    """Head of `replace`: new layers read the pooled activations, and the source FC is not used."""

    strategy = REPLACE.name
    pools = True
    """True, since `reduce` is the backbone's pooling."""

    def __init__(self, pool: nn.Module, new: MLPHead) -> None:
        super().__init__()
        self.pool = pool
        self.new = new

    def reduce(self, h: Tensor) -> Tensor:
        """Return pooled features (B, D) for the last block's activations `h`."""
        pooled: Tensor = self.pool(h)
        return pooled

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits (B, C)."""
        logits: Tensor = self.new(pooled)
        return logits

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the last block's activations `h`."""
        return self.classify(self.reduce(h))


class LoadHead(nn.Module):
    """Head of `load`: the source FC, whose last layer has one row per class of the new task."""

    strategy = LOAD.name

    def __init__(self, pool: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.new = new
        self.pools = begins_with_pool(new)

    def reduce(self, h: Tensor) -> Tensor:
        """Return pooled features (B, D), or `h` itself if the source FC does not begin with it."""
        reduced: Tensor = self.pool(h) if self.pools else h
        return reduced

    def classify(self, reduced: Tensor) -> Tensor:
        """Return logits (B, C)."""
        return answers_behind_pool(self.new, reduced) if self.pools else self.new(reduced)

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the last block's activations `h`."""
        return self.classify(self.reduce(h))


class FuseHead(nn.Module):
    """Head of `fuse`: new layers read the pooled activations (D) concatenated with the source softmax (K).

    The softmax is used rather than the logits, since logits are so much larger than the features that a
    learning rate which suits the trunk is too high for the head (figures: docs/decisions.md).
    """

    strategy = FUSE.name

    def __init__(self, pool: nn.Module, source_fc: nn.Module, new: MLPHead) -> None:
        super().__init__()
        self.pool = pool
        self.source_fc = source_fc
        self.new = new
        self.pools = begins_with_pool(source_fc)

    def reduce(self, h: Tensor) -> Tensor:
        """Return pooled features (B, D), or `h` itself if the source FC does not begin with it."""
        reduced: Tensor = self.pool(h) if self.pools else h
        return reduced

    def classify(self, reduced: Tensor) -> Tensor:
        """Return logits (B, C)."""
        pooled = reduced if self.pools else self.pool(reduced)
        answers = answers_behind_pool(self.source_fc, reduced) if self.pools else self.source_fc(reduced)
        logits: Tensor = self.new(torch.cat([pooled, answers.softmax(dim=1)], dim=1))  # (B, D + K)
        return logits

    def forward(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the last block's activations `h`."""
        return self.classify(self.reduce(h))


def begins_with_pool(source_fc: nn.Module) -> bool:
    """Return True if the first layer of a source FC is the backbone's pooling: the mean, or the class token.

    The two pools agree to the bit, since torch computes AdaptiveAvgPool2d(1) as that mean. Of clips it is
    AdaptiveAvgPool3d(1), which agrees up to rounding.
    """
    first = source_fc[0] if isinstance(source_fc, nn.Sequential) else source_fc
    return _is_mean(first) or isinstance(first, GlobalAveragePool | ClassToken)


def answers_behind_pool(source_fc: nn.Module, pooled: Tensor) -> Tensor:
    """Run a source FC that begins with its pooling on features (B, D) that are pooled already."""
    assert isinstance(source_fc, nn.Sequential)
    x = pooled
    if _is_mean(source_fc[0]):
        x = (
            pooled[:, :, None, None, None]
            if isinstance(source_fc[0], nn.AdaptiveAvgPool3d)
            else pooled[:, :, None, None]
        )
    for layer in source_fc[1:]:
        x = layer(x)
    return x


def _is_mean(layer: nn.Module) -> bool:
    means = nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d
    return isinstance(layer, means) and layer.output_size in (1, (1, 1), (1, 1, 1))
