"""Families of residual and dense blocks: ResNet, Wide ResNet, ResNeXt, RegNet, ConvNeXt, DenseNet."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.regnet import ResBottleneckBlock, SimpleStemIN

from finetune.model.backbones.parts import (
    Blocks,
    Family,
    Split,
    extended,
    numbered,
    pyramid,
    torchvision_model,
)
from finetune.model.known_backbones import Sides


def _resnet(model: Any) -> Split:
    """Cut into one block per residual block, by torchvision's names.

    The papers: ResNet (He et al. 2015, arXiv:1512.03385), Wide ResNet (Zagoruyko & Komodakis 2016,
    arXiv:1605.07146), ResNeXt (Xie et al. 2016, arXiv:1611.05431).
    """
    blocks: Blocks = [("stem", nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool))]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        blocks += numbered(stage, getattr(model, stage))
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
    return Split(blocks, source_fc, features=model.fc.in_features)


def _regnet(model: Any) -> Split:
    """Cut into one block per residual block (Radosavovic et al. 2020, arXiv:2003.13678).

    torchvision's `block2` is called `stage2` here, as in the paper.
    """
    blocks: Blocks = [("stem", model.stem)]
    for number, stage in enumerate(model.trunk_output, start=1):
        blocks += numbered(f"stage{number}", stage)
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
    return Split(blocks, source_fc, features=model.fc.in_features)


def _build_regnet(name: str, source_classes: int) -> nn.Module:
    """Return the model; if the default device is meta, only its layers are created there.

    torchvision computes the widths of the stages with tensors of the default device, and the meta
    device has no values to compute with.
    """
    if torch.get_default_device().type != "meta":
        return torchvision_model(name, source_classes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        built: nn.Module = torchvision.models.get_model(
            name,
            weights=None,
            num_classes=source_classes,
            stem_type=_on_meta(SimpleStemIN),
            block_type=_on_meta(ResBottleneckBlock),
        )
    return built.to("meta")


def _on_meta(layer: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def make(*arguments: Any) -> nn.Module:
        with torch.device("meta"):
            return layer(*arguments)

    return make


def _convnext(model: Any) -> Split:
    """Cut into one block per ConvNeXt block and per downsampling (Liu et al. 2022, arXiv:2201.03545).

    The norm in torchvision's classifier comes after the pooling, so it belongs to the source FC.
    """
    source_fc = nn.Sequential(model.avgpool, *model.classifier)
    features = model.classifier[-1].in_features
    return Split(pyramid(model.features), source_fc, features=features, sides=Sides(least=32))


class DenseUnit(nn.Module):
    """A dense layer that appends its output to its input: (B, D, h, w) -> (B, D + growth, h, w)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor) -> Tensor:
        """Return `h` with the channels of the layer's output appended."""
        return torch.cat([h, self.layer(h)], dim=1)


def _densenet(model: Any) -> Split:
    """Cut into one block per dense layer and per transition (Huang et al. 2016, arXiv:1608.06993).

    The last norm, `norm5`, and the ReLU that follows it in torchvision's `forward` belong to the last block.
    """
    parts = dict(model.features.named_children())
    blocks: Blocks = [("stem", nn.Sequential(*(parts[n] for n in ("conv0", "norm0", "relu0", "pool0"))))]
    for name, part in parts.items():
        if name.startswith("denseblock"):
            blocks += [(f"{name}.{unit}", DenseUnit(layer)) for unit, layer in part.items()]
        elif name.startswith("transition"):
            blocks.append((name, part))
    blocks = extended(blocks, parts["norm5"], nn.ReLU(inplace=True))
    source_fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier)
    return Split(blocks, source_fc, features=model.classifier.in_features, sides=Sides(least=29))


def _current_densenet_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys of published files, such as `denselayer1.norm.1.weight` to `denselayer1.norm1.weight`."""
    old = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
    return {old.sub(r"\1\2", key): tensor for key, tensor in state.items()}


FAMILIES = {
    "resnet": Family(_resnet),
    "wide_resnet": Family(_resnet),
    "resnext": Family(_resnet),
    "regnet": Family(_regnet, build=_build_regnet),
    "convnext": Family(_convnext),
    "densenet": Family(_densenet, current_keys=_current_densenet_keys),
}
