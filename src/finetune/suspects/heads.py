"""Out-of-fold answers of a kernel ridge classifier on numbers that describe images.

Shapes: N images, D numbers of each, C classes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

PENALTIES = tuple(float(10.0**power) for power in range(-3, 3))


def stratified(labels: Labels, folds: int, seed: int, groups: Sequence[str] | None = None) -> Labels:
    """Return the fold of each image, (N,), from 0; each class is spread evenly over the folds.

    Args:
        labels: (N,) from 0.
        folds: the number of folds, at most the number of images of the largest class.
        seed: seed of the draw.
        groups: name of the group of each image, which comes into one fold whole; an image whose name is empty
            is alone in one. With fewer groups than folds, some folds are empty. None, or a single group:
            images are spread one by one.
    """
    if groups is not None and len(set(groups)) > 1:
        return _grouped(labels, folds, seed, groups)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % folds
    return fold


def _grouped(labels: Labels, folds: int, seed: int, groups: Sequence[str]) -> Labels:
    """Return the fold of each image where groups stay together."""
    from sklearn.model_selection import StratifiedGroupKFold  # a second, which few data sets need

    alone = [("group", name) if name else ("image", str(place)) for place, name in enumerate(groups)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(alone))}
    divided = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.zeros(len(labels), dtype=np.int64)
    parts = divided.split(np.zeros(len(labels)), labels, [numbers[name] for name in alone])
    for number, (_, held) in enumerate(parts):
        fold[held] = number
    return fold


def out_of_fold(x: Floats, labels: Labels, folds: Labels) -> Floats:
    """Return for each image the outputs of a head that was solved without the image's fold, (N, C).

    The head is ridge regression on +1 and -1 with the kernel exp(-|a - b|^2 / m), m the median of
    |a - b|^2. All classes weigh the same. The penalty is the one with the best balanced accuracy.

    Args:
        x: (N, D); its columns are standardised here.
        labels: (N,) from 0.
        folds: (N,), see `stratified`.
    """
    classes = int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=classes)
    root = np.sqrt(len(labels) / (np.count_nonzero(sizes) * sizes[labels]))[:, None]
    values, vectors = np.linalg.eigh(_kernel(x) * root * root.T)
    y = root * np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    best, best_score = np.zeros_like(y), -1.0
    for penalty in PENALTIES:
        # The residuals without a fold follow from those with it: (G_ff)^-1 (G y)_f, where G is the inverse of
        # the penalised kernel. So one decomposition serves all folds and penalties.
        inverse = (vectors / (np.maximum(values, 0.0) + penalty)) @ vectors.T
        solved = inverse @ y
        outputs = y.copy()
        for fold in np.unique(folds):
            held = np.flatnonzero(folds == fold)
            outputs[held] -= np.linalg.solve(inverse[np.ix_(held, held)], solved[held])
        score = balanced_accuracy(outputs.argmax(axis=1), labels)
        if score > best_score:
            best, best_score = outputs, score
    return np.asarray(best / root)


def balanced_accuracy(answers: Labels, labels: Labels) -> float:
    """Return the mean recall over the classes that occur."""
    return float(np.mean([(answers[labels == label] == label).mean() for label in np.unique(labels)]))


def _kernel(x: Floats) -> Floats:
    deviation = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(deviation > 1e-9, deviation, np.inf)
    norms = np.square(z).sum(axis=1)
    squares = np.maximum(norms[:, None] + norms - 2 * z @ z.T, 0.0)
    middle = float(np.median(squares))
    return np.asarray(np.exp(-squares / middle) if middle > 0 else np.ones_like(squares))
