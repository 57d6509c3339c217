"""Which images there are, their labels and splits; and how one image file is read.

Imports no torch, so the process that searches can scan, check and count without it.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from finetune.errors import DataError, did_you_mean
from finetune.settings import DataSettings

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folder name in lower case -> split."""
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SAMPLE_BYTES = 4096
"""Read from either end of a file for the fingerprint: headers and the end of the pixels."""

Given = Mapping[str, Mapping[str, Sequence[str]]]
"""Split -> class -> paths of images. `train` is always there; `val` and `test` where they were given."""


@dataclass(frozen=True)
class Example:
    """One image and its class."""

    path: str
    """Relative to the catalog's root, with `/`; or a name such as `digits/17`."""
    label: int
    """Index into the catalog's classes."""


@dataclass(frozen=True)
class Catalog:
    """The images of one data set, by split. Made by `scan`."""

    kind: str
    root: Path | None
    """None for kinds that carry their images."""
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    """`train`, `val` and `test`, each sorted by label, then path; only `test` may be empty."""
    made: tuple[str, ...]
    """The splits that were not given but taken from `train` by the seed."""
    fingerprint: str
    """SHA-256 over kind, classes in order, and of every image its split, class, path, size in bytes
    and its first and last 4 KiB. An edit that keeps the size and touches only the middle of a file
    is not seen; modification times do not count, so a copy of the folder has the same fingerprint."""
    read: Callable[[str], Image.Image] = field(repr=False, compare=False)
    """Path of an example -> its image."""

    def open(self, example: Example) -> Image.Image:
        """Return the image as RGB, upright.

        Raises:
            DataError: the file is missing, broken or refused; names the file and the reason.
        """
        return self.read(example.path)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images per split and class, zeros included."""
        counts = {split: dict.fromkeys(self.classes, 0) for split in self.splits}
        for split, examples in self.splits.items():
            for example in examples:
                counts[split][self.classes[example.label]] += 1
        return counts


@dataclass(frozen=True)
class Source:
    """What one kind of data offers; a new kind is one function that returns this, named in `KINDS`."""

    root: Path | None
    given: Given
    read: Callable[[str], Image.Image]
    """Path -> image, RGB and upright."""
    sample: Callable[[str], tuple[int, bytes]]
    """Path -> size in bytes and the content that goes into the fingerprint."""


def scan(data: DataSettings) -> Catalog:
    """Return the catalog of the images `data` names; missing splits are made from `data.seed`.

    Only `val` given: the test split stays empty. Only `test` given: `val` is taken from `train`.

    Raises:
        DataError: the images or `data` are contradictory; the message names what to change.
    """
    if data.kind not in KINDS:
        raise DataError(
            f"data.kind: must name a kind of data, got {data.kind!r}. {did_you_mean(data.kind, KINDS)}"
        )
    source = KINDS[data.kind](data)
    where = data.path or data.kind
    classes = _choose_classes(where, source.given, data.classes)
    chosen = {
        split: {name: folders.get(name, ()) for name in classes} for split, folders in source.given.items()
    }
    _check_images(where, chosen)
    shares = _missing_shares(data, chosen)
    if shares:
        chosen = _take_from_train(chosen, shares, data.seed)
        if not any(chosen["val"].values()):
            raise DataError(
                f"{where}: validation needs a class with two images or more, got one image per class. "
                "Add images, or a folder 'val'."
            )
    splits = {
        split: tuple(
            Example(path, label)
            for label, name in enumerate(classes)
            for path in sorted(chosen.get(split, {}).get(name, ()))
        )
        for split in SPLITS
    }
    fingerprint = _fingerprint(data.kind, classes, splits, source.sample)
    return Catalog(data.kind, source.root, classes, splits, tuple(shares), fingerprint, source.read)


def _choose_classes(where: str, given: Given, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the classes in label order; those of `val` and `test` must be among those of `train`."""
    known = given["train"]
    if wanted is None:
        for split, folders in given.items():
            strange = sorted(set(folders) - set(known))
            if strange:
                raise DataError(
                    f"{where}: every class of '{split}' must be one of 'train', got {', '.join(strange)}. "
                    "Rename or remove these folders, or choose with data.classes."
                )
    classes = tuple(sorted(known)) if wanted is None else wanted
    for name in classes:
        if name not in known:
            raise DataError(
                f"data.classes: every name must be a class of {where}, got {name!r}. "
                f"{did_you_mean(name, known)}"
            )
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise DataError(
            f"data.classes: a class may stand once, got {', '.join(twice)} again. Remove the repetition."
        )
    if len(classes) < 2:
        raise DataError(
            f"{where}: at least 2 classes are needed, got {len(classes)} ({', '.join(classes) or 'none'}). "
            "Put the images into one folder per class: ROOT/CLASS/*.jpg or ROOT/train/CLASS/*.jpg."
        )
    return classes


