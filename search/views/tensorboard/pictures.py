"""Pictures of a trial whose answers the record keeps: confusion, reliability, mistakes, a training batch.

They are drawn with Pillow from what the worker left in the trial's folder (answers.npz, mistakes.json,
explained.json, batch.json), so the process that writes them needs neither torch nor the images. Beside each
mistake stands the map of what spoke for it, where the worker has explained it.

Shapes: N images, C classes.
"""

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.image import metadata as image_metadata

from finetune.disk.filesystems import text_of
from search.config.study import StudyConfig
from search.record.records import TrialRecord
from search.record.study_folder import StudyFolder
from search.views.tensorboard import events
from search.views.tensorboard.columns import Columns
from search.views.tensorboard.events import EventFile

_PICTURES = ".pictures"
SIDE = 640
"""Side of the square charts in pixels."""
NAMED = 30
"""Largest number of classes whose names and counts are drawn; of more, the chart shows colours alone."""
TILE, CAPTION = 96, 30
"""Side of a picture on a sheet, and height of the text below it, in pixels."""
IN_A_ROW = 6
_BINS = 10
_INK, _PAPER, _GRID = (32, 33, 36), (255, 255, 255), (218, 220, 224)
_BLUE, _ORANGE = (25, 103, 210), (227, 116, 0)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def add(
    folder: StudyFolder,
    config: StudyConfig,
    trial: TrialRecord,
    classes: Sequence[str],
    kept: Path | None = None,
) -> bool:
    """Write the pictures of a trial into its TensorBoard run, in place of earlier ones.

    Args:
        folder: the study's results folder.
        config: the study's config.
        trial: the trial.
        classes: names of the C classes in label order.
        kept: folder with the answers of the trial's setting; None: the trial's own.

    Returns:
        True if there is something to draw: the record keeps answers of exported trials, and of trainings
        with other seeds.
    """
    run = folder.tensorboard / Columns(config).run_name(trial.id, trial.params, trial.baseline)
    kept = kept or folder.trial(trial.id)
    drawn = list(_of_answers(kept / "answers.npz", classes))
    maps = _maps(kept / "explained.json")
    for name, title in (("mistakes", "most confident mistakes"), ("batch", "a training batch as seen")):
        if tiles := _tiles(kept / f"{name}.json", maps):
            drawn.append((f"pictures/{title}", sheet(tiles)))
    if not drawn or not run.is_dir():
        return False
    events.remove(run, _PICTURES)
    file = EventFile(run, _PICTURES)
    for tag, image in drawn:
        file.write(0, summary=_summary(tag, image))
    file.close()
    return True


