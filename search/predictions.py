"""Classify images with a model folder, as a list or a CSV file."""

import contextlib
import csv
import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from search.errors import StudyError


def predict(model: Path, images: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield `path`, `class`, `probability` and `top` for every image found.

    Raises:
        CheckpointError: `model` is no whole model folder.
        DataError: an image is missing or unreadable.
    """
    import torch

    from finetune import model_folder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = model_folder.load(model, device=device)
    return model_folder.predict(loaded, model_folder.find_images(images))


def write_csv(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write `path`, `class` and `probability` per image, all or nothing; return how many.

    Raises:
        StudyError: the file cannot be written.
    """
    count = 0
    temporary = path.with_name(path.name + ".tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder")
        # A name that is not UTF-8 is written as it is.
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "class", "probability"))
            for count, row in enumerate(rows, start=1):  # noqa: B007 (used after the loop)
                writer.writerow((row["path"], row["class"], f"{row['probability']:.6f}"))
        temporary.replace(path)
    except OSError as error:
        raise StudyError(f"--csv: the file {path} must be writable, got {error.strerror}.") from None
    finally:
        with contextlib.suppress(OSError):  # a name that is too long
            temporary.unlink(missing_ok=True)
    return count
