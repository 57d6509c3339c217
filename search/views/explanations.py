"""Explain a model folder's answers on images: pictures with maps, and a file that describes them.

This module imports torch, so commands import it when they need it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finetune import model_folder, safe_text, steps
from finetune.disk.atomic import replacing
from finetune.errors import did_you_mean
from finetune.explain import deletion, overlay
from finetune.explain.maps import METHODS, Method, maps, resolution
from finetune.explain.probes import separable
from finetune.images.pixels import normalise
from finetune.model_folder import Model, samples, training_images
from finetune.model_folder.predicting import pixels_of
from finetune.model_folder.samples import Sample
from finetune.model_folder.training_images import TrainingImages
from search.errors import StudyError
from search.views import explained_samples

TABLE, BLOCKS = "explain.json", "blocks.json"
BATCH = 16
"""Images that are explained at a time."""


def explain(
    folder: Path,
    images: Sequence[Path],
    to: Path,
    *,
    method: str = "grad-cam",
    about: str | None = None,
    train: Sequence[Path] = (),
    text: str = "",
) -> Iterator[dict[str, Any]]:
    """Write a picture with its map for every image found, and `explain.json`; yield each image's explanation.

    An explanation has the keys `path`, `class` (what the map is about), `probability` (of this class),
    `method`, `picture` (file in `to`), `deletion` and `random` (mean probability while parts are blurred, the
    marked ones first or in random order), `leans_on` (source classes of this class with their shares, where
    the model folder has them), `nearest` (the most alike of the training images, each with `path` and
    `cosine`; None without `train`) and `error`. Of an image that cannot be read, all but `path` and `error`
    are None. Of a sample with text or several frames there are `parts`, `frames` and `missing`, too, and
    neither `leans_on` nor `nearest` (search/views/explained_samples.py).

    Args:
        folder: a model folder.
        images: images, and folders that are searched for them.
        to: the folder to write; it is made where it is missing.
        method: one of `finetune.explain.maps.METHODS`.
        about: the class that maps are about; None: the most probable one of each image.
        train: training images, and folders of them, whose nearest ones stand beside each image.
        text: text of each sample that is not in a table, for a model that reads text.

    Raises:
        CheckpointError: `folder` is not a complete model folder.
        DataError: a path of `images` or `train` does not exist, or `train` holds no image.
        FinetuneError: the method needs a package that is not installed.
        StudyError: `method` or `about` is unknown, or `to` cannot be written.
    """
    chosen = next((known for known in METHODS if known == method), None)
    if chosen is None:
        raise StudyError(f"--method: must name a map, got {method!r}. {did_you_mean(method, METHODS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_folder.load(folder, device=device, parts=True)
    if "samples" in model.facts:
        explained_samples.check(model, folder, chosen, text=text, train=bool(train))
    elif text or not images:
        rule = "a model of images needs images and no --text"
        raise StudyError(f"{folder}: {rule}, got {'a text' if text else 'nothing'}. Name images.")
    if about is not None and about not in model.classes:
        raise StudyError(
            f"--class: must be a class of the model, got {about!r}. {did_you_mean(about, model.classes)}"
        )
    target = None if about is None else model.classes.index(about)
    if "samples" in model.facts:
        asked = samples.find(model, images, text)
        count = len(asked)
        parts = _each_sample(model, asked, chosen, target)
    else:
        known = TrainingImages.read(model, train) if train else None
        paths = model_folder.find_images(images)
        count = len(paths)
        batches = (paths[start : start + BATCH] for start in range(0, count, BATCH))
        parts = (pair for part in batches for pair in _explained(model, part, chosen, target, known))
    rows = []
    try:
        to.mkdir(parents=True, exist_ok=True)
        with steps.step("explain", count, "images", patience=1.0) as told:
            for place, (row, picture) in enumerate(parts):
                if picture is not None:
                    row["picture"] = f"{place:04d}-{_plain(Path(row['path']).stem)}.png"
                    with replacing(to / row["picture"]) as temporary:
                        picture.save(temporary, "PNG")
                rows.append(row)
                yield row
                told.add(1)
        with replacing(to / TABLE) as temporary:
            text = json.dumps(rows, indent=2, ensure_ascii=False)
            temporary.write_text(safe_text.json_text(text) + "\n", encoding="utf-8")
    except OSError as error:
        raise StudyError(
            f"{to}: --to must be a folder that can be written, got '{error.strerror}'. Choose another."
        ) from error


def probe(folder: Path, train: Sequence[Path], to: Path) -> str:
    """Write how well classes can be told apart behind each block of a model; return it in one sentence.

    Raises:
        CheckpointError: `folder` is not a complete model folder.
        DataError: `train` shows fewer than two classes of the model.
        StudyError: the model reads text or several frames, or `to` cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_folder.load(folder, device=device, parts=True)
    if "samples" in model.facts:
        raise StudyError("--probe: reads images alone, got a model of samples. Leave it out.")
    found = training_images.probe(model, train)
    first, frozen = separable(found), len(model.net.prefix)
    told = {"separable": first.to_dict(), "frozen_layers": frozen, "blocks": [one.to_dict() for one in found]}
    try:
        with replacing(to / BLOCKS) as temporary:
            temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StudyError(
            f"{to}: --to must be a folder that can be written, got '{error.strerror}'. Choose another."
        ) from error
    return (
        f"classes are as separable as they get from block {first.frozen_layers} of {len(found)} on "
        f"({100 * first.accuracy:.1f} % ± {100 * first.error:.1f}); {frozen} are frozen"
    )


