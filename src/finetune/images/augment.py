"""Augmentation in addition to crop and flip, of single images and of whole batches with their labels.

Shapes: B images of a batch, C classes, S side in pixels.
"""

import random
from collections.abc import Callable
from functools import lru_cache

from torch import Tensor
from torchvision.transforms import v2

from finetune.settings import TrialSettings

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function from images (B, 3, S, S) and targets (B, C) to blended ones of the same shapes."""


class _TrivialAugment(v2.TrivialAugmentWide):
    """torchvision's TrivialAugmentWide, drawing from a given generator.

    The `forward` of torchvision draws from torch's global generator, which the training loop uses at the
    same time in another thread: neither would be reproducible. The operations and their application are
    inherited, through private names that the upper bound on torchvision in pyproject.toml protects.
    """

    def draw(self, image: Tensor, draws: random.Random) -> Tensor:
        """Return the image after one operation that `draws` chooses."""
        name, (magnitudes_of, signed) = draws.choice(list(self._AUGMENTATION_SPACE.items()))
        magnitudes = magnitudes_of(self.num_magnitude_bins, *image.shape[-2:])
        strength = 0.0
        if magnitudes is not None:
            strength = float(magnitudes[draws.randrange(self.num_magnitude_bins)])
            strength *= -1 if signed and draws.random() < 0.5 else 1
        changed: Tensor = self._apply_image_or_video_transform(
            image, name, strength, interpolation=self.interpolation, fill=self._fill
        )
        return changed


@lru_cache(maxsize=1)
def _trivial() -> _TrivialAugment:
    return _TrivialAugment()


def trivial(image: Tensor, draws: random.Random) -> Tensor:
    """Return the image after one random operation of random strength, uint8 (3, S, S).

    This is TrivialAugment with its wide space (Müller and Hutter, ICCV 2021).

    Args:
        image: uint8 (3, S, S).
        draws: the only source of randomness; it chooses the operation and its strength.
    """
    return _trivial().draw(image, draws)


def mixing(settings: TrialSettings) -> Mixing | None:
    """Return the function that mixes a batch's images and targets; None if the settings mix nothing.

    `mixup` (Zhang et al., ICLR 2018): each image and target becomes lam times itself plus (1 - lam) times
    another one of the batch, with lam ~ Beta(mix_alpha, mix_alpha) once per batch and worker.
    `cutmix` (Yun et al., ICCV 2019): a random box with a share of 1 - lam of the area comes from the
    other image. Both draw from torch's global generator, as dropout does.
    """
    if settings.mix == "none":
        return None
    kind = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[settings.mix]
    mixed: Mixing = kind(alpha=settings.mix_alpha, labels_getter=lambda pair: pair[1])
    return mixed


def effective(mixing: Mixing | None) -> dict[str, object]:
    """Return the settings that `mixing` has, read from the function itself."""
    if mixing is None:
        return {"mix": "none"}
    return {"mix": type(mixing).__name__.lower(), "mix_alpha": getattr(mixing, "alpha", None)}


def mix(mixing: Mixing | None, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) and targets (B, C), mixed if `mixing` is given and B > 1."""
    return mixing(images, targets) if mixing and len(images) > 1 else (images, targets)