def _check_images(where: str, chosen: Given) -> None:
    for split, folders in chosen.items():
        if not any(folders.values()):
            raise DataError(
                f"{where}: '{split}' must hold images, got none. Use files that end in "
                f"{', '.join(sorted(EXTENSIONS))}, or remove the folder."
            )
    empty = [name for name, paths in chosen["train"].items() if not paths]
    if empty:
        raise DataError(
            f"{where}: every class needs an image to train on, got none for {', '.join(empty)}. "
            "Add images, remove the empty folders, or choose with data.classes."
        )


def _missing_shares(data: DataSettings, given: Given) -> dict[str, float]:
    """Return split -> share of `train` for the splits to be made; empty where `val` is given."""
    if "val" in given:
        return {}
    val, test = data.validation_share, 0.0 if "test" in given else data.test_share
    if not 0 < val < 1:
        raise DataError(
            f"data.validation_share: must lie between 0 and 1, got {val}. Use 0.2, or give a folder 'val'."
        )
    if not 0 <= test < 1 - val:
        raise DataError(
            f"data.test_share: must be 0 or more and leave images to train on, got {test} beside a "
            f"validation_share of {val}. Use 0.1."
        )
    return {"val": val, "test": test} if test else {"val": val}


def _take_from_train(
    given: Given, shares: Mapping[str, float], seed: int
) -> dict[str, dict[str, Sequence[str]]]:
    """Return `given` with the splits of `shares` taken out of `train`, class by class.

    Which images go depends on the seed and the paths alone: they are ordered by a hash of both.
    """
    splits: dict[str, dict[str, Sequence[str]]] = {split: dict(paths) for split, paths in given.items()}
    splits.update({split: {} for split in shares})
    for name, paths in given["train"].items():
        order = sorted(paths, key=lambda path: _digest(f"{seed}\0{path}"))
        val, test = split_sizes(len(order), shares["val"], shares.get("test", 0.0))
        splits["val"][name] = order[:val]
        if "test" in shares:
            splits["test"][name] = order[val : val + test]
        splits["train"][name] = order[val + test :]
    return splits


def split_sizes(images: int, val_share: float, test_share: float) -> tuple[int, int]:
    """Return how many of a class's images go to val and test.

    The nearest whole numbers, except that one image stays in train and one of two or more goes to val.
    """
    val = min(max(1, round(images * val_share)), images - 1)
    return val, min(round(images * test_share), images - 1 - val)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _fingerprint(
    kind: str,
    classes: tuple[str, ...],
    splits: Mapping[str, tuple[Example, ...]],
    sample: Callable[[str], tuple[int, bytes]],
) -> str:
    digest = hashlib.sha256(repr((kind, classes)).encode())
    for split in SPLITS:
        for example in splits[split]:
            size, content = sample(example.path)
            row = (split, example.label, example.path, size, hashlib.sha256(content).hexdigest())
            digest.update(repr(row).encode())
    return digest.hexdigest()


