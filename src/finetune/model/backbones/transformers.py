"""Families with attention: ViT, Swin v1 and v2, MaxViT."""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.model.backbones.parts import Blocks, Family, Split, extended, numbered, pyramid
from finetune.model.known_backbones import Sides


class ClassToken(nn.Module):
    """The pooling of ViT, (B, T, D) -> (B, D): it selects the class token, which is the first."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the first token of `h`."""
        return h[:, 0]


class PatchEmbedding(nn.Module):
    """The stem of ViT, (B, 3, S, S) -> (B, T, D): patches, class token, position embeddings and dropout.

    The position embeddings are for the S that the model was built for (224 for torchvision's weights; 384,
    512 or 518 for some of SWAG's). For another S they are interpolated as torchvision's
    `interpolate_embeddings` does, so every multiple of the patch works.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_proj = model.conv_proj
        self.class_token = model.class_token  # (1, 1, D)
        self.pos_embedding = model.encoder.pos_embedding  # (1, T, D)
        self.dropout = model.encoder.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of images `x`, the class token first."""
        patches = self.conv_proj(x)  # (B, D, S / patch, S / patch)
        tokens = patches.flatten(2).permute(0, 2, 1)  # (B, T - 1, D)
        first = self.class_token.expand(x.shape[0], -1, -1)  # len(x) would fix B in an export
        embedded: Tensor = self.dropout(
            torch.cat([first, tokens], dim=1) + self._positions(patches.shape[-1])
        )
        return embedded

    def _positions(self, grid: int) -> Tensor:
        """Return position embeddings for a class token and `grid` x `grid` patches."""
        positions: Tensor = self.pos_embedding
        first, patches = positions[:, :1], positions[:, 1:]
        built_for = math.isqrt(patches.shape[1])
        if grid == built_for:
            return positions
        square = patches.permute(0, 2, 1).unflatten(2, (built_for, built_for))  # (1, D, 14, 14)
        resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=True)
        return torch.cat([first, resized.flatten(2).permute(0, 2, 1)], dim=1)


def _vit(model: Any) -> Split:
    """Cut into a stem and one block per encoder layer (Dosovitskiy et al. 2020, arXiv:2010.11929)."""
    layers: Blocks = [(f"layer{i}", layer) for i, layer in enumerate(model.encoder.layers)]
    blocks = extended([("stem", PatchEmbedding(model)), *layers], model.encoder.ln)
    sides = Sides(least=model.patch_size, step=model.patch_size)
    source_fc = nn.Sequential(ClassToken(), *model.heads)
    return Split(blocks, source_fc, features=model.hidden_dim, pool=ClassToken(), sides=sides)


def _current_vit_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys of published files: `mlp.linear_1` to `mlp.0`, and `mlp.linear_2` to `mlp.3`."""

    def renamed(key: str) -> str:
        return re.sub(r"\.mlp\.linear_([12])\.", lambda found: f".mlp.{3 * int(found[1]) - 3}.", key)

    return {renamed(key): tensor for key, tensor in state.items()}


def _vit_image_size(state: dict[str, Tensor]) -> int:
    """Return the side in pixels of a square image with one patch per position embedding."""
    grid = math.isqrt(state["encoder.pos_embedding"].shape[1] - 1)  # minus that of the class token
    return grid * state["conv_proj.weight"].shape[-1]


def _swin(model: Any) -> Split:
    """Cut into one block per window attention and per patch merging, called `downsample1` and so on.

    Both versions are by Liu et al. (2021): arXiv:2103.14030 for version 1, arXiv:2111.09883 for version 2.
    Between blocks the channels come last, (B, h, w, D); the last block ends with the norm and then moves
    the channels to their usual place.
    """
    blocks = extended(pyramid(model.features), model.norm, model.permute)
    source_fc = nn.Sequential(model.avgpool, model.flatten, model.head)
    return Split(blocks, source_fc, features=model.head.in_features, sides=Sides(least=4))


def _maxvit(model: Any) -> Split:
    """Cut into one block per MaxViT layer (Tu et al. 2022, arXiv:2204.01697).

    Such a layer has a convolution, window attention and grid attention.

    Every stage must divide into 7 x 7 partitions, and torchvision fixes their number when it builds the
    model for 224 pixels, so no other size works. The norm after the pooling belongs to the source FC.
    """
    blocks: Blocks = [("stem", model.stem)]
    for number, stage in enumerate(model.blocks, start=1):
        blocks += numbered(f"stage{number}", stage.layers)
    features = model.classifier[-1].in_features
    return Split(blocks, model.classifier, features=features, sides=Sides(least=224, step=224, most=224))


FAMILIES = {
    "vit": Family(_vit, current_keys=_current_vit_keys, image_size=_vit_image_size),
    "swin": Family(_swin),
    "maxvit": Family(_maxvit),
}
