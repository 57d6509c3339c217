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
NEIGHBOURS_AMONG, PASSED = 1_000, 2_000
"""Training images among which neighbours are looked for, if blocks are trained, and doubtful labels, if no
features of frozen blocks are stored: they all pass through the blocks."""
FLAT = 0.01
"""Difference within a map below which it shows nothing."""
SUSPECTS = 24
"""Images with doubtful labels that are kept as pictures."""


def save(path: Path, run: Run, split: str, mistakes: list[dict[str, Any]]) -> None:
    """Write what explains mistakes, and the most doubtful labels, as JSON in one step.

    `mistakes` has a map over each picture, null where it is the same everywhere, and its nearest training
    images; `suspects` the training images whose label surprises heads that did not see it, on features that
    have not learned it.

    Args:
        path: file to write.
        run: the trained run, of any worker; the others need not take part.
        split: split of the mistakes.
        mistakes: the content of mistakes.json.

    Raises:
        OSError: the file cannot be written.
        FinetuneError: an image cannot be read.
    """
    own = _train_rows(run, NEIGHBOURS_AMONG if len(run.model.trunk) else doubts.fit(run))
    told: dict[str, Any] = {"mistakes": _mistakes(run, split, mistakes, *own), "suspects": []}
    unlearned = doubts.unlearned(run)
    if unlearned is not None:
        rows = own if unlearned is run else _train_rows(unlearned, _most(unlearned))
        told["suspects"] = _suspects(run, *rows)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(told), encoding="utf-8")
    temporary.replace(path)


def _train_rows(run: Run, most: int) -> tuple[Tensor, Tensor]:
    """Return numbers (N,) and features (N, D) of at most `most` training images, evenly spread."""
    images = features.spread(run.data.size("train"), most)
    return images, features.pooled(run, "train", images)


def _most(run: Run) -> int:
    """Return the number of images whose features are worth a pass if there are none in the store."""
    stores = run.features is not None and run.features.mode != "off"
    return doubts.fit(run) if stores else PASSED


def _mistakes(
    run: Run, split: str, mistakes: list[dict[str, Any]], among: Tensor, rows: Tensor
) -> list[dict[str, Any]]:
    """Return map and neighbours of each mistake, among training images with these features."""
    if not mistakes:
        return []
    images = torch.tensor([one["image"] for one in mistakes])
    pixels = torch.stack(list(run.data.batch(split, images)))
    answers = torch.tensor([run.data.classes.index(one["predicted"]) for one in mistakes])
    drawn = maps(run.model, run.inputs.images(pixels), answers)
    cosines, places = nearest(features.pooled(run, split, images), rows, NEIGHBOURS)
    labels, paths = run.data.labels("train"), run.data.paths("train")
    found = []
    for i, image in enumerate(images.tolist()):
        alike = among[places[i]]
        near = zip(alike.tolist(), cosines[i].tolist(), run.data.batch("train", alike), strict=True)
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


def _suspects(run: Run, among: Tensor, rows: Tensor) -> list[dict[str, Any]]:
    """Return the most doubtful labels with pictures, by features that have not learned them."""
    found = doubts.find(run.data, among, rows)[:SUSPECTS]
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
