"""A table of all supported backbones: number of blocks, possible image sizes, names of torchvision's weights.

Some read clips: several frames at once. All others read images, and of a clip one frame after another.

It needs no torch, so the process that searches can check a config against it. `finetune.model.backbones`
builds and cuts the models; a test builds each of them and compares it with this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from finetune.errors import BackboneError


@dataclass(frozen=True)
class Sides:
    """The square image sizes that a model accepts, as sides in pixels."""

    least: int = 1
    step: int = 1
    """Sides must be multiples of this."""
    most: int | None = None

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least} pixels"
        if self.step > 1:
            return f"a multiple of {self.step} pixels"
        return f"at least {self.least} pixels" if self.least > 1 else "any number of pixels"

    def nearest(self, side: int) -> int:
        """Return the accepted side nearest to `side`."""
        rounded = max(self.least, (side + self.step // 2) // self.step * self.step)
        return rounded if self.most is None else min(rounded, self.most)

    def check(self, name: str, side: int) -> None:
        """Check that model `name` accepts images of `side` pixels.

        Raises:
            BackboneError: it does not.
        """
        if self.nearest(side) != side:
            raise BackboneError(
                f"{name}: image_size must be {self}, got {side}. Set it to {self.nearest(side)}."
            )


@dataclass(frozen=True)
class Frames:
    """The numbers of frames that a model accepts in a clip."""

    least: int = 1
    most: int | None = None

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"at least {self.least}"

    def accepts(self, frames: int) -> bool:
        """Return True for a number of frames that the model can read."""
        return self.least <= frames and (self.most is None or frames <= self.most)

    def check(self, name: str, frames: int) -> None:
        """Check that model `name` accepts clips of so many frames.

        Raises:
            BackboneError: it does not.
        """
        if not self.accepts(frames):
            raise BackboneError(f"{name}: frames must be {self}, got {frames}. Set it to {self.least}.")


_V1 = ("IMAGENET1K_V1",)
_V2 = ("IMAGENET1K_V1", "IMAGENET1K_V2")
_KINETICS = ("KINETICS400_V1",)
_SWAG = ("IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1")


@dataclass(frozen=True)
class Outline:
    """Facts about a backbone that are known without building it."""

    blocks: int
    """Number of blocks, which is the most that can be frozen."""
    sides: Sides = Sides()
    weights: tuple[str, ...] = _V1
    """Names of torchvision's weights; `DEFAULT` is an alias of one of them."""
    frames: Frames | None = None
    """What a backbone that reads clips accepts; None: it reads images."""


