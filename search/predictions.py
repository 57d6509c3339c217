"""Classify images with a model folder, as a list or a CSV file."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


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
    """Write `path`, `class` and `probability` per image; return how many."""
    count = 0
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "class", "probability"))
        for count, row in enumerate(rows, start=1):  # noqa: B007 (used after the loop)
            writer.writerow((row["path"], row["class"], f"{row['probability']:.6f}"))
    temporary.replace(path)
    return count
