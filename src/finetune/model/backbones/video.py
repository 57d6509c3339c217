"""Families that read clips, (B, 3, T, S, S): video ResNets, S3D, Video Swin, MViT.

Their source is Kinetics-400, and their weights are torchvision's.

Shapes: B clips, T frames, S side of a frame in pixels, D features, N tokens.
"""

from typing import Any

from torch import Tensor, nn

from finetune.model.backbones.parts import Blocks, Family, Split, extended, numbered, pyramid
from finetune.model.backbones.transformers import ClassToken
from finetune.model.known_backbones import Frames, Sides


class ClipAveragePool(nn.Module):
    """The mean over a clip's times and positions: (B, D, t, h, w) -> (B, D)."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the mean of `h` over its last three dimensions."""
        return h.mean((2, 3, 4))


def _resnet(model: Any) -> Split:
    """Cut into one block per residual block (Tran et al. 2018, arXiv:1711.11248)."""
    blocks: Blocks = [("stem", model.stem)]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        blocks += numbered(stage, getattr(model, stage))
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
    return Split(
        blocks, source_fc, features=model.fc.in_features, pool=ClipAveragePool(), frames=Frames(least=1)
    )


def _s3d(model: Any) -> Split:
    """Cut into a block per separable convolution and per inception block (Xie et al. 2018, arXiv:1712.04851).

    The source FC averages over windows of 2 x 7 x 7, so it needs clips of some length and size.
    """
    blocks: Blocks = []
    for place, part in enumerate(model.features):
        blocks = (
            extended(blocks, part)
            if isinstance(part, nn.MaxPool3d)
            else [*blocks, (f"features.{place}", part)]
        )
    source_fc = nn.Sequential(model.avgpool, *model.classifier, ClipAveragePool())
    features = model.classifier[-1].in_channels
    return Split(
        blocks,
        source_fc,
        features=features,
        pool=ClipAveragePool(),
        sides=Sides(least=209),
        frames=Frames(least=13),
    )


class ChannelsFirst(nn.Module):
    """The end of Video Swin's last block: (B, t, h, w, D) -> (B, D, t, h, w)."""

    def forward(self, h: Tensor) -> Tensor:
        """Return `h` with its channels in their usual place."""
        return h.permute(0, 4, 1, 2, 3)


def _swin(model: Any) -> Split:
    """Cut into one block per window attention and per patch merging (Liu et al. 2022, arXiv:2106.13230)."""
    stem = nn.Sequential(model.patch_embed, model.pos_drop)
    blocks = extended(pyramid([stem, *model.features]), model.norm, ChannelsFirst())
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), model.head)
    return Split(
        blocks, source_fc, features=model.head.in_features, pool=ClipAveragePool(), frames=Frames(least=1)
    )


class ClipTokens(nn.Module):
    """The stem of MViT, (B, 3, T, S, S) -> (B, N, D): patches with a class token and position embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_proj, self.pos_encoding = model.conv_proj, model.pos_encoding

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of clips `x`, the class token first."""
        tokens: Tensor = self.pos_encoding(self.conv_proj(x).flatten(2).transpose(1, 2))
        return tokens


class MultiscaleUnit(nn.Module):
    """An attention block of MViT, (B, N, D) -> (B, N', D'), which is told the grid of the tokens it gets."""

    def __init__(self, block: nn.Module, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, h: Tensor) -> Tensor:
        """Return the block's tokens."""
        after: Tensor = self.block(h, self.grid)[0]
        return after


def _mvit(model: Any) -> Split:
    """Cut into a stem and one block per attention block (Fan et al. 2021, Li et al. 2022: arXiv:2112.01526).

    torchvision builds the position embeddings for 16 frames of 224 pixels, so no other clip works.
    """
    encoding = model.pos_encoding
    grid = (encoding.temporal_size, *encoding.spatial_size)
    blocks: Blocks = [("stem", ClipTokens(model))]
    for place, block in enumerate(model.blocks):
        blocks.append((f"block{place}", MultiscaleUnit(block, grid)))
        if block.attn.pool_q is not None:
            strides = block.attn.pool_q.pool.stride
            grid = tuple(size // stride for size, stride in zip(grid, strides, strict=True))
    return Split(
        extended(blocks, model.norm),
        nn.Sequential(ClassToken(), *model.head),
        features=model.head[-1].in_features,
        pool=ClassToken(),
        sides=Sides(least=224, step=224, most=224),
        frames=Frames(least=16, most=16),
    )


FAMILIES = {
    "r3d_18": Family(_resnet),
    "mc3_18": Family(_resnet),
    "r2plus1d_18": Family(_resnet),
    "s3d": Family(_s3d),
    "swin3d": Family(_swin),
    "mvit": Family(_mvit),
}
