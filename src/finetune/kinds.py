"""Where images come from: one function per kind, from settings to a `Source`. Imports no torch.

Here are `folder` and `digits`; manifest.py and torchvision_sets.py hold the others. A new kind is a
function that returns a `Source`, named in `finetune.catalog.KINDS`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from finetune import file_cache, filesystems
from finetune.decode import decode, decode_bytes
from finetune.errors import DataError
from finetune.filesystems import is_far, is_url
from finetune.settings import DataSettings

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a folder or a manifest may call a split, in lower case -> split."""
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
        """Return the image, RGB and upright; `at_least` as in `finetune.decode.decode`."""

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
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Suffix, in lower case -> files with it that are taken for no images."""


@dataclass(frozen=True)
class Files:
    """Images in files: relative to a base folder, by absolute path or by any URL that fsspec opens."""

    base: str
    """Absolute path or URL of the folder that relative paths start at."""

    def location(self, path: str) -> str:
        """Return the absolute path or the URL of an image."""
        return path if is_url(path) or os.path.isabs(path) else f"{self.base}/{path}"

    def exists(self, path: str) -> bool:
        """True if there is such a file."""
        location = self.location(path)
        if not is_url(location):
            return os.path.isfile(location)
        import fsspec

        filesystem, inner = fsspec.core.url_to_fs(location)
        return bool(filesystem.isfile(inner))

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
        raise DataError(
            f"{location}: the file must be readable, got {type(error).__name__}: {error}. "
            "Correct or remove it."
        ) from error


def folder(data: DataSettings) -> Source:
    """One folder per class, below `train`, `val` and `test` or without splits.

    A folder named like a split counts as one if it has folders inside (`ROOT/test/*.jpg` has no labels
    and is not used). Folders inside a class folder are searched too, links to folders there are not;
    hidden files and folders are passed over.

    The folder may be a URL that fsspec lists (s3://bucket/flowers); what is below it is then taken alike.

    Raises:
        DataError: there is no such folder, it cannot be read, or splits stand twice or lack `train`.
    """
    if data.path is None:
        raise DataError("data.path: kind 'folder' needs the folder of the images, got None. Name one.")
    if is_url(data.path):
        return _folder_at(data.path.rstrip("/"))
    root = Path(data.path)
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(f"{root}: data.path must be an existing folder, got {got}. Correct data.path.")
    try:
        tops = _split_folders(root)
        folders = {split: root / top for split, top in tops.items()} or {"train": root}
        others: Counter[str] = Counter()
        given = {split: _images_by_class(root, top, others) for split, top in folders.items()}
    except OSError as error:
        raise DataError(
            f"{root}: the folder must be readable, got {error}. Correct its permissions."
        ) from error
    return Source(given, Files(str(root)), passed_over=others)


def _folder_at(url: str) -> Source:
    """As `folder`, for a URL."""
    paths = [path for path in _listed(url) if not any(part[0] == "." for part in path.split("/"))]
    splits = _splits_among(url, sorted({path.split("/")[0] for path in paths if path.count("/") >= 2}))
    given: dict[str, dict[str, list[str]]] = {}
    for split, top in (splits or {"train": ""}).items():
        prefix = f"{top}/" if top else ""
        by_class = given.setdefault(split, {})
        for path in paths:
            name, _, rest = path.removeprefix(prefix).partition("/")
            if path.startswith(prefix) and rest and os.path.splitext(rest)[1].lower() in EXTENSIONS:
                by_class.setdefault(name, []).append(path)
    suffixes = Counter(os.path.splitext(path)[1].lower() for path in paths)
    others = {suffix: count for suffix, count in suffixes.items() if suffix not in EXTENSIONS}
    return Source(given, Files(url), passed_over=others)


def _listed(url: str) -> list[str]:
    """Return the paths of all files below a URL, relative to it."""
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        found = [str(path) for path in filesystem.find(root)]
    except Exception as error:  # each of fsspec's filesystems raises errors of its own
        raise DataError(
            f"{url}: the folder must be readable, got {type(error).__name__}: {error}. Correct data.path."
        ) from error
    if not found:
        raise DataError(f"{url}: data.path must hold files, got none. Correct data.path.")
    return [path.removeprefix(root.rstrip("/") + "/") for path in found]


def _split_folders(root: Path) -> dict[str, str]:
    """Return split -> name of its folder; empty where the classes lie straight below the root."""
    return _splits_among(root, [top for top in _subfolders(root) if _subfolders(root / top)])


def _splits_among(root: object, tops: Iterable[str]) -> dict[str, str]:
    """Return split -> name of its folder, out of those folders that have folders inside."""
    found: dict[str, str] = {}
    for top in tops:
        split = SPLIT_NAMES.get(top.lower())
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"{root}: one folder per split, got '{found[split]}' and '{top}'. Remove one of them."
            )
        found[split] = top
    if found and "train" not in found:
        raise DataError(
            f"{root}: folders of splits need 'train' among them, got {', '.join(found.values())}. "
            "Add 'train', or put the class folders straight into the root."
        )
    return found


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _images_by_class(root: Path, folder: Path, others: Counter[str]) -> dict[str, list[str]]:
    return {name: _images_below(root, folder / name, others) for name in _subfolders(folder)}


def _images_below(root: Path, folder: Path, others: Counter[str]) -> list[str]:
    """Return the images below a folder; count the other files in `others`, by suffix."""

    def fail(error: OSError) -> None:
        raise error

    paths = []
    for base, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name[0] != "." and suffix in EXTENSIONS:
                paths.append(Path(base, name).relative_to(root).as_posix())
            elif name[0] != ".":
                others[suffix or "no suffix"] += 1
    return paths


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
