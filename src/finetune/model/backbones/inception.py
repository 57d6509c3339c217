"""Families of inception modules: GoogLeNet and Inception v3.

Both have auxiliary classifiers, which help only in training from random weights; torchvision's weights files
contain them. Both expect pixels scaled to [-1, 1]: torchvision's models with pretrained weights rescale
ImageNet-normalised images (`transform_input`), and the models built here always do.
"""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from finetune.model.backbones.parts import Blocks, Family, Split
from finetune.model.known_backbones import Sides

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""Attributes of the two models that hold an auxiliary classifier."""


class Rescale(nn.Module):
    """Change the normalisation from ImageNet's mean and deviation to 0.5 and 0.5, for images (B, 3, S, S).

    The operations are those of torchvision's `_transform_input`, so that the results are equal to the bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return pixels in [-1, 1] for ImageNet-normalised `x`."""
        channels = zip(x.unbind(dim=1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
        return torch.stack([c * (std / 0.5) + (mean - 0.5) / 0.5 for c, mean, std in channels], dim=1)


class Idle(nn.Module):
    """An auxiliary classifier that keeps its weights under their names and computes nothing."""

    def __init__(self, auxiliary: nn.Module) -> None:
        super().__init__()
        for name, layer in auxiliary.named_children():
            self.add_module(name, layer)

    def forward(self, _: Tensor) -> None:
        """Do nothing."""


def _build(name: str, source_classes: int) -> nn.Module:
    """Return the model with idle auxiliary classifiers, so that it returns only logits in training, too."""
    model: Any = torchvision.models.get_model(
        name, weights=None, num_classes=source_classes, transform_input=True, init_weights=True
    )
    for attribute in AUXILIARY:
        if hasattr(model, attribute):
            setattr(model, attribute, Idle(getattr(model, attribute)))
    model.aux_logits = False  # torchvision then returns the logits, not a tuple
    built: nn.Module = model
    return built


def _blocks(model: Any, pooled: dict[str, str]) -> Blocks:
    """Return one block per convolution and inception module, each with the pooling that follows it."""
    blocks: Blocks = []
    for name, module in model.named_children():
        if name.startswith(("conv", "inception", "Conv2d", "Mixed")):
            behind = [getattr(model, pooled[name])] if name in pooled else []
            before = [] if blocks or not model.transform_input else [Rescale()]
            blocks.append((name, nn.Sequential(*before, module, *behind)))
    return blocks


def _googlenet(model: Any) -> Split:
    """Cut into blocks by torchvision's names, as in the paper (Szegedy et al. 2014, arXiv:1409.4842)."""
    pooled = {
        "conv1": "maxpool1",
        "conv3": "maxpool2",
        "inception3b": "maxpool3",
        "inception4e": "maxpool4",
    }
    source_fc = nn.Sequential(model.avgpool, nn.Flatten(), model.dropout, model.fc)
    return Split(_blocks(model, pooled), source_fc, features=model.fc.in_features, sides=Sides(least=15))


def _inception_v3(model: Any) -> Split:
    """Cut into blocks by torchvision's names (Szegedy et al. 2015, arXiv:1512.00567).

    The published weights were trained on images of 299 pixels.
    """
    pooled = {"Conv2d_2b_3x3": "maxpool1", "Conv2d_4a_3x3": "maxpool2"}
    source_fc = nn.Sequential(model.avgpool, model.dropout, nn.Flatten(), model.fc)
    return Split(_blocks(model, pooled), source_fc, features=model.fc.in_features, sides=Sides(least=75))


FAMILIES = {
    "googlenet": Family(_googlenet, build=_build),
    "inception_v3": Family(_inception_v3, build=_build),
}
