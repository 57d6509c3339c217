"""Define `Source`, which describes the images of one kind of data, and kind `digits`. Imports no torch.

The other kinds are in folders.py, manifest.py and torchvision_sets.py. A new kind is a function from
settings to a `Source`, listed in `finetune.datasets.catalog.KINDS`.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from finetune.datasets import clips
from finetune.datasets.decode import decode, decode_bytes
from finetune.datasets.findings import Finding
from finetune.disk import file_cache, filesystems
from finetune.disk.filesystems import is_far, is_url
from finetune.errors import DataError
from finetune.settings import SampleSettings

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits that folders and manifests may use, in lower case -> split. If two folders name the same
split, the earlier name here is used."""
EXTENSIONS = frozenset(
    {*(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif"), *(".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")}
)
SAMPLE_BYTES = 4096
"""Bytes read from either end of a file for the fingerprint: headers, and the end of the pixels."""

Given = Mapping[str, Mapping[str, Sequence[str]]]
"""Split -> class -> paths of samples. `train` is there, `val` and `test` only if the data has them."""


class Reader(Protocol):
    """Reads the images of one source by path. It can be pickled, and used from several threads.

    Every method raises DataError if the image cannot be read.
    """

    def open(self, path: str, at_least: int | None = None) -> Image.Image:
        """Return the image as RGB, upright; `at_least` as in `finetune.datasets.decode.decode`."""

    def frames(self, path: str, count: int, at_least: int | None = None) -> list[Image.Image]:
        """Return `count` frames of a clip, evenly spaced in time, as `open` returns an image."""

    def sample(self, path: str) -> tuple[int, bytes]:
        """Return the size in bytes and the part of the content that goes into the fingerprint."""

    def content(self, path: str) -> bytes:
        """Return the file's bytes, or the pixels of an image that is no file."""


@dataclass(frozen=True)
class Source:
    """The images of one data set, before classes are chosen and missing splits are made."""

    given: Given
    reader: Reader
    classes: tuple[str, ...] | None = None
    """Classes in the source's own order of labels; None sorts them by name."""
    weights: Mapping[str, float] | None = None
    """Path -> weight of the image in the training loss; None if all are 1."""
    texts: Mapping[str, str] | None = None
    """Path -> text of the sample, perhaps empty; None if the settings ask for no text."""
    groups: Mapping[str, str] | None = None
    """Path -> name of the group of samples that no split may divide; None if no groups are given."""
    whole: bool = False
    """True if the images show their object from edge to edge; evaluation then does not crop them."""
    findings: tuple[Finding, ...] = ()
    """Remarks for people on images that were used or left out."""


@dataclass(frozen=True)
class Files:
    """Images in files: relative to a base folder, by absolute path or by any URL that fsspec opens."""

    base: str
    """Absolute path or URL of the folder that relative paths start at."""
    clips: bool = False
    """True if a sample may be a folder of frames or a video file."""

    def location(self, path: str) -> str:
        """Return the absolute path or the URL of an image."""
        return path if is_url(path) or os.path.isabs(path) else f"{self.base}/{path}"

    def exists(self, path: str) -> bool:
        """True if there is such a file.

        Raises:
            DataError: a URL cannot be checked: its kind is unknown, or a package or permission is missing.
        """
        location = self.location(path)
        if not is_url(location):
            return os.path.isfile(location) or (self.clips and os.path.isdir(location))
        import fsspec

        try:
            filesystem, inner = fsspec.core.url_to_fs(location)
            return bool(filesystem.isfile(inner))
        except Exception as error:  # each of fsspec's filesystems raises errors of its own
            raise DataError(_unreadable(location, error)) from error

    def open(self, path: str, at_least: int | None = None) -> Image.Image:
        """See `Reader`."""
        location = self.location(path)
        if self.clips and clips.is_clip(location):
            return clips.frames(location, 1, at_least)[0]
        if is_far(location):
            with readable(location, open_file=file_cache.here().open) as file:
                return decode_bytes(file.read(), location, at_least)
        return decode(Path(location), at_least)

    def frames(self, path: str, count: int, at_least: int | None = None) -> list[Image.Image]:
        """See `Reader`."""
        return clips.frames(self.location(path), count, at_least)

    def sample(self, path: str) -> tuple[int, bytes]:
        """See `Reader`; the sample is the first and last SAMPLE_BYTES of each file."""
        if self.clips and os.path.isdir(self.location(path)):
            names = [f"{path}/{frame.name}" for frame in clips.in_folder(Path(self.location(path)))]
            found = [self.sample(name) for name in names]
            told = hashlib.sha256(repr([*zip(names, found, strict=True)]).encode("utf-8", "surrogateescape"))
            return sum(size for size, _ in found), told.digest()
        with readable(self.location(path)) as file:
            head = file.read(SAMPLE_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(head), size - SAMPLE_BYTES))
            return size, head + file.read(SAMPLE_BYTES)

    def content(self, path: str) -> bytes:
        """See `Reader`."""
        if self.clips and os.path.isdir(self.location(path)):
            return b"".join(frame.read_bytes() for frame in clips.in_folder(Path(self.location(path))))
        with readable(self.location(path)) as file:
            return file.read()


@contextmanager
def readable(
    location: str, open_file: Callable[[str], BinaryIO] = filesystems.open_binary
) -> Iterator[BinaryIO]:
    """Open a local file or a URL for reading.

    Raises:
        DataError: opening or reading fails in any way; the message names the file and the reason.
    """
    try:
        with open_file(location) as file:
            yield file
    except Exception as error:  # each of fsspec's filesystems raises errors of its own
        raise DataError(_unreadable(location, error)) from error


def _unreadable(location: str, error: Exception) -> str:
    why = " ".join(str(error).split())
    return f"{location}: the file must be readable, got {type(error).__name__}: {why}. Correct or remove it."


def digits(data: SampleSettings) -> Source:
    """Return scikit-learn's 1797 handwritten digits, 8 x 8 grey levels of 0..16, without splits.

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
    """Reader of kind `digits`, for paths such as `digits/17`."""

    def open(self, path: str, at_least: int | None = None) -> Image.Image:
        return Image.fromarray(self._grey(path)).convert("RGB")

    def sample(self, path: str) -> tuple[int, bytes]:
        content = self.content(path)
        return len(content), content

    def frames(self, path: str, count: int, at_least: int | None = None) -> list[Image.Image]:
        return [self.open(path)] * count

    def content(self, path: str) -> bytes:
        content: bytes = self._grey(path).tobytes()
        return content

    def _grey(self, path: str) -> Any:
        return _load_digits()[0][int(path.removeprefix("digits/"))]
