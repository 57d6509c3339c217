"""Families of plain sequences of convolutions: AlexNet, VGG, SqueezeNet."""

from typing import Any

from torch import nn
from torchvision.models.squeezenet import Fire

from finetune.model.backbones.parts import Blocks, Family, Split, groups
from finetune.model.known_backbones import Sides


def _alexnet(model: Any) -> Split:
    """Cut into one block per convolution (Krizhevsky 2014, arXiv:1404.5997)."""
    blocks: Blocks = [
        (f"conv{i}", group) for i, group in enumerate(groups(model.features, nn.Conv2d), start=1)
    ]
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), *model.classifier)
    return Split(blocks, source_fc, features=256, sides=Sides(least=63))


def _vgg(model: Any) -> Split:
    """Cut into one block per convolution, such as the paper's `conv3_2` (Simonyan 2014, arXiv:1409.1556)."""
    blocks: Blocks = []
    stage, position = 1, 1
    for block in groups(model.features, nn.Conv2d):
        blocks.append((f"conv{stage}_{position}", block))
        ends_stage = isinstance(block[-1], nn.MaxPool2d)
        stage, position = (stage + 1, 1) if ends_stage else (stage, position + 1)
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), *model.classifier)
    return Split(blocks, source_fc, features=512, sides=Sides(least=32))


def _squeezenet(model: Any) -> Split:
    """Cut into stem and fires, numbered from 2 as in the paper (Iandola et al. 2016, arXiv:1602.07360)."""
    stem, *fires = groups(model.features, nn.Conv2d, Fire)
    blocks: Blocks = [("stem", stem), *((f"fire{i}", fire) for i, fire in enumerate(fires, start=2))]
    source_fc = nn.Sequential(*model.classifier, nn.Flatten())
    first = model.features[0].kernel_size[0]  # 7 pixels in version 1.0, 3 in 1.1
    return Split(blocks, source_fc, features=512, sides=Sides(least=21 if first == 7 else 17))


FAMILIES = {"alexnet": Family(_alexnet), "vgg": Family(_vgg), "squeezenet": Family(_squeezenet)}
