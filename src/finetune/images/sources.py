"""Where images come from: one function per kind, from settings to a `Source`. Imports no torch.

Here is `digits`; folders.py, manifest.py and torchvision_sets.py hold the others. A new kind is a
function that returns a `Source`, named in `finetune.images.catalog.KINDS`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from finetune.disk import file_cache, filesystems
from finetune.disk.filesystems import is_far, is_url
from finetune.errors import DataError
from finetune.images.decode import decode, decode_bytes
from finetune.images.findings import Finding
from finetune.settings import DataSettings

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a folder or a manifest may call a split, in lower case -> split; of two folders the earlier name
here is taken."""
EXTENSIONS = frozenset(
    {*(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif"), *(".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")}
)
SAMPLE_BYTES = 4096
"""Read from either end of a file for the fingerprint: headers and the end of the pixels."""

Given = Mapping[str, Mapping[str, Sequence[str]]]
"""Split -> class -> paths of images. `train` is always there; `val` and `test` where they were given."""


class Reader(Protocol):
    """How the images of one source are read, by path. Travels by pickle; safe in several threads.

    Every method raises DataError for what cannot be read.
    """

    def open(self, path: str, at_least: int | None = None) -> Image.Image:
        """Return the image, RGB and upright; `at_least` as in `finetune.images.decode.decode`."""

    def sample(self, path: str) -> tuple[int, bytes]:
        """Return the size in bytes and the part of the content that goes into the fingerprint."""

    def content(self, path: str) -> bytes:
        """Return the file's bytes, or the pixels of an image that is no file."""


@dataclass(frozen=True)
class Source:
    """What one kind of data offers."""

    given: Given
    reader: Reader
    classes: tuple[str, ...] | None = None
    """In the source's own order of labels; None: sorted by name."""
    weights: Mapping[str, float] | None = None
    """Path -> weight of the image in the training loss; None: all count alike."""
    whole: bool = False
    """True: the images show their object from edge to edge, and evaluation sees them uncropped."""
    findings: tuple[Finding, ...] = ()
    """What a person should know about what was taken and what was not."""


@dataclass(frozen=True)
class Files:
    """Images in files: relative to a base folder, by absolute path or by any URL that fsspec opens."""

    base: str
    """Absolute path or URL of the folder that relative paths start at."""

    def location(self, path: str) -> str:
        """Return the absolute path or the URL of an image."""
        return path if is_url(path) or os.path.isabs(path) else f"{self.base}/{path}"

    def exists(self, path: str) -> bool:
        """True if there is such a file.

        Raises:
            DataError: a URL cannot be asked: its kind is unknown, a package or a permission is missing.
        """
        location = self.location(path)
        if not is_url(location):
            return os.path.isfile(location)
        import fsspec

        try:
            filesystem, inner = fsspec.core.url_to_fs(location)
            return bool(filesystem.isfile(inner))
        except Exception as error:  # each of fsspec's filesystems raises errors of its own
            raise DataError(_unreadable(location, error)) from error

    def open(self, path: str, at_least: int | None = None) -> Image.Image:
        """See `Reader`."""
        location = self.location(path)
        if is_far(location):
            with readable(location, open_file=file_cache.here().open) as file:
                return decode_bytes(file.read(), location, at_least)
        return decode(Path(location), at_least)

    def sample(self, path: str) -> tuple[int, bytes]:
        """See `Reader`: the first and last SAMPLE_BYTES."""
        with readable(self.location(path)) as file:
            head = file.read(SAMPLE_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(head), size - SAMPLE_BYTES))
            return size, head + file.read(SAMPLE_BYTES)

    def content(self, path: str) -> bytes:
        """See `Reader`."""
        with readable(self.location(path)) as file:
            return file.read()


@contextmanager
def readable(
    location: str, open_file: Callable[[str], BinaryIO] = filesystems.open_binary
) -> Iterator[BinaryIO]:
    """Open a local file or a URL for reading.

    Raises:
        DataError: whatever goes wrong with it; names the file and the reason.
    """
    try:
        with open_file(location) as file:
            yield file
    except Exception as error:  # each of fsspec's filesystems raises errors of its own
        raise DataError(_unreadable(location, error)) from error


def _unreadable(location: str, error: Exception) -> str:
    why = " ".join(str(error).split())
    return f"{location}: the file must be readable, got {type(error).__name__}: {why}. Correct or remove it."


def digits(data: DataSettings) -> Source:
    """Return scikit-learn's 1797 handwritten digits, 8 x 8 grey levels of 0..16; no splits are given.

    Raises:
        DataError: `data` names a path.
    """
    if data.path is not None:
        raise DataError(
            f"data.path: kind 'digits' carries its images, got {data.path!r}. Remove data.path, "
            "or use kind 'folder'."
        )
    by_class: dict[str, list[str]] = {}
    for index, label in enumerate(_load_digits()[1]):
        by_class.setdefault(str(label), []).append(f"digits/{index}")
    return Source({"train": by_class}, _Digits(), whole=True)


@lru_cache(maxsize=1)
def _load_digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits  # a second of import that only this kind needs

    grey, labels = load_digits(return_X_y=True)
    return np.rint(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels


@dataclass(frozen=True)
class _Digits:
    """Reads `digits/17`."""

    def open(self, path: str, at_least: int | None = None) -> Image.Image:
        return Image.fromarray(self._grey(path)).convert("RGB")

    def sample(self, path: str) -> tuple[int, bytes]:
        content = self.content(path)
        return len(content), content

    def content(self, path: str) -> bytes:
        content: bytes = self._grey(path).tobytes()
        return content

    def _grey(self, path: str) -> Any:
        return _load_digits()[0][int(path.removeprefix("digits/"))]
