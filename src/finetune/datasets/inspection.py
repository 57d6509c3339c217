"""Inspect a data set for mistakes before anything is trained on it. Imports no torch.

`inspect` reads and decodes every image of a catalog once, in threads, and returns findings of three grades:
    error     training would stop, or its score would mean nothing
    warning   training works, but somebody should look
    note      good to know
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune import steps
from finetune.datasets.catalog import THREADS, Catalog, Example
from finetune.datasets.findings import GRADES, SHOWN, Finding, Grade, listed
from finetune.errors import DataError
from finetune.suspects import duplicates, looks, shortcuts
from finetune.suspects.looks import Look

IMBALANCE = 10.0
"""Ratio of the largest to the smallest class above which there is a warning."""
TINY_SIDE = 32
"""Side in pixels below which an image is tiny: ImageNet's backbones halve an image five times, so a smaller
one ends below one pixel."""
HUGE_PIXELS = 50_000_000
"""Pixels above which an image is huge: more than today's cameras produce, and a second of decoding."""
LEAKED_SHARE = 0.01
"""Largest share of a split's images that may also be in another split; a larger one is an error. The score of
the split can be wrong by at most the share."""
SHOWN_BESIDE = 3
"""Images that `lines` prints of a warning or a note; `check --json` has up to SHOWN."""


Vectors = Mapping[str, npt.NDArray[np.float32]]
"""Path of an image -> features of a backbone that has not been trained on it, (D,)."""
NONE: Vectors = MappingProxyType({})


@dataclass(frozen=True)
class _Seen:
    """The result of looking at one image."""

    split: str
    example: Example
    digest: str
    """SHA-256 of the file's bytes, or of the pixels of an image that is no file; empty if unreadable."""
    size: tuple[int, int]
    """Width, height in pixels, upright."""
    problem: str
    """Reason why the image cannot be read; empty if it can."""
    look: Look | None = None
    """Description by which it is compared with others; None if it cannot be read."""