def _folder(data: DataSettings) -> Source:
    """One folder per class, below `train`, `val` and `test` or without splits.

    A folder named like a split counts as one if it has folders inside (`ROOT/test/*.jpg` has no labels
    and is not used). Folders inside a class folder are searched too, links to folders there are not;
    hidden files and folders are passed over.
    """
    if data.path is None:
        raise DataError("data.path: kind 'folder' needs the folder of the images, got None. Name one.")
    root = Path(data.path)
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(f"{root}: data.path must be an existing folder, got {got}. Correct data.path.")
    try:
        tops = _subfolders(root)
        found: dict[str, str] = {}
        for top in tops:
            split = SPLIT_FOLDERS.get(top.lower())
            if split is None or not _subfolders(root / top):
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
        folders = {split: root / top for split, top in found.items()} or {"train": root}
        given = {split: _images_by_class(root, folder) for split, folder in folders.items()}
    except OSError as error:
        raise DataError(
            f"{root}: the folder must be readable, got {error}. Correct its permissions."
        ) from error
    return Source(root, given, partial(_decode_below, root), partial(_sample_file, root))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _images_by_class(root: Path, folder: Path) -> dict[str, list[str]]:
    return {name: _images_below(root, folder / name) for name in _subfolders(folder)}


def _images_below(root: Path, folder: Path) -> list[str]:
    def fail(error: OSError) -> None:
        raise error

    paths = []
    for base, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if name[0] != "."]
        paths += [
            Path(base, name).relative_to(root).as_posix()
            for name in files
            if name[0] != "." and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return paths


def _sample_file(root: Path, path: str) -> tuple[int, bytes]:
    try:
        with open(root / path, "rb") as file:
            head = file.read(SAMPLE_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(head), size - SAMPLE_BYTES))
            return size, head + file.read(SAMPLE_BYTES)
    except OSError as error:
        raise DataError(
            f"{root / path}: the file must be readable, got {error}. Correct or remove it."
        ) from error


def _digits(data: DataSettings) -> Source:
    """Return scikit-learn's 1797 handwritten digits, 8 x 8 grey levels of 0..16; no splits are given."""
    if data.path is not None:
        raise DataError(
            f"data.path: kind 'digits' carries its images, got {data.path!r}. Remove data.path, "
            "or use kind 'folder'."
        )
    by_class: dict[str, list[str]] = {}
    for index, label in enumerate(_load_digits()[1]):
        by_class.setdefault(str(label), []).append(f"digits/{index}")
    return Source(None, {"train": by_class}, _open_digit, _sample_digit)


@lru_cache(maxsize=1)
def _load_digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits  # a second of import that only this kind needs

    grey, labels = load_digits(return_X_y=True)
    return np.rint(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels


def _open_digit(path: str) -> Image.Image:
    grey = _load_digits()[0][int(path.removeprefix("digits/"))]
    return Image.fromarray(grey).convert("RGB")


def _sample_digit(path: str) -> tuple[int, bytes]:
    content = _load_digits()[0][int(path.removeprefix("digits/"))].tobytes()
    return len(content), content


KINDS: dict[str, Callable[[DataSettings], Source]] = {"folder": _folder, "digits": _digits}


def _decode_below(root: Path, path: str) -> Image.Image:
    return decode(root / path)


UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes it upright (EXIF 2.32, tag 0x0112)."""


def decode(path: Path) -> Image.Image:
    """Return the image in a file as RGB, upright by its EXIF tag; of an animation the first frame.

    Transparent parts are laid on white. 16-bit grey is scaled by its full range, 0..65535 -> 0..255.

    Raises:
        DataError: the file is missing or broken, has more pixels than Pillow's limit against
            decompression bombs, or grey levels without a known range (floats, 32 bit).
    """
    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, limit {limit}")
            image.load()
            turn = UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
            return rgb if turn is None else rgb.transpose(turn)
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        raise DataError(
            f"{path}: an image must be readable, got {type(error).__name__}: {error}. "
            "Replace or remove the file."
        ) from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag says nothing about the pixels: take them as they are
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # I;16, I;16B, I, F: convert() would clip at 255
        levels = np.asarray(image)
        if levels.dtype.kind == "f" or levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"{image.mode} levels from {levels.min()} to {levels.max()}, not 0 to 65535")
        image = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
