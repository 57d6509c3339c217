"""Families for small compute budgets: MobileNet v2 and v3, MNASNet, ShuffleNet v2, EfficientNet v1 and v2."""

from typing import Any

from torch import nn
from torchvision.models import MNASNet

from finetune.model.backbones.parts import Blocks, Family, GlobalAveragePool, Split, numbered


def _mobilenet(model: Any) -> Split:
    """Cut into one block per entry of torchvision's `features`: stem, inverted residuals, last convolution.

    Version 2 is by Sandler et al. (2018, arXiv:1801.04381), version 3 by Howard et al. (2019,
    arXiv:1905.02244); the source FC of version 3 has a hidden layer.
    """
    source_fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *model.classifier)
    first = next(layer for layer in model.classifier if isinstance(layer, nn.Linear))
    return Split(numbered("features", model.features), source_fc, features=first.in_features)


def _efficientnet(model: Any) -> Split:
    """Cut into one block per inverted residual; `stage1` is torchvision's `features.1`.

    Both versions are by Tan & Le: version 1 (2019, arXiv:1905.11946) and version 2 (2021, arXiv:2104.00298).
    """
    stem, *stages, last = model.features
    blocks: Blocks = [("stem", stem)]
    for number, stage in enumerate(stages, start=1):
        blocks += numbered(f"stage{number}", stage)
    blocks.append(("conv_last", last))
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), *model.classifier)
    return Split(blocks, source_fc, features=model.classifier[-1].in_features)


def _mnasnet(model: Any) -> Split:
    """Cut into one block per inverted residual (Tan et al. 2018, arXiv:1807.11626).

    torchvision's flat list of layers is: convolution (3 layers), separable convolution (5), six stacks, the
    last convolution (3).
    """
    layers = list(model.layers)
    blocks: Blocks = [("stem", nn.Sequential(*layers[:3])), ("separable", nn.Sequential(*layers[3:8]))]
    for number, stack in enumerate(layers[8:-3], start=1):
        blocks += numbered(f"stack{number}", stack)
    blocks.append(("conv_last", nn.Sequential(*layers[-3:])))
    source_fc = nn.Sequential(GlobalAveragePool(), *model.classifier)
    return Split(blocks, source_fc, features=model.classifier[-1].in_features)


class PlainMNASNet(MNASNet):
    """An MNASNet that also loads weights without torch's metadata, such as those of safetensors files.

    torchvision refuses weights whose metadata has no version; all files that it publishes have version 2.
    """

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, {"version": self._version} | metadata, *rest)


def _build_mnasnet(name: str, source_classes: int) -> nn.Module:
    """Return the model with the width that is part of its name: `mnasnet0_75` has width 0.75."""
    width = float(name.removeprefix("mnasnet").replace("_", "."))
    return PlainMNASNet(width, num_classes=source_classes)


def _shufflenet_v2(model: Any) -> Split:
    """Cut into one block per unit, with the paper's names of stages (Ma et al. 2018, arXiv:1807.11164)."""
    blocks: Blocks = [("stem", nn.Sequential(model.conv1, model.maxpool))]
    for stage in ("stage2", "stage3", "stage4"):
        blocks += numbered(stage, getattr(model, stage))
    blocks.append(("conv5", model.conv5))
    source_fc = nn.Sequential(GlobalAveragePool(), model.fc)
    return Split(blocks, source_fc, features=model.fc.in_features)


FAMILIES = {
    "mobilenet": Family(_mobilenet),
    "efficientnet": Family(_efficientnet),
    "mnasnet": Family(_mnasnet, build=_build_mnasnet),
    "shufflenet_v2": Family(_shufflenet_v2),
}
