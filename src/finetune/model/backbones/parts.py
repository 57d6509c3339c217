"""What every family of models uses to say how its models are built and cut.

A family is a `Splitter` that names a model's blocks and what stands behind them, and, where plain
torchvision will not do, how the model is built. The rules that all families keep:

- A block is the unit that the paper repeats: a convolution of VGG, a residual block, a dense layer,
  an encoder layer. The layers before the first unit are one block, `stem`.
- A pooling or an activation without weights belongs to the block before it. A downsampling with
  weights between two stages is a block of its own.
- A norm between the last unit and the pooling is in the last block (DenseNet, Swin, ViT): what is
  pooled is normalised. A norm behind the pooling is in the source FC (ConvNeXt, MaxViT).
- The parts are the model's own modules and parameters, each in one place, never copies.

Shapes: B images, (3, S, S) pixels, D features, K source classes, T tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torchvision
from torch import Tensor, nn

from finetune.model.known_backbones import Sides

Blocks = list[tuple[str, nn.Module]]
"""Name and module of each block, in the order in which an image meets them."""


class GlobalAveragePool(nn.Module):
    """The mean over an image's positions: (B, D, h, w) -> (B, D)."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the mean of `h` over its last two dimensions."""
        return h.mean((2, 3))


@dataclass(frozen=True)
class Split:
    """What a splitter returns: the parts of one model, in the order in which an image meets them."""

    blocks: Blocks
    source_fc: nn.Module
    """Last activations -> (B, K) logits, with the source's own pooling and dropout."""
    features: int
    """D: channels of the pooled last activations."""
    pool: nn.Module = field(default_factory=GlobalAveragePool)
    """Last activations -> (B, D)."""
    sides: Sides = field(default_factory=Sides)


def torchvision_model(name: str, source_classes: int, **options: Any) -> nn.Module:
    """Return torchvision's model `name` with random weights; it knows the `options`."""
    built: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=source_classes, **options)
    return built


def same_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` itself: most published files have the keys of today's model."""
    return state


@dataclass(frozen=True)
class Family:
    """Models that are built and cut alike."""

    split: Callable[[Any], Split]
    """Takes a model that `build` made, or torchvision itself."""
    build: Callable[..., nn.Module] = torchvision_model
    """Takes a name, K and, where `image_size` is given, an `image_size`."""
    image_size: Callable[[dict[str, Tensor]], int] | None = None
    """Takes weights and returns the side of the images that they were made for, in pixels; None where
    the shapes of the weights do not depend on it."""
    current_keys: Callable[[dict[str, Tensor]], dict[str, Tensor]] = same_keys
    """Takes weights by the keys of a published file and returns them by those of today's model."""


def groups(layers: Iterable[nn.Module], *starts: type[nn.Module]) -> list[nn.Sequential]:
    """Cut a flat list of layers before each one of a type in `starts`."""
    found: list[list[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, starts):
            found.append([])
        found[-1].append(layer)
    return [nn.Sequential(*group) for group in found]


def numbered(name: str, units: Iterable[nn.Module]) -> Blocks:
    """Return the units of one stage as blocks `name.0`, `name.1`, ..."""
    return [(f"{name}.{i}", unit) for i, unit in enumerate(units)]


def pyramid(features: Sequence[nn.Module]) -> Blocks:
    """Return stem, stage, downsampling, stage, ... as blocks `stem`, `stage1.0`, ..., `downsample1`, ..."""
    blocks: Blocks = [("stem", features[0])]
    for i, part in enumerate(features[1:]):
        number = i // 2 + 1
        stage = i % 2 == 0
        blocks += numbered(f"stage{number}", part.children()) if stage else [(f"downsample{number}", part)]
    return blocks


def extended(blocks: Blocks, *layers: nn.Module) -> Blocks:
    """Return the blocks with `layers` at the end of the last one."""
    name, last = blocks[-1]
    return [*blocks[:-1], (name, nn.Sequential(last, *layers))]
