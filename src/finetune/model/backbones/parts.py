"""Types and helpers with which each family of models defines how its models are built and cut.

A `Family` has a function that cuts a model into blocks, pooling and source FC and, if plain torchvision does
not suffice, a function that builds the model. All families follow these rules:

- A block is the unit that the paper repeats: a convolution of VGG, a residual block, a dense layer,
  an encoder layer. The layers before the first unit are one block, `stem`.
- A pooling or an activation without weights belongs to the block before it. A downsampling with
  weights between two stages is a block of its own.
- A norm between the last unit and the pooling belongs to the last block (DenseNet, Swin, ViT), so that pooled
  activations are normalised. A norm after the pooling belongs to the source FC (ConvNeXt, MaxViT).
- The parts are the model's own modules and parameters, each in one place, never copies.

Shapes: B images, (3, S, S) pixels, D features, K source classes, T tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torchvision
from torch import Tensor, nn

from finetune.model.known_backbones import Frames, Sides

Blocks = list[tuple[str, nn.Module]]
"""Name and module of each block, in the order of the forward pass."""


class GlobalAveragePool(nn.Module):
    """The mean over an image's positions: (B, D, h, w) -> (B, D)."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the mean of `h` over its last two dimensions."""
        return h.mean((2, 3))


@dataclass(frozen=True)
class Split:
    """The parts of one model, as the function `Family.split` returns them."""

    blocks: Blocks
    source_fc: nn.Module
    """Module from the last activations to (B, K) logits, with the source's own pooling and dropout."""
    features: int
    """D, the number of channels of the pooled last activations."""
    pool: nn.Module = field(default_factory=GlobalAveragePool)
    """Module from the last activations to (B, D)."""
    sides: Sides = field(default_factory=Sides)
    frames: Frames | None = None
    """Frames of the clips (B, 3, T, S, S) that the model reads; None: it reads images (B, 3, S, S)."""


def torchvision_model(name: str, source_classes: int, **options: Any) -> nn.Module:
    """Return torchvision's model `name` with random weights; `options` go to its constructor."""
    built: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=source_classes, **options)
    return built


def same_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` itself, since most published files have the keys of the current model."""
    return state


@dataclass(frozen=True)
class Family:
    """Models that are built and cut in the same way."""

    split: Callable[[Any], Split]
    """Function that cuts a model made by `build` or by torchvision itself."""
    build: Callable[..., nn.Module] = torchvision_model
    """Function that builds a model from its name, K and, if the field `image_size` is set, that size."""
    image_size: Callable[[dict[str, Tensor]], int] | None = None
    """Function from weights to the side in pixels of the images they were made for; None if the shapes of the
    weights do not depend on it."""
    current_keys: Callable[[dict[str, Tensor]], dict[str, Tensor]] = same_keys
    """Function that renames the keys of a published file to those of the current model."""


def groups(layers: Iterable[nn.Module], *starts: type[nn.Module]) -> list[nn.Sequential]:
    """Cut a flat list of layers before each layer whose type is in `starts`."""
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
    """Return the blocks with `layers` appended to the last one."""
    name, last = blocks[-1]
    return [*blocks[:-1], (name, nn.Sequential(last, *layers))]
