"""Cut a torchvision classifier into ordered blocks, pooling and its source FC.

All classifiers of `torchvision.models` and `torchvision.models.video` are supported under their names;
`docs/models.md` lists them, and `python -m search blocks NAME` lists the blocks of one.

    parts.py         types that all families use, and the rules for cutting a model
    sequential.py    AlexNet, VGG, SqueezeNet
    residual.py      ResNet, Wide ResNet, ResNeXt, RegNet, ConvNeXt, DenseNet
    mobile.py        MobileNet v2 and v3, MNASNet, ShuffleNet v2, EfficientNet v1 and v2
    inception.py     GoogLeNet, Inception v3: auxiliary classifiers, input transform
    transformers.py  ViT, Swin v1 and v2, MaxViT
    video.py         clips: video ResNets, S3D, Video Swin, MViT

Shapes: B images, (3, S, S) pixels, or of clips (3, T, S, S), D features, K source classes.
"""

import copy
from functools import cache, partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from finetune.errors import BackboneError, did_you_mean
from finetune.model.backbones import inception, mobile, residual, sequential, transformers, video
from finetune.model.backbones.parts import Family, Split
from finetune.model.known_backbones import OUTLINES, Sides, reads_clips

__all__ = [
    "Backbone",
    "build",
    "check",
    "check_image_size",
    "classifier",
    "current_keys",
    "image_size",
    "last_layer",
    "layout",
    "names",
    "set_rows",
    "split",
]

_FAMILIES: dict[str, Family] = {
    **sequential.FAMILIES,
    **residual.FAMILIES,
    **mobile.FAMILIES,
    **inception.FAMILIES,
    **transformers.FAMILIES,
    **video.FAMILIES,
}
"""Prefix of model names -> the family of these models."""


class Backbone(nn.Module):
    """A torchvision classifier in parts; `forward` returns the original model's logits to the bit."""

    def __init__(self, name: str, parts: Split) -> None:
        super().__init__()
        self.name = name
        self.block_names = tuple(block for block, _ in parts.blocks)
        self.blocks = nn.Sequential(*(module for _, module in parts.blocks))
        self.pool = parts.pool
        self.source_fc = parts.source_fc
        self.features = parts.features
        self.sides, self.frames = parts.sides, parts.frames
        # A hook on the first block also works where the blocks run without this module (TransferModel).
        self.blocks[0].register_forward_pre_hook(partial(_check_images, name, parts))

    @property
    def source_classes(self) -> int:
        """K, the number of classes of the source FC."""
        return last_layer(self.source_fc).weight.shape[0]

    def fork(self, shared: int, *, source_fc: bool = True) -> "Backbone":
        """Return a backbone that shares its first `shared` blocks with this one and copies the others.

        Args:
            shared: number of leading blocks to share; a negative number shares all.
            source_fc: whether to copy the source FC, too; else it is shared.
        """
        # copy.copy shares `_modules`; with a new dict, the assignments below do not change this backbone.
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        count = shared if shared >= 0 else len(self.blocks)
        copied = copy.deepcopy(self.blocks[count:])
        twin.blocks = nn.Sequential(*self.blocks[:count], *copied)
        if source_fc:
            twin.source_fc = copy.deepcopy(self.source_fc)
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """Return the source's logits (B, K) for images `x` (B, 3, S, S), or clips (B, 3, T, S, S).

        Raises:
            BackboneError: the model does not accept images of this size.
        """
        logits: Tensor = self.source_fc(self.blocks(x))
        return logits


def names() -> list[str]:
    """Return the names of all torchvision classifiers that can be cut."""
    known = [
        torchvision.models.list_models(module=one) for one in (torchvision.models, torchvision.models.video)
    ]
    return [name for some in known for name in some if _prefixes(name)]


def check(name: str) -> None:
    """Check that `name` is a torchvision classifier that can be cut.

    Raises:
        BackboneError: it is not.
    """
    known = names()
    if name not in known:
        raise BackboneError(
            f"backbone: must be a torchvision classifier that can be cut, got {name!r}. "
            + did_you_mean(name, known, show=len(known))
        )


