"""Classify image files with a loaded model."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import steps
from finetune.datasets.sources import EXTENSIONS
from finetune.errors import DataError
from finetune.evaluation.scores import BATCH
from finetune.images.pixels import load_image
from finetune.model_folder.reading import Model

TOP = 5
"""Number of most probable classes that a prediction lists."""


def predict(model: Model, paths: Sequence[Path], *, top: int = TOP) -> Iterator[dict[str, Any]]:
    """Yield a dict per image: `path`, `class`, `probability`, `top` (most probable classes) and `error`.

    If an image cannot be read, `class` and `probability` are None, `top` is empty, and `error` is the reason;
    otherwise `error` is None.
    """
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode") as pool,
        steps.step("classify", len(paths), "images", patience=1.0) as told,
    ):
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            yield from _predict(model, part, list(pool.map(partial(pixels_of, model), part)), top)
            told.add(len(part))


def _predict(
    model: Model, part: Sequence[Path], seen: Sequence[Tensor | str], top: int
) -> Iterator[dict[str, Any]]:
    """Yield the dicts of one batch of images, each decoded or the reason why it is not."""
    images = [pixels for pixels in seen if isinstance(pixels, Tensor)]
    rows = iter(answers(model, torch.stack(images), top) if images else ())
    for path, pixels in zip(part, seen, strict=True):
        if isinstance(pixels, Tensor):
            yield {"path": str(path)} | next(rows) | {"error": None}
        else:
            yield {"path": str(path), "class": None, "probability": None, "top": [], "error": pixels}


def answers(model: Model, images: Tensor, top: int = TOP) -> list[dict[str, Any]]:
    """Return `class`, `probability` and `top`, the most probable classes, for images uint8 (B, 3, S, S)."""
    return ranked(model, model.probabilities(images), top)


def ranked(model: Model, probabilities: Tensor, top: int = TOP) -> list[dict[str, Any]]:
    """Return `class`, `probability` and `top`, the most probable classes, for probabilities (B, C)."""
    best = probabilities.topk(min(top, len(model.classes)), dim=1)
    found = []
    for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        places = [
            {"class": model.classes[index], "probability": value}
            for value, index in zip(values, indices, strict=True)
        ]
        found.append(places[0] | {"top": places})
    return found


def pixels_of(model: Model, path: Path) -> Tensor | str:
    """Return the image as the model's input, uint8 (3, S, S), or the reason why it cannot be read."""
    asked = model.facts["preprocessing"]
    try:
        return load_image(path, asked["image_size"], whole=asked["whole_image"])
    except DataError as error:
        return str(error)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and all images below the given folders, sorted by path within each folder.

    Raises:
        DataError: a path does not exist or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(
                p
                for p in path.rglob("*")
                if p.suffix.lower() in EXTENSIONS
                and not p.is_dir()
                and not any(x.startswith(".") for x in p.relative_to(path).parts)
            )
            if not below:
                raise DataError(
                    f"{path}: a folder must hold images, got none. Known: {', '.join(sorted(EXTENSIONS))}."
                )
            found += below
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: an image must exist, got no such file. Check the path.")
    return found
