"""A trained model's answers on every image of a split, and how they are kept for the record.

Shapes: N images, C classes.
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune.evaluation.calibration import Calibration
from finetune.images.batches import ImageData
from finetune.metrics import TOP

PICTURES = 24
"""Mistakes that are kept as pictures."""
BATCH_SHOWN = 24
"""Images of a training batch that are kept as pictures."""
PICTURE_SIDE = 96
"""Their side in pixels."""


@dataclass(frozen=True)
class Outputs:
    """A model's logits on one split, in the order of its images."""

    logits: Tensor
    """float32 (N, C), on the CPU."""
    labels: Tensor
    """int64 (N,)."""


def arrays(outputs: Outputs, calibration: Calibration) -> dict[str, Any]:
    """Return each image's answer as arrays (N,), 17 bytes an image, from which all metrics can be worked out.

    `labels` and `predicted` are classes; `confidence` is the probability of the predicted class and
    `of_label` that of the label's; `calibrated` is the confidence behind the temperature; `in_top5`.
    """
    logits, labels = outputs.logits, outputs.labels
    probabilities = logits.softmax(1)
    predicted = logits.argmax(1)
    top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    found = {
        "labels": labels.to(torch.int32),
        "predicted": predicted.to(torch.int32),
        "confidence": probabilities.gather(1, predicted[:, None])[:, 0],
        "of_label": probabilities.gather(1, labels[:, None])[:, 0],
        "calibrated": calibration.of(logits).gather(1, predicted[:, None])[:, 0],
        "in_top5": (top == labels[:, None]).any(1),
    }
    return {name: tensor.numpy() for name, tensor in found.items()}


def save(path: Path, splits: dict[str, Outputs], calibration: Calibration) -> None:
    """Write the answers on all splits to one file, `<split>/<array>`, in one step.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    content = {
        f"{split}/{name}": array
        for split, outputs in splits.items()
        for name, array in arrays(outputs, calibration).items()
    }
    with temporary.open("wb") as file:
        np.savez_compressed(file, **content)
    temporary.replace(path)


def save_mistakes(
    path: Path, data: ImageData, split: str, outputs: Outputs, calibration: Calibration
) -> None:
    """Write the most confident mistakes on a split as JSON, with a small picture of each, in one step.

    A picture is the image as the model saw it, coded anew, so it has no metadata of the file.

    Raises:
        OSError: the file cannot be written.
        DataError: an image cannot be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    probabilities = calibration.of(outputs.logits)
    sure, predicted = probabilities.max(1)
    wrong = (predicted != outputs.labels).nonzero()[:, 0]
    first = wrong[sure[wrong].argsort(descending=True, stable=True)][:PICTURES]
    names, paths = data.classes, data.paths(split)
    images = list(data.batch(split, first)) if len(first) else []
    told = [
        {
            "split": split,
            "image": int(index),
            "path": paths[int(index)],
            "label": names[int(outputs.labels[index])],
            "predicted": names[int(predicted[index])],
            "probability": float(sure[index]),
            "picture": _picture(image),
        }
        for index, image in zip(first, images, strict=True)
    ]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(told), encoding="utf-8")
    temporary.replace(path)


def save_batch(path: Path, data: ImageData, batch: Tensor) -> None:
    """Write the first images of a batch of the first epoch, as the model saw them, as JSON in one step.

    Args:
        path: file to write.
        data: the images.
        batch: numbers of the training images in the batch, int64 (B,).

    Raises:
        OSError: the file cannot be written.
        DataError: an image cannot be read.
    """
    first = batch[:BATCH_SHOWN]
    images = data.batch("train", first, view=data.view(1))
    names, paths, labels = data.classes, data.paths("train"), data.labels("train")
    told = [
        {"path": paths[int(index)], "label": names[int(labels[index])], "picture": _picture(image)}
        for index, image in zip(first, images, strict=True)
    ]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(told), encoding="utf-8")
    temporary.replace(path)


def _picture(pixels: Tensor) -> str:
    """Return an image uint8 (3, S, S) as a small WebP in base64."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    coded = io.BytesIO()
    image.save(coded, "WEBP", quality=80)
    return base64.b64encode(coded.getvalue()).decode()
