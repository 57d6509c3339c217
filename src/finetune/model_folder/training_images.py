"""Compare images with the ones that a model was trained on, by what its own head reads.

A model folder holds no images, so the caller says where they are. Shapes: B images, N training images, D
pooled features, (3, S, S) pixels.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from finetune import steps
from finetune.errors import DataError
from finetune.explain import probes
from finetune.explain.features import spread
from finetune.explain.maps import Whole
from finetune.explain.neighbours import nearest
from finetune.explain.probes import Probe
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
        found, kept = [], []
        for paths, images in _batches(model, find_images(places)):
            kept += paths
            found.append(features(model, images))
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


def _batches(model: Model, paths: Sequence[Path]) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield the paths and pixels, uint8 (B, 3, S, S), of the images that can be read."""
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode") as pool,
        steps.step("read training images", len(paths), "images", patience=1.0) as told,
    ):
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            seen = zip(part, pool.map(partial(pixels_of, model), part), strict=True)
            kept = [(path, pixels) for path, pixels in seen if isinstance(pixels, Tensor)]
            if kept:
                yield [path for path, _ in kept], torch.stack([pixels for _, pixels in kept])
            told.add(len(part))


def probe(model: Model, places: Sequence[Path]) -> list[Probe]:
    """Return how well classes can be told apart behind each block of a model.

    Args:
        model: the model.
        places: training images, or folders of them; the name of the folder that an image lies in is its
            class. At most probes.MOST are read.

    Raises:
        DataError: a path does not exist, or the images show fewer than two classes of the model.
    """
    paths = [path for path in find_images(places) if path.parent.name in model.classes]
    paths = [paths[place] for place in spread(len(paths), probes.MOST).tolist()]
    kept: list[Path] = []

    def batches() -> Iterator[Tensor]:
        for part, images in _batches(model, paths):
            kept.extend(part)
            yield _normalised(model, images)

    outputs = probes.pooled_outputs(Whole(model.net).blocks, model.net.backbone_name, batches(), len(paths))
    classes = sorted({path.parent.name for path in kept})
    if len(classes) < 2:
        raise DataError(
            "--probe: --train must have folders of two classes of the model or more, got "
            f"{len(classes)}. Name the folder of the training images."
        )
    labels = torch.tensor([classes.index(path.parent.name) for path in kept])
    return probes.solved(model.net.block_names, outputs, labels, len(classes))


def _normalised(model: Model, images: Tensor) -> Tensor:
    asked = model.facts["preprocessing"]
    return normalise(images.to(model.device), asked["mean"], asked["std"])


@torch.no_grad()
def features(model: Model, images: Tensor) -> Tensor:
    """Return pooled features (B, D) behind the last block for uint8 (B, 3, S, S), float32 on the CPU."""
    pooled: Tensor = model.net.head.pool(Whole(model.net).blocks(_normalised(model, images)))
    return pooled.float().cpu()