def inspect(catalog: Catalog, vectors: Vectors = NONE) -> dict[str, Any]:
    """Return a report on the images of a catalog, as plain values that can be written as JSON.

    Its keys are `classes`, `images` (split -> class -> count), `made_splits`, `excluded` (number of images
    that `data.exclude` leaves out), `fingerprint`, `imbalance`
    (size of the largest class divided by the smallest, in training images), `sides` (shortest, median and
    longest side in pixels, None if no image can be read), `weights` (smallest and largest weight of a
    training image, None if all are 1) and `findings` (grade, check, text, images, count), errors first.

    Args:
        catalog: the images.
        vectors: features of images, by which crops of one another are found.
    """
    tasks = [(split, example) for split, examples in catalog.splits.items() for example in examples]
    with (
        ThreadPoolExecutor(THREADS, "inspect") as pool,
        steps.step("look at images", len(tasks), "images") as told,
    ):
        seen = list(told.each(pool.map(lambda task: _look(catalog, *task), tasks)))
    counts = catalog.counts()
    found = [
        *_unreadable(seen, catalog),
        *_copies(seen, catalog),
        # One frame does not tell clips apart.
        *([] if catalog.moving else _near_copies(seen, catalog, vectors)),
        *_shortcuts(seen, catalog),
        *_class_findings(counts),
        *_sizes(seen),
        *catalog.findings,
    ]
    sides = sorted(side for image in seen if not image.problem for side in image.size)
    return {
        "classes": list(catalog.classes),
        "images": counts,
        "made_splits": list(catalog.made),
        "excluded": len(catalog.excluded),
        "fingerprint": catalog.fingerprint,
        "imbalance": round(_imbalance(counts["train"]), 2),
        "sides": {"shortest": sides[0], "median": median(sides), "longest": sides[-1]} if sides else None,
        "weights": _weights(catalog),
        "findings": [asdict(finding) for finding in sorted(found, key=lambda f: GRADES.index(f.grade))],
    }


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return the report of `inspect` as lines for people."""
    text = []
    for split, counts in report["images"].items():
        made = " (taken from the training images by the seed)" if split in report["made_splits"] else ""
        per_class = listed([f"{name} {count}" for name, count in counts.items()])
        text.append(f"{split}: {sum(counts.values())} images{made}: {per_class}")
    if report["excluded"]:
        text.append(f"left out by data.exclude: {report['excluded']} images")
    sides = report["sides"]
    if sides:
        text.append(
            f"sides: {sides['shortest']} to {sides['longest']} pixels, median {sides['median']:g}; "
            f"largest class : smallest class = {report['imbalance']:g} : 1"
        )
    if report["weights"]:
        text.append("weights of training images: {smallest:g} to {largest:g}".format(**report["weights"]))
    for finding in report["findings"]:
        text.append(f"{finding['grade']}: {finding['text']}")
        told = finding["images"][: SHOWN if finding["grade"] == "error" else SHOWN_BESIDE]
        text += [f"  {image}" for image in told]
        if told and len(told) < finding["count"]:
            text.append(f"  ... and {finding['count'] - len(told)} more")
    return text


def _look(catalog: Catalog, split: str, example: Example) -> _Seen:
    """Decode and hash one image."""
    try:
        image = catalog.open(example)
        content = catalog.reader.content(example.path)
    except DataError as error:
        return _Seen(split, example, "", (0, 0), str(error))
    digest = hashlib.sha256(content).hexdigest()
    return _Seen(split, example, digest, image.size, "", looks.look(image, content))


def _unreadable(seen: Sequence[_Seen], catalog: Catalog) -> Iterator[Finding]:
    broken = [image.problem for image in seen if image.problem]
    if broken:
        yield _finding(
            "error",
            "unreadable",
            f"every image must be readable, got {len(broken)} that are not. "
            "Replace or remove them, or leave them out with `data.on_error: skip`.",
            broken,
        )
    if catalog.skipped:
        yield _finding(
            "warning",
            "skipped",
            f"broken images are left out, got {len(catalog.skipped)}. Replace them if you can.",
            [image.reason for image in catalog.skipped],
        )


def _copies(seen: Sequence[_Seen], catalog: Catalog) -> Iterator[Finding]:
    """Yield findings on images with equal bytes: in two splits, under two labels, or twice in a class."""
    by_content: dict[str, list[_Seen]] = defaultdict(list)
    for image in seen:
        if not image.problem:
            by_content[image.digest].append(image)
    copies = [group for group in by_content.values() if len(group) > 1]
    leaks = [group for group in copies if len({image.split for image in group}) > 1]
    if leaks:
        shares = _leaked_shares(leaks, catalog)
        told = ", ".join(f"{share:.1%} of {split}" for split, share in shares.items())
        yield _finding(
            "error" if max(shares.values()) > LEAKED_SHARE else "warning",
            "in_two_splits",
            f"an image must be in one split, got {len(leaks)} in two or more, by the bytes of the file "
            f"({told}). Remove the copies: a score on them says nothing about new images.",
            [_places(group) for group in leaks],
        )
    contradictory = [group for group in copies if len({image.example.label for image in group}) > 1]
    if contradictory:
        yield _finding(
            "warning",
            "two_labels",
            f"an image must have one label, got {len(contradictory)} under two or more. Keep the right one.",
            [_places(group) for group in contradictory],
        )
    twice = [group for group in copies if len({(i.split, i.example.label) for i in group}) == 1]
    if twice:
        yield _finding(
            "note",
            "twice",
            f"images count as often as they are there, got {len(twice)} more than once in a split and "
            "class. Remove the copies unless they are meant.",
            [_places(group) for group in twice],
        )


def _near_copies(seen: Sequence[_Seen], catalog: Catalog, vectors: Vectors = NONE) -> Iterator[Finding]:
    """Yield findings on images that differ by little more than compression, size, brightness or a mirror.

    With their features, crops of one another are found, too.
    """
    readable = [image for image in seen if image.look is not None]
    features = None
    if vectors:
        none = np.zeros_like(next(iter(vectors.values())))
        features = np.stack([vectors.get(image.example.path, none) for image in readable])
    pairs = [
        (readable[pair.first], readable[pair.second])
        for pair in duplicates.near([image.look for image in readable if image.look is not None], features)
    ]
    pairs = [(one, other) for one, other in pairs if one.digest != other.digest]  # `_copies` has those
    leaks = [pair for pair in pairs if pair[0].split != pair[1].split]
    if leaks:
        told = ", ".join(f"{share:.1%} of {split}" for split, share in _leaked_shares(leaks, catalog).items())
        yield _finding(
            "warning",
            "near_copies",
            f"images of two splits should differ, got {len(leaks)} pairs that look nearly the same ({told}). "
            "Look at them: a score on copies says nothing about new images.",
            [_places(pair) for pair in leaks],
        )
    contradictory = [pair for pair in pairs if pair[0].example.label != pair[1].example.label]
    if contradictory:
        yield _finding(
            "warning",
            "near_labels",
            f"images that look nearly the same should have one label, got {len(contradictory)} pairs with "
            "two. Look at them: one of the labels may be wrong.",
            [_places(pair) for pair in contradictory],
        )
    twice = [
        (one, other)
        for one, other in pairs
        if (one.split, one.example.label) == (other.split, other.example.label)
    ]
    if twice:
        yield _finding(
            "note",
            "nearly_twice",
            f"images should differ, got {len(twice)} pairs in a split and class that look nearly the same. "
            "They count twice.",
            [_places(pair) for pair in twice],
        )


def _shortcuts(seen: Sequence[_Seen], catalog: Catalog) -> Iterator[Finding]:
    """Yield a finding for each thing beside the object that tells the class of training images."""
    train = [image for image in seen if image.split == "train" and image.look is not None]
    labels, groups = [image.example.label for image in train], [image.example.group for image in train]
    looked = [image.look for image in train if image.look is not None]
    for found in shortcuts.find(looked, labels, groups if any(groups) else None):
        names = listed([repr(catalog.classes[label]) for label in found.classes])
        of = f", {names} among them at {shortcuts.SURE:.0%} or more" if names else ""
        text = (
            f"{found.words} should not tell the class, got {found.accuracy:.0%} of the training images right "
            f"by them alone, averaged over classes, where guessing has {found.chance:.0%}{of}. "
            "Look for what the images of a class have in common beside the object: a model will learn it."
        )
        yield Finding("warning", f"shortcut_{found.name}", text, count=len(found.classes))


def _leaked_shares(leaks: Iterable[Sequence[_Seen]], catalog: Catalog) -> dict[str, float]:
    """Return the share of images of `val` and of `test` that are also in another split, if above 0."""
    leaked: dict[str, set[str]] = defaultdict(set)
    for group in leaks:
        for image in group:
            leaked[image.split].add(image.example.path)
    shares = {split: len(leaked[split]) / len(catalog.splits[split] or (0,)) for split in ("val", "test")}
    return {split: share for split, share in shares.items() if share}


def _places(group: Sequence[_Seen]) -> str:
    return " = ".join(f"{image.example.path} ({image.split})" for image in group)


def _class_findings(counts: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Yield findings on missing, unequal, single-image and similarly named classes."""
    for split in ("val", "test"):
        missing = [name for name, count in counts[split].items() if not count]
        if missing and len(missing) < len(counts[split]):
            rule = f"'{split}' should hold every class, got none of"
            fix = "Its score says nothing about them: add images."
            yield _of_classes("missing_class", rule, missing, fix)
    ratio = _imbalance(counts["train"])
    if ratio > IMBALANCE:
        ordered = sorted(counts["train"], key=counts["train"].__getitem__)
        text = (
            f"classes should be of similar size, got {ratio:.0f} : 1 ({ordered[-1]} : {ordered[0]}). "
            "Choose `study.metric: val/balanced_accuracy`, so that small classes count."
        )
        yield Finding("warning", "imbalance", text, count=len(ordered))
    totals = {name: sum(split[name] for split in counts.values()) for name in counts["train"]}
    single = [name for name, total in totals.items() if total == 1]
    if single:
        rule = "a class needs an image to train on and one to validate on, got one for"
        fix = "Add images, or leave the class out with data.classes."
        yield _of_classes("single_image", rule, single, fix)
    same: dict[str, list[str]] = defaultdict(list)
    for name in totals:
        same["".join(name.split()).casefold()].append(name)
    similar = [" and ".join(map(repr, names)) for names in same.values() if len(names) > 1]
    if similar:
        rule = "names of classes should differ by more than case and space, got"
        yield _of_classes("similar_names", rule, similar, "Merge them if they are one class.")


