"""Augmentation beyond crop and flip: of single images, and of whole batches with their labels.

Shapes: B images of a batch, C classes, S side in pixels.
"""

import random
from collections.abc import Callable
from functools import lru_cache

from torch import Tensor
from torchvision.transforms import v2

from finetune.settings import TrialSettings

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images (B, 3, S, S) and targets (B, C) -> the same, blended."""


class _TrivialAugment(v2.TrivialAugmentWide):
    """torchvision's TrivialAugmentWide, drawing from a given generator.

    Its own `forward` draws from torch's global generator, which the training loop uses at the same
    time in another thread: neither would be reproducible. What it draws from and how it applies an
    operation are its own; the ceiling in pyproject.toml keeps their names.
    """

    def draw(self, image: Tensor, draws: random.Random) -> Tensor:
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

    TrivialAugment, wide space (Müller and Hutter, ICCV 2021).

    Args:
        image: uint8 (3, S, S).
        draws: decides the operation and its strength; nothing else does.
    """
    return _trivial().draw(image, draws)


def mixing(settings: TrialSettings) -> Mixing | None:
    """Return how a batch's images and targets are mixed; None: not at all.

    `mixup` (Zhang et al., ICLR 2018): each image and its target become lam * its own
    + (1 - lam) * another's of the batch, lam ~ Beta(mix_alpha, mix_alpha) once per batch and worker.
    `cutmix` (Yun et al., ICCV 2019): a random box of the share 1 - lam comes from the other
    image. Both draw from torch's global generator, as dropout does.
    """
    if settings.mix == "none":
        return None
    kind = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[settings.mix]
    mixed: Mixing = kind(alpha=settings.mix_alpha, labels_getter=lambda pair: pair[1])
    return mixed


def effective(mixing: Mixing | None) -> dict[str, object]:
    """Return what `mixing` is, by the names of the settings."""
    if mixing is None:
        return {"mix": "none"}
    return {"mix": type(mixing).__name__.lower(), "mix_alpha": getattr(mixing, "alpha", None)}


def mix(mixing: Mixing | None, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) and targets (B, C), mixed unless there is nothing to mix with."""
    return mixing(images, targets) if mixing and len(images) > 1 else (images, targets)