def _explained(
    model: Model, paths: Sequence[Path], method: Method, target: int | None, known: TrainingImages | None
) -> Iterator[tuple[dict[str, Any], Image.Image | None]]:
    """Yield the explanation of each image of a batch, and its picture."""
    empty = {"class": None, "probability": None, "method": method, "picture": None}
    empty |= {"deletion": None, "random": None, "leans_on": None, "nearest": None}
    seen = [pixels_of(model, path) for path in paths]
    images = [pixels for pixels in seen if isinstance(pixels, Tensor)]
    found = iter(_batch(model, torch.stack(images), method, target, known) if images else ())
    for path, pixels in zip(paths, seen, strict=True):
        if isinstance(pixels, Tensor):
            told, picture = next(found)
            yield {"path": str(path)} | empty | told | {"error": None}, picture
        else:
            yield {"path": str(path)} | empty | {"error": pixels}, None


def _each_sample(
    model: Model, asked: Sequence[Sample], method: Method, target: int | None
) -> Iterator[tuple[dict[str, Any], Image.Image | None]]:
    """Yield the explanation of each sample, and its picture; None where it has no image that is read."""
    empty: dict[str, Any] = {"class": None, "probability": None, "method": method, "picture": None}
    empty |= {"deletion": None, "random": None, "parts": {}, "frames": None, "missing": []}
    for sample in asked:
        told, picture = explained_samples.explained(model, sample, method, target)
        yield {"path": sample.path} | empty | told, picture


def _batch(
    model: Model, images: Tensor, method: Method, target: int | None, known: TrainingImages | None
) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Yield the explanation and the picture of each image of uint8 (B, 3, S, S)."""
    asked = model.facts["preprocessing"]
    x = normalise(images.to(model.device), asked["mean"], asked["std"])
    probabilities = model.probabilities(images)
    classes = probabilities.argmax(1) if target is None else torch.full((len(images),), target)
    marked, chance = (maps(model.net, x, classes, how) for how in (method, "random"))

    def answers(pixels: Tensor) -> Tensor:
        logits: Tensor = model.net(pixels)
        return model.calibration.of(logits)

    shape = resolution(model.net, x, method)
    areas = deletion.area(answers, x, classes, marked), deletion.random_area(answers, x, classes, shape)
    alike = known.nearest(model, images) if known else [[] for _ in images]
    for i, image in enumerate(images):
        name, probability = model.classes[int(classes[i])], float(probabilities[i, classes[i]])
        panels = [
            (f"{name} {probability:.2f}", overlay.plain(image)),
            (method, overlay.over(image, marked[i])),
            ("random", overlay.over(image, chance[i])),
        ]
        told = {"class": name, "probability": probability, "leans_on": _leans_on(model, name)}
        told |= {"deletion": float(areas[0][i]), "random": float(areas[1][i])}
        if known:
            told["nearest"] = [{"path": str(one.path), "cosine": one.cosine} for one in alike[i]]
            shown = ((one, pixels_of(model, one.path)) for one in alike[i])
            panels += [
                (f"{one.cosine:.2f} {one.path.parent.name}", overlay.plain(pixels))
                for one, pixels in shown
                if isinstance(pixels, Tensor)
            ]
        yield told, overlay.strip(panels)


def _leans_on(model: Model, name: str) -> dict[str, float] | None:
    """Return the source classes that carry a class, with their shares; None where the folder has none."""
    classes = model.facts.get("source_classes", {}).get("classes", {})
    found: dict[str, float] | None = classes.get(name, {}).get("leans_on")
    return found


def line(row: dict[str, Any]) -> str:
    """Return an explanation as a line with tabs."""
    if row["error"] is not None:
        told = [row["path"], "unreadable", row["error"]]
    else:
        told = [row["path"] or "-", row["class"], f"{row['probability']:.4f}"]
        told += explained_samples.line(row) if "parts" in row else []
        if row["picture"]:
            told += [f"deletion {row['deletion']:.3f}, random {row['random']:.3f}", row["picture"]]
    return "\t".join(map(safe_text.terminal, told))


def _plain(name: str) -> str:
    """Return a file's name without what a file system or a shell could take for something else."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60]
