"""List the images of a data set with their labels, weights and splits.

This module imports no torch, so the process that searches can scan, check and count images without it. Only
kind `torchvision` needs torchvision's own reader, and with it torch.
"""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image

from finetune import steps
from finetune.datasets import generated, part_findings
from finetune.datasets.clips import Clips
from finetune.datasets.exclusion import leave_out
from finetune.datasets.findings import Finding, listed
from finetune.datasets.folders import folder
from finetune.datasets.manifest import manifest
from finetune.datasets.sources import EXTENSIONS, SPLITS, Given, Reader, Source, digits
from finetune.datasets.splits import divided, missing_shares, take_from_train
from finetune.datasets.torchvision_sets import torchvision_set
from finetune.errors import DataError, did_you_mean
from finetune.settings import SampleSettings

KINDS: dict[str, Callable[[SampleSettings], Source]] = {
    "folder": folder,
    "manifest": manifest,
    "torchvision": torchvision_set,
    "digits": digits,
    "captions": generated.captions,
    "motion": generated.motion,
}
SEEN_SIDE = 64
"""Pixels of the shorter side of a clip's frames that are only looked at to see whether they can be read."""
THREADS = min(8, os.cpu_count() or 1)
"""Threads that read images; Pillow decodes outside the interpreter's lock."""


@dataclass(frozen=True)
class Example:
    """One image and its class."""

    path: str
    """Path relative to the source's folder, with `/`; or an absolute path, a URL, a name like `digits/17`."""
    label: int
    """Index into the catalog's classes."""
    weight: float = 1.0
    """Weight of the image in the training loss; only a manifest sets another value than 1."""
    text: str = ""
    """Text of the sample; empty if it has none."""
    group: str = ""
    """Group of the sample, which stays together in splits and folds; empty if it has none."""
    frame: int | None = None
    """Number of one frame of the sample, from 0; None for the sample itself."""


@dataclass(frozen=True)
class Skipped:
    """A broken image that was left out."""

    path: str
    reason: str