def classifier(name: str, *, source_classes: int = 1000, image_size: int | None = None) -> nn.Module:
    """Return torchvision's model `name` with random weights from the global generator.

    It has the keys of torchvision's weights files, including auxiliary classifiers, and returns only the
    logits, in training, too.

    Args:
        name: torchvision's name of the model.
        source_classes: K.
        image_size: side in pixels of the images that the weights are for. It matters only to ViT, which
            has a position embedding for each patch; None: torchvision's default, 224.

    Raises:
        BackboneError: there is no such model, or it cannot be cut.
    """
    family = _family(name)
    options = {"image_size": image_size} if family.image_size and image_size is not None else {}
    return family.build(name, source_classes, **options)


def image_size(name: str, state: dict[str, Tensor]) -> int | None:
    """Return the `image_size` that `classifier` needs to build model `name` for the weights `state`.

    It is None if the shapes do not depend on it, or if the weights belong to another model.
    """
    of = _family(name).image_size
    if of is None:
        return None
    try:
        side = of(state)
    except (KeyError, IndexError, ValueError):  # another model's weights: loading them reports that
        return None
    return side if _sides(name).nearest(side) == side else None  # other patches, so another model, too


def current_keys(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of model `name` under the keys that the installed torchvision uses.

    Files that were published before a module was renamed (DenseNet, ViT) have older keys.
    """
    return _family(name).current_keys(state)


def build(name: str, *, source_classes: int = 1000, image_size: int | None = None) -> Backbone:
    """Return backbone `name` with random weights from the global generator; arguments as in `classifier`.

    Raises:
        BackboneError: there is no such model, or it cannot be cut.
    """
    return split(name, classifier(name, source_classes=source_classes, image_size=image_size))


def split(name: str, model: nn.Module) -> Backbone:
    """Cut torchvision's `model`, which was built as `name`, into a Backbone that uses its modules.

    Auxiliary classifiers are left out.

    Raises:
        BackboneError: there is no such model, or it cannot be cut.
    """
    return Backbone(name, _family(name).split(model))


def check_image_size(name: str, image_size: int) -> None:
    """Check, without creating weights, that backbone `name` accepts images of this size.

    Raises:
        BackboneError: it does not.
    """
    _sides(name).check(name, image_size)


def check_input(name: str, image_size: int, frames: int) -> None:
    """Check, without creating weights, that backbone `name` accepts samples of so many frames of this size.

    Raises:
        BackboneError: it does not.
    """
    check_image_size(name, image_size)
    if reads_clips(name) and (accepted := OUTLINES[name].frames) is not None:
        accepted.check(name, frames)


@cache
def _sides(name: str) -> Sides:
    check(name)
    if name in OUTLINES:
        return OUTLINES[name].sides
    with torch.device("meta"):  # a model that a newer torchvision has, of a family that is known
        return build(name).sides


Layer = nn.Linear | nn.Conv2d | nn.Conv3d
"""A last layer with one row per source class: a Linear, or a convolution of one position."""


def last_layer(source_fc: nn.Module) -> Layer:
    """Return the last layer of a source FC, with one row per source class."""
    return [m for m in source_fc.modules() if isinstance(m, Layer)][-1]


def set_rows(layer: Layer, weight: Tensor, bias: Tensor) -> None:
    """Replace the rows of a source FC's last layer, in place, by `weight` (C, ...) and `bias` (C,)."""
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(bias)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(weight)
    else:
        layer.out_channels = len(weight)


def _family(name: str) -> Family:
    check(name)
    return _FAMILIES[_prefixes(name)[-1]]


def _prefixes(name: str) -> list[str]:
    """Return the prefixes in _FAMILIES that `name` begins with, the longest last."""
    return sorted((prefix for prefix in _FAMILIES if name.startswith(prefix)), key=len)


def layout(name: str) -> torch.memory_format:
    """Return the order in memory in which a backbone's weights and images compute fastest."""
    return torch.contiguous_format if reads_clips(name) else torch.channels_last


def _check_images(name: str, parts: Split, _: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Forward pre-hook of the first block: check the size of images (B, 3, H, W) or clips (B, 3, T, H, W)."""
    x = inputs[0]
    if not isinstance(x, Tensor):  # torch.fx passes a proxy when it traces the block
        return
    if x.dim() != (4 if parts.frames is None else 5):
        what = "images (B, 3, S, S)" if parts.frames is None else "clips (B, 3, T, S, S)"
        raise BackboneError(f"{name}: must be given {what}, got {tuple(x.shape)}. Choose another backbone.")
    if parts.frames is not None:
        parts.frames.check(name, x.shape[2])
    for side in x.shape[-2:]:
        parts.sides.check(name, side)
