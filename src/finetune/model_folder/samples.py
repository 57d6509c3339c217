"""Classify samples that have text or several frames with a loaded model.

Shapes: B samples of a batch, T frames, S side of a frame in pixels, E numbers of a text's vector, C classes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finetune import steps
from finetune.datasets import clips
from finetune.datasets.manifest import samples_of
from finetune.errors import DataError
from finetune.evaluation.scores import BATCH
from finetune.frozen.samples import read_frames
from finetune.images import pixels
from finetune.model.sample_head import SampleHead
from finetune.model_folder.predicting import TOP, find_images, ranked
from finetune.model_folder.reading import Model

TABLES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Sample:
    """One sample to classify; a part may be missing."""

    path: str
    """Path of the image or clip; empty if it is missing."""
    text: str = ""


def find(model: Model, paths: Sequence[Path], text: str = "") -> list[Sample]:
    """Return the samples at the given paths: files, folders that are searched, and tables with texts.

    A table is a file like a manifest, of which only the columns of image and text are read.
    With clips, a folder that holds still images is one clip.

    Args:
        model: the model, which knows its columns of text.
        paths: the paths; with none, the text alone is a sample.
        text: text of every sample that is not in a table.

    Raises:
        DataError: a path does not exist, a folder holds no sample, or a table cannot be read.
    """
    told = model.facts["samples"]
    found = [] if paths or not text else [Sample("", text)]
    for path in paths:
        if path.suffix.lower() in TABLES:
            rows = samples_of(str(path.absolute()), told.get("text", ()))
            found += [Sample(where, said) for where, said in rows]
        elif path.is_dir() and told["frames"] > 1:
            found += [Sample(str(one), text) for one in _clips_below(path)]
        else:
            found += [Sample(str(one), text) for one in find_images([path])]
    return found


def _clips_below(folder: Path) -> list[Path]:
    """Return the clips in a folder: it is one itself if it holds still images."""
    if clips.in_folder(folder):
        return [folder]
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name[0] == ".":
            continue
        if path.is_dir():
            found += _clips_below(path)
        elif path.suffix.lower() in clips.VIDEOS | clips.ANIMATED:
            found.append(path)
    return found


def predict(model: Model, samples: Sequence[Sample], *, top: int = TOP) -> Iterator[dict[str, Any]]:
    """Yield a dict per sample as `predicting.predict` does, with `missing`: the parts that it lacks."""
    size = max(1, BATCH // model.facts["samples"]["frames"])
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode") as pool,
        steps.step("classify", len(samples), "samples", patience=1.0) as told,
    ):
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            yield from _answers(model, part, list(pool.map(partial(frames_of, model), part)), top)
            told.add(len(part))


def frames_of(model: Model, sample: Sample) -> Tensor | str | None:
    """Return the frames as the model's input, uint8 (T, 3, S, S); None if there are none, or the reason."""
    if not sample.path:
        return None
    try:
        return prepared(model, partial(clips.frames, sample.path))
    except DataError as error:
        return str(error)


def prepared(model: Model, read: Callable[[int, int | None], list[Image.Image]]) -> Tensor:
    """Return the frames of a sample as the model's input, uint8 (T, 3, S, S).

    Args:
        model: the model.
        read: function from T, and the pixels that the shorter side must keep, to T frames.

    Raises:
        DataError: they cannot be read.
    """
    asked = model.facts["preprocessing"]
    side, whole = asked["image_size"], asked["whole_image"]
    found = read(model.facts["samples"]["frames"], pixels.evaluation_needs(side, whole))
    return torch.stack([torch.from_numpy(pixels.evaluation(one, side, whole)) for one in found])


def _answers(
    model: Model, part: Sequence[Sample], seen: Sequence[Tensor | str | None], top: int
) -> Iterator[dict[str, Any]]:
    usable = [number for number, one in enumerate(seen) if not isinstance(one, str)]
    found = probabilities(model, [part[n] for n in usable], [seen[n] for n in usable])
    rows = iter(ranked(model, found, top))
    for sample, one in zip(part, seen, strict=True):
        missing = lacking(model, sample, one)
        head: dict[str, Any] = {"path": sample.path}
        if isinstance(one, str):
            yield head | {"class": None, "probability": None, "top": [], "error": one, "missing": missing}
        else:
            yield head | next(rows) | {"error": None, "missing": missing}


def lacking(model: Model, sample: Sample, frames: Tensor | str | None) -> list[str]:
    """Return the names of the parts that a sample lacks: `image`, and `text` if the model knows any."""
    return ["image"] * (frames is None) + ["text"] * (model.encoder is not None and not sample.text)


@torch.no_grad()
def probabilities(model: Model, samples: Sequence[Sample], frames: Sequence[Tensor | str | None]) -> Tensor:
    """Return calibrated probabilities (B, C), float32, on the CPU.

    Args:
        model: the model.
        samples: the samples.
        frames: their frames, uint8 (T, 3, S, S), or None where a sample has none.
    """
    head = model.net.head
    assert isinstance(head, SampleHead)
    shape, device = head.shape, model.device
    if not samples:
        return torch.zeros(0, len(model.classes))
    marks = torch.ones(len(samples), 2, device=device)
    parts = []
    if shape.reads_image:
        asked = model.facts["preprocessing"]
        picks = read_frames(model.net.reads_clips, shape.frames, model.facts["samples"]["frames"])
        rows = torch.zeros(len(samples), head.width, device=device)
        for number, one in enumerate(frames):
            if isinstance(one, Tensor):
                x = pixels.normalise(one[picks].to(device), asked["mean"], asked["std"])
                rows[number] = model.net.features(model.net.inputs(x)).flatten()
            else:
                marks[number, 0] = 0
        parts.append(rows)
    if model.encoder is not None:
        marks[:, 1] = torch.tensor([float(bool(sample.text)) for sample in samples])
        if shape.reads_text:
            parts.append(model.encoder.encode([sample.text for sample in samples]).to(device))
    logits = model.net.from_features(torch.cat([*parts, marks], dim=1))
    return model.calibration.of(logits).cpu()
