"""Classify images with a model folder, and write the predictions as lines or as a CSV file."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune import safe_text
from finetune.disk.atomic import replacing
from search.errors import StudyError

_COLUMNS = ("path", "class", "probability", "error")


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


def predict(model: Path, images: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield `path`, `class`, `probability`, `top` and `error` for every image found.

    Raises:
        CheckpointError: `model` is not a complete model folder.
        DataError: a path of `images` does not exist.
    """
    import torch

    from finetune import model_folder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = model_folder.load(model, device=device)
    return model_folder.predict(loaded, model_folder.find_images(images))


def line(row: dict[str, Any]) -> str:
    """Return a prediction as a line with tabs: path, class, probability; or path, `unreadable`, reason."""
    if row["error"] is None:
        told = (row["path"], row["class"], f"{row['probability']:.4f}")
    else:
        told = (row["path"], "unreadable", row["error"])
    return "\t".join(map(safe_text.terminal, told))


def write_csv(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write `path`, `class`, `probability` and `error` of each image to a file, completely or not at all.

    Raises:
        StudyError: the file cannot be written.
    """
    try:
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for row in rows:
                probability = "" if row["error"] else f"{row['probability']:.6f}"
                told = (row["path"], row["class"], probability, row["error"])
                writer.writerow([safe_text.cell(value) for value in told])
    except OSError as error:
        raise StudyError(
            f"{path}: --csv must be a file that can be written, got '{error.strerror}'. Choose another."
        ) from error
