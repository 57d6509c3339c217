"""Find shortcuts: something beside the object that tells the class, such as a border or a camera.

A model learns a shortcut as readily as the object, and the score does not show it as long as the validation
images have it too. Each test asks how well the class can be told from one thing that should not tell it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.suspects import heads
from finetune.suspects.heads import Labels
from finetune.suspects.looks import Look

FOLDS = 5
SEED = 0
MOST_IMAGES = 800
"""Images that are used at most, drawn from each class alike: the cost grows with the cube of the number."""
LEAST_IMAGES = 10
"""Images of a class below which nothing is said about it."""
CAMERAS = 30
"""The most frequent cameras, each of which counts as one; all others are one together."""
SURE = 0.9
"""Recall and precision from which a single class counts as told."""


@dataclass(frozen=True)
class Test:
    """One thing that should not tell the class."""

    numbers: Callable[[Sequence[Look]], npt.NDArray[Any]]
    """Returns (N, D) numbers for N images."""
    limit: float
    """Share of the way from chance to certainty from which there is a warning."""
    words: str


@dataclass(frozen=True)
class Shortcut:
    """How well a test tells the classes."""

    name: str
    accuracy: float
    """Balanced accuracy, out of fold."""
    chance: float
    classes: tuple[int, ...]
    """Labels of single classes that are told with recall and precision of at least SURE."""
    words: str

    @property
    def share(self) -> float:
        """The way from chance (0) to certainty (1)."""
        return (self.accuracy - self.chance) / (1 - self.chance)


def _cameras(looks: Sequence[Look]) -> npt.NDArray[Any]:
    names, counts = np.unique([look.camera for look in looks], return_counts=True)
    known = list(names[np.argsort(-counts, kind="stable")][:CAMERAS])
    return np.array([[look.camera == name for name in known] for look in looks])


TESTS: Mapping[str, Test] = MappingProxyType(
    {
        # Colours of the whole image may tell the class rightly: a dandelion is yellow. On flowers5 and
        # trashnet_lt they come .23 to .50 of the way, planted borders and watermarks above .9.
        "border": Test(lambda looks: np.stack([look.border for look in looks]), 0.7, "the outermost pixels"),
        "thumbnail": Test(
            lambda looks: np.stack([look.thumbnail for look in looks]), 0.8, "a thumbnail of 8 x 8 pixels"
        ),
        "colour": Test(lambda looks: np.stack([look.colour for look in looks]), 0.8, "the mean colours"),
        "file": Test(
            lambda looks: np.stack([look.file for look in looks]), 0.4, "the size and shape of the file"
        ),
        "camera": Test(_cameras, 0.4, "the camera or program in the EXIF data"),
    }
)


def find(
    looks: Sequence[Look],
    labels: Sequence[int],
    groups: Sequence[str] | None = None,
) -> list[Shortcut]:
    """Return the tests that tell the classes, or single classes, too well.

    Args:
        looks: N descriptions of images.
        labels: the class of each, from 0.
        groups: name of the group of each image, empty if it has none. A class is told from groups that were
            not seen: what the images of one group have in common tells nothing about other ones. None: no
            groups.
    """
    tests = measured(looks, labels, groups)
    return [one for one in tests if one.classes or one.share > TESTS[one.name].limit]


def measured(
    looks: Sequence[Look],
    labels: Sequence[int],
    groups: Sequence[str] | None = None,
) -> list[Shortcut]:
    """Return how well each test tells the classes; the arguments are those of `find`.

    There is nothing for a test whose numbers are the same in all images.
    """
    chosen = _chosen(np.asarray(labels, dtype=np.int64))
    said = np.asarray(labels, dtype=np.int64)[chosen]
    present = np.unique(said)
    if len(present) < 2:
        return []
    used = [looks[place] for place in chosen]
    compact = np.searchsorted(present, said)
    named = None if groups is None else [groups[place] for place in chosen]
    folds = heads.stratified(compact, FOLDS, SEED, named)
    found = []
    for name, test in TESTS.items():
        numbers = test.numbers(used).astype(np.float64)
        if not (numbers.std(axis=0) > 1e-9).any():
            continue
        answers = heads.out_of_fold(numbers, compact, folds).argmax(axis=1)
        told = (int(present[label]) for label in range(len(present)) if _is_told(answers, compact, label))
        accuracy = heads.balanced_accuracy(answers, compact)
        found.append(Shortcut(name, accuracy, 1 / len(present), tuple(told), test.words))
    return found


def _chosen(labels: Labels) -> Labels:
    """Return the places of the images that are used, in order: of each class alike, none of tiny classes."""
    classes, counts = np.unique(labels, return_counts=True)
    classes = classes[counts >= LEAST_IMAGES]
    most = max(LEAST_IMAGES, MOST_IMAGES // max(1, len(classes)))
    draws = np.random.default_rng(SEED)
    parts = [draws.permutation(np.flatnonzero(labels == label))[:most] for label in classes]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)


def _is_told(answers: Labels, labels: Labels, label: int) -> bool:
    right = float(((answers == label) & (labels == label)).sum())
    return bool(right >= SURE * (labels == label).sum() and right >= SURE * max(1, (answers == label).sum()))