@dataclass(frozen=True)
class Catalog:
    """The images of one data set by split, as `scan` returns them."""

    kind: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    """`train`, `val` and `test`, each sorted by label, then path; only `test` may be empty."""
    made: tuple[str, ...]
    """Splits that the data set lacks, and that were taken from `train` by the seed."""
    skipped: tuple[Skipped, ...]
    """Broken images, sorted by path; empty unless `data.on_error` is `skip`."""
    whole: bool
    """True if the images show their object from edge to edge; evaluation then does not crop them."""
    fingerprint: str
    """SHA-256 over the kind, the classes in order, and the split, class, path, weight (unless 1), size in
    bytes and first and last 4 KiB of every image. It does not notice an edit that keeps the size and touches
    only the middle of a file. Modification times do not count, so a copy has the same fingerprint."""
    excluded: tuple[str, ...] = field(default=(), kw_only=True)
    """Paths of the images that `data.exclude` leaves out, sorted."""
    moving: bool = field(default=False, kw_only=True)
    """True if samples are clips, of which an image shows one frame only."""
    frames: int = field(default=1, kw_only=True)
    """Frames of each sample, if the examples are frames."""
    clips: Clips = field(default_factory=Clips, repr=False, compare=False, kw_only=True)
    """The frames that were decoded last."""
    reader: Reader = field(repr=False, compare=False)
    findings: tuple[Finding, ...] = field(default=(), compare=False)
    """Remarks on images that were used or left out; `finetune.datasets.inspection.inspect` adds more."""

    def open(self, example: Example, at_least: int | None = None) -> Image.Image:
        """Return the image as RGB, upright; `at_least` as in `finetune.datasets.decode.decode`.

        Raises:
            DataError: the file is missing, broken or refused; the message names the file and the reason.
        """
        if example.frame is None:
            return self.reader.open(example.path, at_least)
        return self.clips.frames(self.reader, example.path, self.frames, at_least)[example.frame]

    def of_frames(self, count: int) -> "Catalog":
        """Return the catalog in which each sample is replaced by `count` frames, in the order of time."""
        return dataclasses.replace(
            self,
            splits={
                split: tuple(
                    dataclasses.replace(example, frame=frame)
                    for example in examples
                    for frame in range(count)
                )
                for split, examples in self.splits.items()
            },
            fingerprint=hashlib.sha256(f"{self.fingerprint} {count} frames".encode()).hexdigest(),
            frames=count,
        )

    def together(self) -> "Catalog":
        """Return the catalog in which the validation images are training images, too."""
        every = sorted(
            (*self.splits["train"], *self.splits["val"]), key=lambda example: (example.label, example.path)
        )
        return dataclasses.replace(
            self,
            splits={**self.splits, "train": tuple(every)},
            fingerprint=hashlib.sha256(f"{self.fingerprint} train and val".encode()).hexdigest(),
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images per split and class, zeros included."""
        counts = {split: dict.fromkeys(self.classes, 0) for split in self.splits}
        for split, examples in self.splits.items():
            for example in examples:
                counts[split][self.classes[example.label]] += 1
        return counts


def scan(data: SampleSettings, *, lenient: bool = False) -> Catalog:
    """Return the catalog of the images that `data` names; missing splits are made from `data.seed`.

    If only `val` is given, the test split stays empty. If only `test` is given, `val` is taken from `train`.
    With `on_error: skip` every image is decoded once here, so that all workers leave out the same images: a
    worker that left out others would have another fingerprint, and the trial would fail.

    Args:
        data: the data settings.
        lenient: keep files that cannot be read, such as broken links, so that
            `finetune.datasets.inspection` can list all of them. The fingerprint then differs from a study's.

    Raises:
        DataError: the images or `data` are contradictory; the message names what to change.
    """
    if data.kind not in KINDS:
        raise DataError(
            f"data.kind: must name a kind of data, got {data.kind!r}. {did_you_mean(data.kind, KINDS)}"
        )
    _check_utf8("data.path", [data.path or ""])
    where = data.path or data.kind
    source = _with_one_form(KINDS[data.kind](data))
    classes = _choose_classes(where, source, data.classes)
    _check_utf8(f"{where}: names of classes", classes)
    chosen: Given = {
        split: {name: found.get(name, ()) for name in classes} for split, found in source.given.items()
    }
    excluded: tuple[str, ...] = ()
    remarks: tuple[Finding, ...] = ()
    if data.exclude is not None:
        chosen, excluded, remarks = leave_out(chosen, data.exclude, data.path)
    # Broken images go before splits are made, so that the shares are those of the images that are used.
    skipped: tuple[Skipped, ...] = ()
    if data.on_error == "skip":
        chosen, skipped = _leave_out_broken(chosen, source.reader, data.frames)
    _check_images(f"{where} without {len(skipped)} broken images" if skipped else where, chosen)
    shares = missing_shares(data, chosen)
    if shares:
        chosen = take_from_train(chosen, shares, data.seed, source.groups)
        if source.groups is not None:
            _check_groups_suffice(where, chosen)
        if not any(chosen["val"].values()):
            raise DataError(
                f"{where}: validation needs a class with two images or more, got one image per class. "
                "Add images, or a 'val' split."
            )
    if source.groups is not None:
        _check_groups(where, chosen, source.groups)
    splits = _examples(chosen, classes, source)
    return Catalog(
        kind=data.kind,
        classes=classes,
        splits=splits,
        made=tuple(shares),
        skipped=skipped,
        whole=source.whole,
        fingerprint=_fingerprint(data.kind, classes, splits, source.reader, lenient=lenient),
        reader=source.reader,
        findings=(*source.findings, *remarks, *part_findings.find(splits, data, source.groups)),
        excluded=excluded,
        moving=data.frames > 1,
    )


def _check_utf8(what: str, names: Iterable[str]) -> None:
    """Raise a DataError for a name that no YAML, JSON or TensorBoard file can hold."""
    wrong = [repr(os.fsencode(name))[1:] for name in names if not name.isascii() and not _is_utf8(name)]
    if wrong:
        raise DataError(f"{what}: must be UTF-8, got {listed(wrong)}. Rename, such as with convmv.")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _form(name: str) -> str:
    """Return a name in Unicode form NFC; macOS may write accents as separate characters."""
    return unicodedata.normalize("NFC", name)


def _with_one_form(source: Source) -> Source:
    """Return the source with class names in one Unicode form, merging classes whose names look alike."""
    given: dict[str, dict[str, list[str]]] = {}
    forms: dict[str, set[str]] = {}
    for split, found in source.given.items():
        merged = given.setdefault(split, {})
        for name, paths in found.items():
            merged.setdefault(_form(name), []).extend(paths)
            forms.setdefault(_form(name), set()).add(name)
    double = sorted(name for name, spelt in forms.items() if len(spelt) > 1)
    findings = source.findings
    if double:
        text = (
            f"names of classes should have one Unicode form, got two of {listed(double)}. "
            "They are taken for one class each: rename one of them."
        )
        findings = (*findings, Finding("note", "two_forms", text, count=len(double)))
    classes = None if source.classes is None else tuple(dict.fromkeys(map(_form, source.classes)))
    return dataclasses.replace(source, given=given, classes=classes, findings=findings)


def _choose_classes(where: str, source: Source, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the classes in label order.

    Raises:
        DataError: `val` or `test` has a class that `train` lacks, `wanted` names no class or one
            twice, or there are fewer than two classes.
    """
    known = source.given["train"]
    wanted = None if wanted is None else tuple(_form(name) for name in wanted)
    if wanted is None:
        for split, found in source.given.items():
            strange = sorted(set(found) - set(known))
            if strange:
                raise DataError(
                    f"{where}: every class of '{split}' must be one of 'train', got {', '.join(strange)}. "
                    "Rename or remove them, or choose with data.classes."
                )
    classes = (source.classes or tuple(sorted(known))) if wanted is None else wanted
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


def _leave_out_broken(chosen: Given, reader: Reader, frames: int) -> tuple[Given, tuple[Skipped, ...]]:
    """Return `chosen` without the images that cannot be read, and the list of these."""

    def reason(path: str) -> str | None:
        try:
            if frames > 1:
                reader.frames(path, frames, SEEN_SIDE)
            else:
                reader.open(path)
        except DataError as error:
            return str(error)
        return None

    paths = sorted({path for found in chosen.values() for paths in found.values() for path in paths})
    with ThreadPoolExecutor(THREADS, "scan") as pool, steps.step("open images", len(paths), "images") as told:
        reasons = dict(zip(paths, told.each(pool.map(reason, paths)), strict=True))
    kept = {
        split: {name: [path for path in paths if reasons[path] is None] for name, paths in found.items()}
        for split, found in chosen.items()
    }
    return kept, tuple(Skipped(path, why) for path, why in reasons.items() if why is not None)


def _check_images(where: str, chosen: Given) -> None:
    """Raise a DataError if a split has no image, or a class no training image."""
    for split, found in chosen.items():
        if not any(found.values()):
            raise DataError(
                f"{where}: '{split}' must hold images, got none. Use files that end in "
                f"{', '.join(sorted(EXTENSIONS))}, or remove the split."
            )
    empty = [name for name, paths in chosen["train"].items() if not paths]
    if empty:
        raise DataError(
            f"{where}: every class needs an image to train on, got none for {', '.join(map(repr, empty))}. "
            "Add images, remove the empty folders, or choose with data.classes."
        )


def _check_groups(where: str, chosen: Given, groups: Mapping[str, str]) -> None:
    """Raise a DataError if the given splits divide a group."""
    found = divided(chosen, groups)
    if found:
        told = [f"{group!r} in {' and '.join(splits)}" for group, splits in found.items()]
        raise DataError(
            f"{where}: a group must lie in one split, got {listed(told)}. Move it, or rename the group."
        )


def _check_groups_suffice(where: str, chosen: Given) -> None:
    """Raise a DataError if whole groups leave a class without training samples, or a split empty."""
    short = [f"'{split}'" for split, found in chosen.items() if not any(found.values())]
    short += [f"'train' of class {name!r}" for name, paths in chosen["train"].items() if not paths]
    if short:
        raise DataError(
            f"{where}: groups must be enough to fill every split, got none left for {listed(short)}. Name "
            "smaller groups, or give the splits."
        )


def _examples(chosen: Given, classes: Iterable[str], source: Source) -> dict[str, tuple[Example, ...]]:
    weights, texts, groups = source.weights or {}, source.texts or {}, source.groups or {}
    return {
        split: tuple(
            Example(path, label, weights.get(path, 1.0), texts.get(path, ""), groups.get(path, ""))
            for label, name in enumerate(classes)
            for path in sorted(chosen.get(split, {}).get(name, ()))
        )
        for split in SPLITS
    }


def _fingerprint(
    kind: str,
    classes: tuple[str, ...],
    splits: Mapping[str, tuple[Example, ...]],
    reader: Reader,
    *,
    lenient: bool,
) -> str:
    def sample(example: Example) -> tuple[int, str]:
        try:
            size, content = reader.sample(example.path)
        except DataError:
            if not lenient:
                raise
            size, content = 0, b""
        return size, hashlib.sha256(content).hexdigest()

    digest = hashlib.sha256(repr((kind, classes)).encode())
    count = sum(map(len, splits.values()))
    with ThreadPoolExecutor(THREADS, "scan") as pool, steps.step("read images", count, "images") as told:
        for split in SPLITS:
            samples = told.each(pool.map(sample, splits[split]))
            for example, sampled in zip(splits[split], samples, strict=True):
                row: tuple[object, ...] = (split, example.label, example.path, *sampled)
                row = row if example.weight == 1 else (*row, example.weight)
                digest.update(repr((*row, "text", example.text) if example.text else row).encode())
    return digest.hexdigest()
