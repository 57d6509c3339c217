"""Cut a torchvision classifier into ordered blocks, pooling and its source FC.

Each family of models has one splitter, registered under the prefixes of its models' names; the
splitter says where the blocks are and what stands behind them. The parts are the model's own
modules, never copies.

Shapes: B images, (3, H, W) pixels, D features, K source classes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from finetune.errors import BackboneError, did_you_mean


@dataclass(frozen=True)
class Split:
    """What a splitter returns: the parts of one model, in the order in which an image meets them."""

    blocks: Sequence[tuple[str, nn.Module]]
    """Name and module of each block."""
    source_fc: nn.Module
    """Last activations -> (B, K) logits, with the source's own pooling and dropout."""
    features: int
    """D: channels of the pooled last activations."""
    pool: nn.Module
    """Last activations -> (B, D)."""


Splitter = Callable[[Any], Split]
_FAMILIES: dict[str, Splitter] = {}


def family(*prefixes: str) -> Callable[[Splitter], Splitter]:
    """Register a splitter for every model whose name begins with one of `prefixes`."""

    def register(splitter: Splitter) -> Splitter:
        _FAMILIES.update(dict.fromkeys(prefixes, splitter))
        return splitter

    return register


class GlobalAveragePool(nn.Module):
    """The mean over an image's positions: (B, D, h, w) -> (B, D)."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the mean of `h` over its last two dimensions."""
        return h.mean((2, 3))


class Backbone(nn.Module):
    """A torchvision classifier in parts; `forward` gives the original model's logits, bit for bit."""

    def __init__(self, name: str, parts: Split) -> None:
        super().__init__()
        self.name = name
        self.block_names = tuple(block for block, _ in parts.blocks)
        self.blocks = nn.Sequential(*(module for _, module in parts.blocks))
        self.pool = parts.pool
        self.source_fc = parts.source_fc
        self.features = parts.features

    @property
    def source_classes(self) -> int:
        """K: how many classes the source FC tells apart."""
        return last_layer(self.source_fc).weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return the source's logits (B, K) for images `x` (B, 3, H, W)."""
        logits: Tensor = self.source_fc(self.blocks(x))
        return logits


def names() -> list[str]:
    """Return the names of all torchvision classifiers that can be cut."""
    known = torchvision.models.list_models(module=torchvision.models)
    return [name for name in known if _families(name)]


def check(name: str) -> None:
    """Raise a BackboneError unless torchvision has a classifier `name` that can be cut."""
    known = names()
    if name not in known:
        raise BackboneError(
            f"backbone: must be a torchvision classifier that can be cut, got {name!r}. "
            + did_you_mean(name, known, show=len(known))
        )


def classifier(name: str, *, source_classes: int = 1000) -> nn.Module:
    """Return torchvision's model `name` with random weights from the global generator.

    Raises:
        BackboneError: there is no such model, or none that can be cut.
    """
    check(name)
    built: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=source_classes)
    return built


def build(name: str, *, source_classes: int = 1000) -> Backbone:
    """Return backbone `name` with random weights, drawn from the global generator.

    Raises:
        BackboneError: there is no such model, or none that can be cut.
    """
    return split(name, classifier(name, source_classes=source_classes))


def split(name: str, model: nn.Module) -> Backbone:
    """Return the parts of torchvision's `model`, which was built under `name`; they stay its modules.

    Raises:
        BackboneError: no splitter is registered for this name.
    """
    check(name)
    return Backbone(name, _FAMILIES[_families(name)[-1]](model))


def count_blocks(name: str) -> int:
    """Return how many blocks backbone `name` has: the most that can be frozen; builds no weights.

    Raises:
        BackboneError: there is no such model, or none that can be cut.
    """
    with torch.device("meta"):
        return len(build(name).blocks)


def last_layer(source_fc: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the layer of a source FC whose rows are the source classes: a Linear or a 1x1 convolution."""
    return [m for m in source_fc.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]


def set_rows(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Give a source FC's last layer new rows, in place: `weight` (C, ...) and `bias` (C,)."""
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(bias)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(weight)
    else:
        layer.out_channels = len(weight)


def _families(name: str) -> list[str]:
    """Return the registered prefixes that `name` begins with, the longest last."""
    return sorted((prefix for prefix in _FAMILIES if name.startswith(prefix)), key=len)


def _groups(layers: Iterable[nn.Module], *starts: type[nn.Module]) -> list[nn.Sequential]:
    """Cut a flat list of layers before each one of a type in `starts`."""
    groups: list[list[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, starts):
            groups.append([])
        groups[-1].append(layer)
    return [nn.Sequential(*group) for group in groups]


def _stages(model: Any, stages: Iterable[str]) -> list[tuple[str, nn.Module]]:
    return [(f"{stage}.{i}", block) for stage in stages for i, block in enumerate(getattr(model, stage))]


@family("vgg")
def _vgg(model: Any) -> Split:
    """One block per convolution, named as in the paper (`conv3_2`), with what follows it up to the next."""
    blocks: list[tuple[str, nn.Module]] = []
    stage, position = 1, 1
    for block in _groups(model.features, nn.Conv2d):
        blocks.append((f"conv{stage}_{position}", block))
        ends_stage = isinstance(block[-1], nn.MaxPool2d)
        stage, position = (stage + 1, 1) if ends_stage else (stage, position + 1)
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), *model.classifier)
    return Split(blocks, source_fc, features=512, pool=GlobalAveragePool())


@family("alexnet")
def _alexnet(model: Any) -> Split:
    groups = _groups(model.features, nn.Conv2d)
    blocks = [(f"conv{i}", block) for i, block in enumerate(groups, start=1)]
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), *model.classifier)
    return Split(blocks, source_fc, features=256, pool=GlobalAveragePool())


@family("resnet", "wide_resnet", "resnext")
def _resnet(model: Any) -> Split:
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    blocks = [("stem", stem), *_stages(model, ("layer1", "layer2", "layer3", "layer4"))]
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
    return Split(blocks, source_fc, features=model.fc.in_features, pool=GlobalAveragePool())


@family("mobilenet_v2")
def _mobilenet_v2(model: Any) -> Split:
    source_fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *model.classifier)
    features = last_layer(source_fc).weight.shape[1]
    return Split(_stages(model, ["features"]), source_fc, features=features, pool=GlobalAveragePool())


@family("squeezenet")
def _squeezenet(model: Any) -> Split:
    """Stem, then fires numbered from 2 as in the paper; a maximum pooling belongs to the block before it."""
    stem, *fires = _groups(model.features, nn.Conv2d, Fire)
    blocks = [("stem", stem), *((f"fire{i}", fire) for i, fire in enumerate(fires, start=2))]
    source_fc = nn.Sequential(*model.classifier, nn.Flatten())
    return Split(blocks, source_fc, features=512, pool=GlobalAveragePool())


@family("shufflenet_v2")
def _shufflenet_v2(model: Any) -> Split:
    stem = nn.Sequential(model.conv1, model.maxpool)
    blocks = [("stem", stem), *_stages(model, ("stage2", "stage3", "stage4")), ("conv5", model.conv5)]
    source_fc = nn.Sequential(GlobalAveragePool(), model.fc)
    return Split(blocks, source_fc, features=model.fc.in_features, pool=GlobalAveragePool())
