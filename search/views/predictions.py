"""Classify images with a model folder, and write the predictions as lines, as a CSV or a Parquet file."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from finetune import safe_text
from finetune.disk.atomic import replacing
from search.errors import StudyError

_COLUMNS = ("path", "class", "probability", "error")
ROWS_AT_ONCE = 4096
"""Rows of a Parquet file that are written at once."""


class Counted:
    """Iterable of predictions that counts the images, and the unreadable ones, while it is read."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = rows
        self.images = self.unreadable = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            self.images += 1
            self.unreadable += row["error"] is not None
            yield row


def predict(model: Path, images: Sequence[Path], top: int = 5, *, text: str = "") -> Iterator[dict[str, Any]]:
    """Yield `path`, `class`, `probability`, `top` and `error` for every image found.

    Raises:
        CheckpointError: `model` is not a complete model folder.
        DataError: a path of `images` does not exist.
    """
    import torch

    from finetune import model_folder
    from finetune.model_folder import samples

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = model_folder.load(model, device=device, parts=True)
    if "samples" in loaded.facts:
        if text and loaded.encoder is None:
            raise StudyError(f"--text: {model} must be a model that reads text, got another. Leave it out.")
        if not images and not text:
            raise StudyError(
                f"{model}: a sample needs an image or a text, got neither. Name images, or --text."
            )
        return samples.predict(loaded, samples.find(loaded, images, text), top=top)
    if text or not images:
        rule = "a model of images needs images and no --text"
        raise StudyError(f"{model}: {rule}, got {'a text' if text else 'nothing'}. Name images.")
    return model_folder.predict(loaded, model_folder.find_images(images), top=top)


def line(row: dict[str, Any], top: int = 1) -> str:
    """Return a prediction as a line with tabs: path, then `top` times class and probability.

    An image that cannot be read has its path, `unreadable` and the reason.
    """
    if row["error"] is None:
        ranked = [(one["class"], f"{one['probability']:.4f}") for one in row["top"][:top]]
        told = [row["path"] or "-", *(text for pair in ranked for text in pair)]
        told += [f"without {part}" for part in row.get("missing", ())]
    else:
        told = [row["path"], "unreadable", row["error"]]
    return "\t".join(map(safe_text.terminal, told))


def write_csv(rows: Iterable[dict[str, Any]], path: Path, top: int = 1) -> None:
    """Write a CSV file completely or not at all: `path`, `class`, `probability` and `error` of each image.

    With `top` above 1, `class_2`, `probability_2` and so on follow.

    Raises:
        StudyError: the file cannot be written.
    """
    waiting = iter(rows)
    first = next(waiting, None)
    rows = () if first is None else chain([first], waiting)
    parts = ["missing"] * (first is not None and "missing" in first)
    more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("class", "probability")]
    with (
        _written("--csv", path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *more, *parts])
        for row in rows:
            probability = "" if row["error"] else f"{row['probability']:.6f}"
            told = [row["path"], row["class"], probability, row["error"]]
            ranked = [(one["class"], f"{one['probability']:.6f}") for one in row.get("top", ())[1:top]]
            told += [text for pair in ranked for text in pair]
            told += [""] * (len(_COLUMNS) + len(more) - len(told))
            told += [" ".join(row["missing"])] if parts else []
            writer.writerow([safe_text.cell(value) for value in told])


def write_parquet(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write a Parquet file completely or not at all: `path`, `class`, `probability`, `top` and `error`.

    `top` is a list of `class` and `probability`. Names are those of the files and classes, except that bytes
    which are not UTF-8 are escaped.

    Raises:
        StudyError: the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    answer = {"class": pa.string(), "probability": pa.float32()}
    columns = {"path": pa.string(), **answer, "error": pa.string(), "top": pa.list_(pa.struct(answer))}
    schema = pa.schema(columns)
    waiting = iter(rows)
    with _written("--parquet", path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while part := list(islice(waiting, ROWS_AT_ONCE)):
            plain = [row | {name: _utf8(row[name]) for name in ("path", "class", "error")} for row in part]
            writer.write_table(pa.Table.from_pylist(plain, schema=schema))


def _utf8(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def _written(option: str, path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` at the end.

    Raises:
        StudyError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise StudyError(
            f"{path}: {option} must be a file that can be written, got '{error.strerror}'. Choose another."
        ) from error