def _of_classes(check: str, rule: str, names: Sequence[str], fix: str) -> Finding:
    return Finding("warning", check, f"{rule} {listed(names)}. {fix}", count=len(names))


def _sizes(seen: Sequence[_Seen]) -> Iterator[Finding]:
    """Yield findings on tiny and huge images."""

    def told(image: _Seen) -> str:
        return f"{image.example.path}: {image.size[0]} x {image.size[1]}"

    readable = [image for image in seen if not image.problem]
    tiny = [told(image) for image in readable if min(image.size) < TINY_SIDE]
    if tiny:
        rule = f"sides should be {TINY_SIDE} pixels or more, got {len(tiny)} images with less"
        yield _finding("note", "tiny", f"{rule}. They are enlarged: look whether they show enough.", tiny)
    huge = [told(image) for image in readable if image.size[0] * image.size[1] > HUGE_PIXELS]
    if huge:
        rule = f"images should have {HUGE_PIXELS // 10**6} megapixels or less, got {len(huge)} with more"
        yield _finding("warning", "huge", f"{rule}. Shrink them once: each is decoded again and again.", huge)


def _weights(catalog: Catalog) -> dict[str, float] | None:
    weights = {example.weight for example in catalog.splits["train"]}
    return None if weights <= {1.0} else {"smallest": min(weights), "largest": max(weights)}


def _finding(grade: Grade, check: str, text: str, images: Sequence[str]) -> Finding:
    return Finding(grade, check, text, tuple(images[:SHOWN]), len(images))


def _imbalance(counts: Mapping[str, int]) -> float:
    return max(counts.values()) / min(counts.values())