_ONLY_224 = Sides(224, step=224, most=224)
OUTLINES: Mapping[str, Outline] = MappingProxyType(
    {
        "alexnet": Outline(5, sides=Sides(63)),
        "convnext_base": Outline(40, sides=Sides(32)),
        "convnext_large": Outline(40, sides=Sides(32)),
        "convnext_small": Outline(40, sides=Sides(32)),
        "convnext_tiny": Outline(22, sides=Sides(32)),
        "densenet121": Outline(62, sides=Sides(29)),
        "densenet161": Outline(82, sides=Sides(29)),
        "densenet169": Outline(86, sides=Sides(29)),
        "densenet201": Outline(102, sides=Sides(29)),
        "efficientnet_b0": Outline(18),
        "efficientnet_b1": Outline(25, weights=_V2),
        "efficientnet_b2": Outline(25),
        "efficientnet_b3": Outline(28),
        "efficientnet_b4": Outline(34),
        "efficientnet_b5": Outline(41),
        "efficientnet_b6": Outline(47),
        "efficientnet_b7": Outline(57),
        "efficientnet_v2_l": Outline(81),
        "efficientnet_v2_m": Outline(59),
        "efficientnet_v2_s": Outline(42),
        "googlenet": Outline(12, sides=Sides(15)),
        "inception_v3": Outline(16, sides=Sides(75)),
        "maxvit_t": Outline(12, sides=Sides(224, step=224, most=224)),
        "mnasnet0_5": Outline(19),
        "mnasnet0_75": Outline(19),
        "mnasnet1_0": Outline(19),
        "mnasnet1_3": Outline(19),
        "mobilenet_v2": Outline(19, weights=_V2),
        "mobilenet_v3_large": Outline(17, weights=_V2),
        "mobilenet_v3_small": Outline(13),
        "regnet_x_16gf": Outline(23, weights=_V2),
        "regnet_x_1_6gf": Outline(19, weights=_V2),
        "regnet_x_32gf": Outline(24, weights=_V2),
        "regnet_x_3_2gf": Outline(26, weights=_V2),
        "regnet_x_400mf": Outline(23, weights=_V2),
        "regnet_x_800mf": Outline(17, weights=_V2),
        "regnet_x_8gf": Outline(24, weights=_V2),
        "regnet_y_128gf": Outline(28, weights=_SWAG),
        "regnet_y_16gf": Outline(19, weights=(*_V2, *_SWAG)),
        "regnet_y_1_6gf": Outline(28, weights=_V2),
        "regnet_y_32gf": Outline(21, weights=(*_V2, *_SWAG)),
        "regnet_y_3_2gf": Outline(22, weights=_V2),
        "regnet_y_400mf": Outline(17, weights=_V2),
        "regnet_y_800mf": Outline(15, weights=_V2),
        "regnet_y_8gf": Outline(18, weights=_V2),
        "resnet101": Outline(34, weights=_V2),
        "resnet152": Outline(51, weights=_V2),
        "resnet18": Outline(9),
        "resnet34": Outline(17),
        "resnet50": Outline(17, weights=_V2),
        "resnext101_32x8d": Outline(34, weights=_V2),
        "resnext101_64x4d": Outline(34),
        "resnext50_32x4d": Outline(17, weights=_V2),
        "shufflenet_v2_x0_5": Outline(18),
        "shufflenet_v2_x1_0": Outline(18),
        "shufflenet_v2_x1_5": Outline(18),
        "shufflenet_v2_x2_0": Outline(18),
        "squeezenet1_0": Outline(9, sides=Sides(21)),
        "squeezenet1_1": Outline(9, sides=Sides(17)),
        "swin_b": Outline(28, sides=Sides(4)),
        "swin_s": Outline(28, sides=Sides(4)),
        "swin_t": Outline(16, sides=Sides(4)),
        "swin_v2_b": Outline(28, sides=Sides(4)),
        "swin_v2_s": Outline(28, sides=Sides(4)),
        "swin_v2_t": Outline(16, sides=Sides(4)),
        "vgg11": Outline(8, sides=Sides(32)),
        "vgg11_bn": Outline(8, sides=Sides(32)),
        "vgg13": Outline(10, sides=Sides(32)),
        "vgg13_bn": Outline(10, sides=Sides(32)),
        "vgg16": Outline(13, sides=Sides(32), weights=(*_V1, "IMAGENET1K_FEATURES")),
        "vgg16_bn": Outline(13, sides=Sides(32)),
        "vgg19": Outline(16, sides=Sides(32)),
        "vgg19_bn": Outline(16, sides=Sides(32)),
        "vit_b_16": Outline(13, sides=Sides(16, step=16), weights=(*_V1, *_SWAG)),
        "vit_b_32": Outline(13, sides=Sides(32, step=32)),
        "vit_h_14": Outline(33, sides=Sides(14, step=14), weights=_SWAG),
        "vit_l_16": Outline(25, sides=Sides(16, step=16), weights=(*_V1, *_SWAG)),
        "vit_l_32": Outline(25, sides=Sides(32, step=32)),
        "wide_resnet101_2": Outline(34, weights=_V2),
        "wide_resnet50_2": Outline(17, weights=_V2),
        "mc3_18": Outline(9, weights=_KINETICS, frames=Frames()),
        "mvit_v1_b": Outline(17, sides=_ONLY_224, weights=_KINETICS, frames=Frames(16, 16)),
        "mvit_v2_s": Outline(17, sides=_ONLY_224, weights=_KINETICS, frames=Frames(16, 16)),
        "r2plus1d_18": Outline(9, weights=_KINETICS, frames=Frames()),
        "r3d_18": Outline(9, weights=_KINETICS, frames=Frames()),
        "s3d": Outline(12, sides=Sides(209), weights=_KINETICS, frames=Frames(13)),
        "swin3d_b": Outline(28, weights=(*_KINETICS, "KINETICS400_IMAGENET22K_V1"), frames=Frames()),
        "swin3d_s": Outline(28, weights=_KINETICS, frames=Frames()),
        "swin3d_t": Outline(16, weights=_KINETICS, frames=Frames()),
    }
)
"""Torchvision's name of each backbone -> its facts: classifiers of images, then those of clips."""


def seen_shape(name: str, side: int, frames: int) -> tuple[int, ...]:
    """Return the shape of what a backbone reads at once, (3, S, S) or (3, T, S, S)."""
    return (3, frames, side, side) if reads_clips(name) else (3, side, side)


def reads_clips(name: str) -> bool:
    """Return True for a backbone that reads several frames at once."""
    return name in OUTLINES and OUTLINES[name].frames is not None
