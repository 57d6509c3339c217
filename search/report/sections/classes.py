"""Failures of the best model: recall of each class with its interval, confusions, calibration."""

import math
from typing import Any

import numpy as np

from search.report import figures, svg
from search.report.html import Markup, details, number, table, tag
from search.report.material import Material
from search.report.section import Figure, Section
from search.verdict.answers import Answers, reliability

MATRIX = 40
"""Classes up to which the confusion matrix is drawn."""
CONFUSIONS = 15
"""Confusions that the table lists."""
RECALLS = 60
"""Classes of which a recall is drawn: the worst."""


def section(material: Material) -> Section | None:
    """Return per-class recall, confusions and calibration; None where the best model was not exported."""
    model = material.model
    if model is None:
        return None
    parts: list[Any] = [tag("p", _whole(material, model))]
    answers = material.answers
    if answers is not None:
        parts.append(_recalls(material, answers))
        parts.append(_confusion(material, answers))
    if model.get("calibration"):
        parts.append(_calibration(material, model, answers))
    return Section("classes", "Where it fails", parts)


def _whole(material: Material, model: dict[str, Any]) -> Markup:
    scores = model["metrics"][material.split]
    told = []
    for name, title in (
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        ("macro_f1", "macro F1"),
    ):
        told.append(
            Markup(f"{title} {number(scores.get(name), '.4f', 'model', 'metrics', material.split, name)}")
        )
    images = number(scores["images"], "d", "model", "metrics", material.split, "images")
    independent = (
        "These images chose nothing."
        if material.split == "test"
        else "These images also chose it, so expect less."
    )
    return Markup(f"The best model on {images} {material.split} images: {', '.join(told)}. {independent}")


def _recalls(material: Material, answers: Answers) -> Figure:
    sizes = np.bincount(answers.labels, minlength=len(material.names))
    hits = np.bincount(answers.labels, weights=answers.right, minlength=len(material.names))
    rows = []
    for i in np.flatnonzero(sizes):
        low, high = wilson(float(hits[i]), int(sizes[i]))
        rows.append((int(i), float(hits[i] / sizes[i]), low, high, int(sizes[i])))
    rows.sort(key=lambda row: row[1])
    worst, names = rows[0], material.classes
    sentence = (
        f"The class it finds least often is {names[worst[0]]}: {100 * worst[1]:.1f} % of {worst[4]} images "
        f"(95 % interval {100 * worst[2]:.0f} to {100 * worst[3]:.0f})."
    )
    told = [
        [
            names[i],
            number(recall, ".4f", "model", "metrics", material.split, f"recall/{material.names[i]}")
            if not material.shareable
            else number(recall, ".4f"),
            number(low, ".3f"),
            number(high, ".3f"),
            number(size, "d"),
        ]
        for i, recall, low, high, size in rows
    ]
    head = ["class", "recall", "low", "high", "images"]
    shown = rows[:RECALLS]
    return Figure(
        "recall",
        figures.recalls([(names[i], *rest) for i, *rest in shown]),
        sentence,
        table(head, told, caption=f"Recall of each class on {material.split} images, Wilson 95 % intervals"),
        svg.bars([(names[i], recall, low, high) for i, recall, low, high, _ in shown[:20]]),
        height=90 + 24 * len(shown),
    )


def _confusion(material: Material, answers: Answers) -> Markup | Figure:
    names, count = material.classes, len(material.names)
    pairs, many = np.unique(np.stack([answers.labels, answers.predicted]), axis=1, return_counts=True)
    wrong = [(int(a), int(b), int(n)) for (a, b), n in zip(pairs.T, many, strict=True) if a != b]
    wrong.sort(key=lambda one: -one[2])
    sizes = np.bincount(answers.labels, minlength=count)
    rows = [
        [names[a], names[b], number(n, "d"), number(n / sizes[a], ".3f")] for a, b, n in wrong[:CONFUSIONS]
    ]
    numbers = table(
        ["is", "was taken for", "images", "share of its class"], rows, caption="Most frequent confusions"
    )
    if not wrong:
        return tag("p", f"It makes no mistake on the {material.split} images.")
    a, b, n = wrong[0]
    sentence = (
        f"Its most frequent mistake takes {names[a]} for {names[b]}: {n} of {sizes[a]} images. "
        f"{sum(one[2] for one in wrong)} of {len(answers.labels)} answers are wrong."
        f"{'' if count > MATRIX else ' Rows are the true classes.'}"
    )
    if count > MATRIX:
        return tag("div", tag("p", sentence), details("The numbers", numbers))
    matrix = np.zeros((count, count), dtype=int)
    matrix[pairs[0], pairs[1]] = many
    return Figure(
        "confusion", figures.confusion(matrix, names), sentence, numbers, height=max(320, 120 + 30 * count)
    )


def _calibration(material: Material, model: dict[str, Any], answers: Answers | None) -> Markup | Figure:
    facts, split = model["calibration"], material.split
    told = facts[split]
    before = number(told["ece_before"], ".4f", "model", "calibration", split, "ece_before")
    after = number(told["ece_after"], ".4f", "model", "calibration", split, "ece_after")
    warmth = number(facts["temperature"], ".3f", "model", "calibration", "temperature")
    numbers = table(
        ["temperature", "calibration error before", "after"],
        [[warmth, before, after]],
        caption="Temperature scaling",
    )
    sentence = _calibrated(facts["temperature"], told, split)
    if answers is None or answers.calibrated is None:
        return tag("div", tag("p", sentence), details("The numbers", numbers))
    curves = (("before", reliability(answers)), ("after", reliability(answers.with_calibration())))
    more = [
        [when, number(b["confidence"], ".3f"), number(b["accuracy"], ".3f"), number(b["images"], "d")]
        for when, bins in curves
        for b in bins
    ]
    bins = table(["temperature", "mean confidence", "accuracy", "images"], more, caption="Bins of the curve")
    return Figure("reliability", figures.reliability(curves), sentence, Markup(numbers + bins), height=340)


def _calibrated(temperature: float, told: dict[str, float], split: str) -> str:
    """Return a sentence on what the temperature changed on the images of a split."""
    sure = "about as sure as it is right" if 0.95 <= temperature <= 1.05 else "too sure"
    sure = "not sure enough" if temperature < 0.95 else sure
    fell = told["ece_after"] < told["ece_before"]
    return (
        f"The model is {sure}: its temperature, fitted on validation images, is {temperature:.2f}. Dividing "
        f"the logits by it, as the command predict does, {'lowers' if fell else 'does not lower'} the "
        f"expected calibration error on {split} images: {told['ece_before']:.4f} before, "
        f"{told['ece_after']:.4f} after."
    )


def wilson(hits: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z = 1.959964
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)
