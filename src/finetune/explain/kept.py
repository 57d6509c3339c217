"""Explain a measured model for its study's record: its mistakes, and labels that may be wrong."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finetune.evaluation.outputs import PICTURE_SIDE
from finetune.explain import doubts, features, overlay
from finetune.explain.maps import maps
from finetune.explain.neighbours import nearest
from finetune.training.run import Run

NEIGHBOURS = 3
TRAIN = 1_000
"""Training images among which neighbours are looked for, if blocks are trained: all pass through them."""
FLAT = 0.01
"""Difference within a map below which it shows nothing."""
SUSPECTS = 24
"""Images with doubtful labels that are kept as pictures."""


def save(path: Path, run: Run, split: str, mistakes: list[dict[str, Any]]) -> None:
    """Write what explains mistakes, and the most doubtful labels, as JSON in one step.

    `mistakes` has a map over each picture, null where it is the same everywhere, and its nearest training
    images; `suspects` the training images whose label surprises heads that did not see it. Where blocks are
    trained there are none: features that have learned a label are not surprised by it.

    Args:
        path: file to write.
        run: the trained run, of one worker.
        split: split of the mistakes.
        mistakes: the content of mistakes.json.

    Raises:
        OSError: the file cannot be written.
        FinetuneError: an image cannot be read.
    """
    told = {"mistakes": _mistakes(run, split, mistakes), "suspects": _suspects(run)}
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(told), encoding="utf-8")
    temporary.replace(path)


def _mistakes(run: Run, split: str, mistakes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return map and neighbours of each mistake."""
    if not mistakes:
        return []
    images = torch.tensor([one["image"] for one in mistakes])
    pixels = torch.stack(list(run.data.batch(split, images)))
    answers = torch.tensor([run.data.classes.index(one["predicted"]) for one in mistakes])
    drawn = maps(run.model, run.inputs.images(pixels), answers)
    train = run.data.size("train")
    among = features.spread(train, TRAIN if len(run.model.trunk) else train)
    cosines, places = nearest(
        features.pooled(run, split, images), features.pooled(run, "train", among), NEIGHBOURS
    )
    labels, paths = run.data.labels("train"), run.data.paths("train")
    found = []
    for i, image in enumerate(images.tolist()):
        rows = among[places[i]]
        near = zip(rows.tolist(), cosines[i].tolist(), run.data.batch("train", rows), strict=True)
        neighbours = [
            {
                "path": paths[row],
                "label": run.data.classes[int(labels[row])],
                "cosine": cosine,
                "picture": _coded(overlay.plain(shown)),
            }
            for row, cosine, shown in near
        ]
        found.append({"image": image, "map": marked(pixels[i], drawn[i]), "neighbours": neighbours})
    return found


def marked(image: Tensor, found: Tensor) -> str | None:
    """Return an image (3, S, S) with its map (S, S) on it, as a WebP in base64; None for a map of one value.

    Of a small image the last block may have one position, which says nothing of where it looked.
    """
    if float(found.max() - found.min()) < FLAT:
        return None
    return _coded(overlay.over(image, found))


def _suspects(run: Run) -> list[dict[str, Any]]:
    """Return the most doubtful labels with pictures; none where blocks are trained."""
    if len(run.model.trunk):
        return []
    found = doubts.of_run(run)[:SUSPECTS]
    if not found:
        return []
    images = run.data.batch("train", torch.tensor([doubt.image for doubt in found]))
    return [
        doubt.to_dict() | {"picture": _coded(overlay.plain(image))}
        for doubt, image in zip(found, images, strict=True)
    ]


def _coded(image: Image.Image) -> str:
    """Return an image as a small WebP in base64."""
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    coded = io.BytesIO()
    image.save(coded, "WEBP", quality=75)
    return base64.b64encode(coded.getvalue()).decode()
