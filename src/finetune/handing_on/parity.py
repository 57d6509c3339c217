"""Measure how far an exported file's answers are from those of the model that it was made from.

Shapes: N images, S side of the square in pixels, C classes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.settings import DataSettings, TrialSettings
from finetune.training import shared

Run = Callable[..., Tensor]
"""Function from the inputs of a program, such as images uint8 (B, S, S, 3), to probabilities (B, C)."""
IMAGES = 32
"""Number of validation images that are compared."""
MOST = 1e-4
"""Largest difference of a probability that is accepted."""
ON_DISK = ("folder", "manifest", "torchvision")
BATCHES = (1, 2)
"""Numbers of images in the first batches; the last one takes all others. A file must take any number."""


@dataclass(frozen=True)
class Parity:
    """The difference between two ways to compute the same probabilities."""

    images: int
    largest_difference: float
    """Largest difference of a probability."""
    changed_answers: int
    """Number of images whose most probable class is another."""

    @property
    def holds(self) -> bool:
        """True if the file may stand for the model."""
        return self.largest_difference <= MOST and not self.changed_answers

    def __str__(self) -> str:
        return (
            f"a largest difference of {self.largest_difference:.1e} and {self.changed_answers} changed "
            f"answers on {self.images} images"
        )


def measured(run: Run, model: Run, *inputs: Tensor) -> Parity:
    """Return the parity of two programs on N images or samples; `run` gets batches of several sizes."""
    images = inputs[0]
    sizes = [*BATCHES, len(images) - sum(BATCHES)] if len(images) > sum(BATCHES) else [len(images)]
    parts = zip(*(one.split(sizes) for one in inputs), strict=True)
    found = torch.cat([run(*(one.contiguous() for one in part)) for part in parts])
    expected = model(*inputs)
    difference = (found - expected).abs().max()
    # NaN compares as False with everything, so it must not look like a small difference.
    largest = float(difference) if bool(torch.isfinite(difference)) else float("inf")
    changed = int((found.argmax(1) != expected.argmax(1)).sum())
    return Parity(len(images), largest, changed)


def validation_images(facts: dict[str, Any], place: Mapping[str, Any] | None = None) -> Tensor:
    """Return images of the validation split, evenly spread over it, uint8 (N, S, S, 3).

    Generated images stand for them where nobody says where they are, or where they are private.

    Args:
        facts: content of a model.yaml, which has no paths.
        place: `path` and `exclude` of the images, as in the study's settings; None: not known.

    Raises:
        DataError: the images are missing or have changed.
    """
    settings = _data(facts, place)
    if facts.get("privacy") or (settings.path is None and settings.kind in ON_DISK):
        return generated(settings.image_size)
    data = shared.images(settings)
    return data.batch("val", _spread(data.size("val"))).permute(0, 2, 3, 1).contiguous()


def validation_samples(
    facts: dict[str, Any], place: Mapping[str, Any] | None = None
) -> tuple[Tensor, list[str]]:
    """Return frames uint8 (N, T, 3, S, S) and texts of validation samples; arguments as above.

    Generated images stand for them where nobody says where they are, with the classes' names as texts.

    Raises:
        DataError: the images are missing or have changed.
    """
    settings = _data(facts, place)
    frames = settings.frames
    if settings.path is None and settings.kind in ON_DISK:
        drawn = generated(settings.image_size).permute(0, 3, 1, 2)
        order = torch.arange(IMAGES)[:, None] + torch.arange(frames)
        names = [str(name) for name in facts["classes"]]
        return drawn[order % IMAGES], [names[number % len(names)] for number in range(IMAGES)]
    data, images = shared.images(settings), shared.frames(settings)
    chosen = _spread(data.size("val"))
    found = images.batch("val", (chosen[:, None] * frames + torch.arange(frames)).flatten())
    texts = data.texts("val")
    return found.unflatten(0, (len(chosen), frames)), [texts[number] for number in chosen.tolist()]


def _data(facts: dict[str, Any], place: Mapping[str, Any] | None) -> DataSettings:
    return dataclasses.replace(TrialSettings.from_dict(facts["settings"]).data, **(place or {}))


def _spread(size: int) -> Tensor:
    return torch.linspace(0, size - 1, min(IMAGES, size)).round().long()


def generated(side: int) -> Tensor:
    """Return images of coarse to fine random patches, the same ones each time, uint8 (N, S, S, 3)."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for number in range(IMAGES):
        cells = min(side, 2 ** (1 + number % 6))
        patches = torch.rand(1, 3, cells, cells, generator=draw)
        found.append(torch.nn.functional.interpolate(patches, size=(side, side), mode="bilinear"))
    return (255 * torch.cat(found)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
