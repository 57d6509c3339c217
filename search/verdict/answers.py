"""A model's answers on the images of a split, and the share of each image in a metric.

Shapes: N images, C classes.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import RECALL

BINS = 15
"""Bins of the calibration error, as in `finetune.evaluation.scores`."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """One model's answers on one split."""

    labels: Ints
    """Class of each image, (N,)."""
    predicted: Ints
    """Most probable class, (N,)."""
    confidence: Floats
    """Its probability, (N,)."""
    of_label: Floats
    """Probability of the label's class, (N,)."""
    in_top5: NDArray[np.bool_]
    """Whether the label is among the five most probable classes, (N,)."""
    calibrated: Floats | None = None
    """The confidence behind the model's temperature, (N,); None if it is not known."""

    def with_calibration(self) -> "Answers":
        """Return the answers with the calibrated confidence in place of the other."""
        if self.calibrated is None:
            raise ValueError("answers without a calibrated confidence")
        return dataclasses.replace(self, confidence=self.calibrated)

    @property
    def right(self) -> Floats:
        """1 where the prediction is the label, else 0, (N,)."""
        return np.asarray(self.labels == self.predicted, dtype=np.float64)


def credits_of(answers: Answers, metric: str, classes: list[str]) -> Floats:
    """Return each image's share in a metric, (N,): their mean is the metric, their spread its uncertainty.

    For the mean of a value per image (accuracy, loss, top5) it is that value. For all others it is the
    jackknife's pseudo-value, N * whole - (N - 1) * (the metric without the image).

    Args:
        answers: the model's answers.
        metric: name without split, such as `accuracy` or `recall/cat`.
        classes: names of the C classes.
    """
    count = len(answers.labels)
    if metric == "accuracy":
        return answers.right
    if metric == "loss":
        return np.asarray(-np.log(np.maximum(answers.of_label, 1e-12)))
    if metric == "top5":
        return answers.in_top5.astype(np.float64)
    if metric == "ece":
        return _of_calibration(answers)
    if metric == "macro_f1":
        return _of_f1(answers, len(classes))
    if metric == "balanced_accuracy":
        sizes = np.bincount(answers.labels, minlength=len(classes))
        hits = np.bincount(answers.labels, weights=answers.right, minlength=len(classes))
        there = sizes > 0
        recalls = np.divide(hits, sizes, out=np.zeros(len(classes)), where=there)
        surplus = (answers.right - recalls[answers.labels]) * count / (there.sum() * sizes[answers.labels])
        return np.asarray(recalls[there].mean() + surplus)
    if metric.startswith(RECALL):
        mine = answers.labels == classes.index(metric.removeprefix(RECALL))
        recall = answers.right[mine].mean()
        return np.asarray(np.where(mine, recall + (answers.right - recall) * count / mine.sum(), recall))
    raise ValueError(f"no metric of single images: {metric}")


def _of_f1(answers: Answers, classes: int) -> Floats:
    """Pseudo-values of the mean F1 over the classes that occur or are answered."""
    count = len(answers.labels)
    hits = np.bincount(answers.labels, weights=answers.right, minlength=classes).astype(np.float64)
    labelled = np.bincount(answers.labels, minlength=classes).astype(np.float64)
    answered = np.bincount(answers.predicted, minlength=classes).astype(np.float64)

    def mean_f1(hits: Floats, labelled: Floats, answered: Floats) -> float:
        there = labelled + answered > 0
        return float((2 * hits[there] / (labelled + answered)[there]).mean())

    whole = mean_f1(hits, labelled, answered)
    # Images with the same label and answer have the same pseudo-value.
    pairs, where = np.unique(np.stack([answers.labels, answers.predicted]), axis=1, return_inverse=True)
    without = np.empty(pairs.shape[1])
    for i, (label, answer) in enumerate(pairs.T):
        less = np.eye(1, classes, label)[0], np.eye(1, classes, answer)[0]
        without[i] = mean_f1(hits - (label == answer) * less[0], labelled - less[0], answered - less[1])
    return np.asarray(count * whole - (count - 1) * without[where.ravel()])


def _of_calibration(answers: Answers) -> Floats:
    """Pseudo-values of the expected calibration error: leaving an image out changes the gap of one bin."""
    count = len(answers.labels)
    bins = _bins(answers.confidence)
    surplus = answers.right - answers.confidence
    gaps = np.bincount(bins, weights=surplus, minlength=BINS + 1)
    whole = np.abs(gaps).sum()
    own = gaps[bins]
    without = (whole - np.abs(own) + np.abs(own - surplus)) / max(1, count - 1)
    return np.asarray(whole - (count - 1) * without)


def _bins(confidence: Floats) -> Ints:
    # As in `finetune.evaluation.scores.bins`.
    return np.floor(confidence * BINS).astype(np.int64)


def reliability(answers: Answers) -> list[dict[str, float]]:
    """Return the bins of confidence that hold images: `images`, mean `confidence` and `accuracy` of each."""
    bins = _bins(answers.confidence)
    sizes = np.bincount(bins, minlength=BINS + 1)
    sure = np.bincount(bins, weights=answers.confidence, minlength=BINS + 1)
    right = np.bincount(bins, weights=answers.right, minlength=BINS + 1)
    return [
        {
            "images": int(sizes[b]),
            "confidence": float(sure[b] / sizes[b]),
            "accuracy": float(right[b] / sizes[b]),
        }
        for b in range(BINS + 1)
        if sizes[b]
    ]
