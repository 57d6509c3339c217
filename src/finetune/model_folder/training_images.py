"""Compare images with the ones that a model was trained on, by what its own head reads.

A model folder holds no images, so the caller says where they are. Shapes: B images, N training images, D
pooled features, (3, S, S) pixels.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from finetune import steps
from finetune.errors import DataError
from finetune.explain.maps import Whole
from finetune.explain.neighbours import nearest
from finetune.images.pixels import normalise
from finetune.model_folder.predicting import find_images, pixels_of
from finetune.model_folder.reading import Model

BATCH = 64
NEAREST = 3
"""Training images that are shown beside an image."""


@dataclass(frozen=True)
class Alike:
    """A training image that looks like another image to the model."""

    path: Path
    cosine: float
    """Cosine of the pooled features of both, -1..1."""


@dataclass(frozen=True)
class TrainingImages:
    """Training images and what the model's head reads of them."""

    paths: tuple[Path, ...]
    features: Tensor
    """(N, D), float32, on the CPU."""

    @classmethod
    def read(cls, model: Model, places: Sequence[Path]) -> "TrainingImages":
        """Read images and folders of them; what cannot be read is left out.

        Raises:
            DataError: a path does not exist, or no image can be read.
        """
        paths, found, kept = find_images(places), [], []
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode") as pool,
            steps.step("read training images", len(paths), "images", patience=1.0) as told,
        ):
            for start in range(0, len(paths), BATCH):
                part = paths[start : start + BATCH]
                seen = list(pool.map(partial(pixels_of, model), part))
                images = [pixels for pixels in seen if isinstance(pixels, Tensor)]
                kept += [path for path, pixels in zip(part, seen, strict=True) if isinstance(pixels, Tensor)]
                if images:
                    found.append(features(model, torch.stack(images)))
                told.add(len(part))
        if not found:
            raise DataError("--train: must hold images that can be read, got none. Name another folder.")
        return cls(tuple(kept), torch.cat(found))

    def nearest(self, model: Model, images: Tensor) -> list[list[Alike]]:
        """Return the most alike training images of each image of uint8 (B, 3, S, S), the nearest first."""
        cosines, places = nearest(features(model, images), self.features, NEAREST)
        return [
            [Alike(self.paths[place], cosine) for place, cosine in zip(rows, values, strict=True)]
            for rows, values in zip(places.tolist(), cosines.tolist(), strict=True)
        ]


@torch.no_grad()
def features(model: Model, images: Tensor) -> Tensor:
    """Return pooled features (B, D) behind the last block for uint8 (B, 3, S, S), float32 on the CPU."""
    asked = model.facts["preprocessing"]
    x = normalise(images.to(model.device), asked["mean"], asked["std"])
    pooled: Tensor = model.net.head.pool(Whole(model.net).blocks(x))
    return pooled.float().cpu()