def confusion(labels: Ints, predicted: Ints, classes: Sequence[str]) -> Image.Image:
    """Return the confusion matrix: a row for each class, coloured by the share of it that was answered so.

    Args:
        labels: class of each image, (N,).
        predicted: answered class, (N,).
        classes: names of the C classes.
    """
    count = len(classes)
    matrix = np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    colours = (255 - shares[..., None] * (255 - np.array(_BLUE))).astype(np.uint8)
    if count > NAMED:
        return Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    image = Image.new("RGB", (SIDE, SIDE), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    margin = 130
    cell = (SIDE - margin) // count
    image.paste(Image.fromarray(colours).resize((cell * count,) * 2, Image.Resampling.NEAREST), (margin,) * 2)
    names = [_short(name, 16) for name in classes]
    for at, name in enumerate(names):
        middle = margin + at * cell + cell // 2
        draw.text((margin - 6, middle), name, _INK, font, anchor="rm")
        image.paste(_upright(name, font, margin - 10), (middle - 8, 4))
    if cell >= 18:
        for row, column in np.argwhere(matrix):
            ink = _PAPER if shares[row, column] > 0.5 else _INK
            place = (margin + column * cell + cell // 2, margin + row * cell + cell // 2)
            draw.text(place, str(matrix[row, column]), ink, font, anchor="mm")
    draw.text((6, 6), "rows: label\ncolumns: answer", _INK, font)
    return image


def reliability(right: NDArray[np.bool_], before: Floats, after: Floats) -> Image.Image:
    """Return the share of right answers against their confidence, before and after calibration.

    Args:
        right: whether each answer is right, (N,).
        before: its confidence, (N,).
        after: its confidence behind the temperature, (N,).
    """
    image = Image.new("RGB", (SIDE, SIDE), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, top, side = 60, 40, SIDE - 100

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * side, top + (1 - y) * side

    for tick in np.linspace(0, 1, 6):
        draw.line([place(tick, 0), place(tick, 1)], _GRID)
        draw.line([place(0, tick), place(1, tick)], _GRID)
        draw.text((place(tick, 0)[0], place(0, 0)[1] + 6), f"{tick:.1f}", _INK, font, anchor="ma")
        draw.text((left - 6, place(0, tick)[1]), f"{tick:.1f}", _INK, font, anchor="rm")
    draw.line([place(0, 0), place(1, 1)], _INK, 2)
    for confidence, colour in ((before, _ORANGE), (after, _BLUE)):
        bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
        points = [
            (place(confidence[bins == b].mean(), right[bins == b].mean()), (bins == b).sum())
            for b in np.unique(bins)
        ]
        draw.line([at for at, _ in points], colour, 2)
        for (x, y), size in points:
            radius = 3 + 9 * (size / len(right)) ** 0.5
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    draw.text((left, 12), "before the temperature", _ORANGE, font)
    draw.text((left + 170, 12), "after it", _BLUE, font)
    draw.text((SIDE // 2, SIDE - 18), "confidence (dots: share of images)", _INK, font, anchor="mm")
    draw.text((left + 6, top + 4), "share of right answers", _INK, font)
    return image


def sheet(tiles: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Return pictures with a text below each, IN_A_ROW in a row; of wide pictures as many as have room."""
    side = max(tile.width for tile, _ in tiles)
    across = IN_A_ROW if side <= TILE else IN_A_ROW // 2
    rows = -(-len(tiles) // across)
    wide, high = max(TILE, side) + 40, TILE + CAPTION + 8
    image = Image.new("RGB", (wide * min(across, len(tiles)), high * rows), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for at, (tile, caption) in enumerate(tiles):
        x, y = at % across * wide, at // across * high
        image.paste(tile, (x + (wide - tile.width) // 2, y + 4))
        draw.multiline_text((x + wide // 2, y + TILE + 8), caption, _INK, font, anchor="ma", align="center")
    return image


def _of_answers(path: Path, classes: Sequence[str]) -> Sequence[tuple[str, Image.Image]]:
    """Return the charts of a model's answers on the test images, or else on the validation images."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            split = "test" if "test/labels" in kept else "val"
            names = ("labels", "predicted", "confidence", "calibrated")
            labels, predicted, before, after = (kept[f"{split}/{name}"] for name in names)
    except (OSError, KeyError, ValueError, BadZipFile):  # none was kept, or the file is damaged
        return []
    if not len(labels) or max(labels.max(), predicted.max()) >= len(classes):
        return []
    labels, predicted = labels.astype(np.int64), predicted.astype(np.int64)
    told = reliability(labels == predicted, before.astype(np.float64), after.astype(np.float64))
    return [
        (f"pictures/confusion on {split}", confusion(labels, predicted, classes)),
        (f"pictures/reliability on {split}", told),
    ]


def _tiles(path: Path, maps: Mapping[int, Image.Image]) -> list[tuple[Image.Image, str]]:
    """Return the pictures that a worker kept, with a caption: the answer, its probability and the label.

    Args:
        path: the worker's file.
        maps: a map for the picture of each explained image, by the image's number; it stands beside it.
    """
    try:
        kept: list[Mapping[str, Any]] = json.loads(text_of(path))
        return [
            (_beside(_opened(one["picture"]), maps.get(one.get("image", -1))), _caption(one)) for one in kept
        ]
    except (OSError, ValueError, KeyError, TypeError):  # none was kept, or the file is damaged
        return []


def _maps(path: Path) -> dict[int, Image.Image]:
    """Return the maps of explained mistakes, by number of the image."""
    try:
        told = json.loads(text_of(path))["mistakes"]
        return {one["image"]: _opened(one["map"]) for one in told if one["map"] is not None}
    except (OSError, ValueError, KeyError, TypeError):  # none was kept, or the file is damaged
        return {}


def _beside(picture: Image.Image, mark: Image.Image | None) -> Image.Image:
    """Return a picture in the size of a tile, with its map to the right if there is one."""
    picture.thumbnail((TILE, TILE))
    if mark is None:
        return picture
    image = Image.new("RGB", (2 * TILE + 4, TILE), _PAPER)
    for at, each in enumerate((picture, mark)):
        each.thumbnail((TILE, TILE))
        image.paste(each, (at * (TILE + 4), (TILE - each.height) // 2))
    return image


def _opened(picture: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError) as error:
        raise ValueError("no picture") from error


def _caption(one: Mapping[str, Any]) -> str:
    label = _short(str(one["label"]), 20)
    if "predicted" not in one:
        return label
    return f"{_short(str(one['predicted']), 16)} {one['probability']:.2f}\nis {label}"


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _upright(text: str, font: Any, length: int) -> Image.Image:
    strip = Image.new("RGB", (length, 16), _PAPER)
    ImageDraw.Draw(strip).text((0, 8), text, _INK, font, anchor="lm")
    return strip.rotate(90, expand=True)


def _summary(tag: str, image: Image.Image) -> summary_pb2.Summary:
    coded = io.BytesIO()
    image.save(coded, "PNG", optimize=True)
    size = [str(side).encode() for side in image.size]
    tensor = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=3)]),
        string_val=[*size, coded.getvalue()],
    )
    about = image_metadata.create_summary_metadata(
        tag.removeprefix("pictures/"), "", converted_to_tensor=True
    )
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, metadata=about, tensor=tensor)])
