"""Where the best model fails, worked out from its answers: recalls, confusions, calibration, mistakes.

Shapes: N images, C classes.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from search.record.records import StudyRecord
from search.verdict.answers import Answers, reliability
from search.verdict.words import CONFIDENCE
from search.views.analysis import kept

MATRIX = 40
"""Classes up to which the confusion matrix is kept."""
CONFUSIONS = 15
"""Confusions that are listed."""
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Standard errors of half an interval."""


def of(study: StudyRecord, model: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what the answers of the best model say; None where it was not exported."""
    if model is None:
        return None
    found: dict[str, Any] = {"split": kept.split_of(model)}
    answers = kept.answers(study, model)
    if answers is not None:
        names = [str(name) for name in model["classes"]]
        found |= {"recalls": recalls(answers, names), **_confusions(answers, names)}
        if answers.calibrated is not None:
            after = reliability(answers.with_calibration())
            found["reliability"] = {"before": reliability(answers), "after": after}
    return found | _pictured(study)


def recalls(answers: Answers, names: list[str]) -> list[dict[str, Any]]:
    """Return the recall of each class that has images, with Wilson's interval, the worst first."""
    sizes = np.bincount(answers.labels, minlength=len(names))
    hits = np.bincount(answers.labels, weights=answers.right, minlength=len(names))
    rows = []
    for i in np.flatnonzero(sizes):
        low, high = wilson(float(hits[i]), int(sizes[i]))
        recall = float(hits[i] / sizes[i])
        rows.append(
            {"number": int(i), "class": names[i], "recall": recall, "low": low, "high": high}
            | {"images": int(sizes[i])}
        )
    return sorted(rows, key=lambda row: float(row["recall"]))


def _confusions(answers: Answers, names: list[str]) -> dict[str, Any]:
    """Return the number of wrong answers, the most frequent confusions, and the matrix if C <= MATRIX."""
    count = len(names)
    pairs, many = np.unique(np.stack([answers.labels, answers.predicted]), axis=1, return_counts=True)
    wrong = [(int(a), int(b), int(n)) for (a, b), n in zip(pairs.T, many, strict=True) if a != b]
    wrong.sort(key=lambda one: -one[2])
    sizes = np.bincount(answers.labels, minlength=count)
    told: dict[str, Any] = {
        "images": len(answers.labels),
        "wrong": sum(one[2] for one in wrong),
        "confusions": [
            {"label": names[a], "predicted": names[b], "numbers": [a, b], "images": n}
            | {"of": int(sizes[a]), "share": n / int(sizes[a])}
            for a, b, n in wrong[:CONFUSIONS]
        ],
    }
    if count <= MATRIX:
        matrix = np.zeros((count, count), dtype=int)
        matrix[pairs[0], pairs[1]] = many
        told["matrix"] = matrix.tolist()
    return told


def _pictured(study: StudyRecord) -> dict[str, Any]:
    """Return mistakes with their neighbours, and doubtful labels, without the pictures."""
    why = kept.explained(study)
    near = {one["image"]: one["neighbours"] for one in why.get("mistakes", [])}
    mistakes = [
        _without_pictures(one)
        | {"neighbours": [_without_pictures(found) for found in near.get(one.get("image"), [])]}
        for one in kept.mistakes(study)
    ]
    return {"mistakes": mistakes, "suspects": [_without_pictures(one) for one in why.get("suspects", [])]}


def _without_pictures(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name not in ("picture", "map")}


def wilson(hits: float, count: int) -> tuple[float, float]:
    """Return Wilson's interval of a share, at the confidence of the verdict's intervals."""
    share = hits / count
    centre = (share + _Z * _Z / (2 * count)) / (1 + _Z * _Z / count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z * _Z / (4 * count * count)) / (1 + _Z * _Z / count)
    return max(0.0, centre - half), min(1.0, centre + half)
