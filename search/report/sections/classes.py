"""Failures of the best model: recall of each class with its interval, confusions, calibration."""

from typing import Any

from search.report import figures, svg
from search.report.html import Markup, details, join, table, tag
from search.report.material import Material
from search.report.section import Figure, Section

AT = ("analysis", "model")
RECALLS = 60
"""Classes of which a recall is drawn: the worst."""
STILL = 20
"""Classes in the drawing without scripts."""


def section(material: Material) -> Section | None:
    """Return per-class recall, confusions and calibration; None where the best model was not exported."""
    model = material.model
    if model is None:
        return None
    parts: list[Any] = [tag("p", _whole(material))]
    if material.value(*AT, "recalls"):
        parts.append(_recalls(material))
        parts.append(_confusion(material))
    if model.get("calibration"):
        parts.append(_calibration(material))
    return Section("classes", "Where it fails", parts)


def _whole(material: Material) -> Markup:
    at = ("model", "metrics", material.split)
    names = (
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        ("macro_f1", "macro F1"),
    )
    told = join((join([title, " ", material.number(".4f", *at, name)]) for name, title in names), ", ")
    independent = (
        "These images chose nothing."
        if material.split == "test"
        else "These images also chose it, so expect less."
    )
    images = material.number("d", *at, "images")
    return join(["The best model on ", images, f" {material.split} images: ", told, f". {independent}"])


def _recalls(material: Material) -> Figure:
    rows = material.value(*AT, "recalls")
    at = (*AT, "recalls", 0)
    sentence = join(
        [
            "The class it finds least often is ",
            material.class_name(rows[0]["number"]),
            ": ",
            material.percent(1, *at, "recall"),
            " of ",
            material.number("d", *at, "images"),
            " images (",
            material.percent(0, "analysis", "rules", "confidence"),
            " interval ",
            material.percent(0, *at, "low"),
            " to ",
            material.percent(0, *at, "high"),
            ").",
        ]
    )
    cells = [
        [
            material.class_name(row["number"]),
            material.number(".4f", *AT, "recalls", i, "recall"),
            material.number(".3f", *AT, "recalls", i, "low"),
            material.number(".3f", *AT, "recalls", i, "high"),
            material.number("d", *AT, "recalls", i, "images"),
        ]
        for i, row in enumerate(rows)
    ]
    head = ["class", "recall", "low", "high", "images"]
    caption = join(
        [
            f"Recall of each class on {material.split} images, Wilson ",
            material.percent(0, "analysis", "rules", "confidence"),
            " intervals",
        ]
    )
    shown = [(material.classes[r["number"]], r["recall"], r["low"], r["high"]) for r in rows[:RECALLS]]
    return Figure(
        "recall",
        figures.recalls(shown),
        sentence,
        table(head, cells, caption=caption),
        svg.bars(
            [
                (material.class_name(row["number"], 24), cells[i][1], row["recall"], row["low"], row["high"])
                for i, row in enumerate(rows[:STILL])
            ]
        ),
        height=90 + 24 * len(shown),
    )


def _confusion(material: Material) -> Markup | Figure:
    wrong = material.value(*AT, "confusions")
    if not wrong:
        return tag("p", f"It makes no mistake on the {material.split} images.")
    cells = [
        [
            *(material.class_name(number) for number in one["numbers"]),
            material.number("d", *AT, "confusions", i, "images"),
            material.number(".3f", *AT, "confusions", i, "share"),
        ]
        for i, one in enumerate(wrong)
    ]
    head = ["is", "was taken for", "images", "share of its class"]
    numbers = table(head, cells, caption="Most frequent confusions")
    matrix = material.value(*AT, "matrix")
    sentence = join(
        [
            "Its most frequent mistake takes ",
            cells[0][0],
            " for ",
            cells[0][1],
            ": ",
            cells[0][2],
            " of ",
            material.number("d", *AT, "confusions", 0, "of"),
            " images. ",
            material.number("d", *AT, "wrong"),
            " of ",
            material.number("d", *AT, "images"),
            " answers are wrong.",
            " Rows are the true classes." if matrix else "",
        ]
    )
    if matrix is None:
        return tag("div", tag("p", sentence), details("The numbers", numbers))
    height = max(320, 120 + 30 * len(matrix))
    return Figure("confusion", figures.confusion(matrix, material.classes), sentence, numbers, height=height)


def _calibration(material: Material) -> Markup | Figure:
    at = ("model", "calibration")
    numbers = table(
        ["temperature", "calibration error before", "after"],
        [
            [
                material.number(".3f", *at, "temperature"),
                *(material.number(".4f", *at, material.split, f"ece_{when}") for when in ("before", "after")),
            ]
        ],
        caption="Temperature scaling",
    )
    sentence = _calibrated(material)
    curves = material.value(*AT, "reliability")
    if curves is None:
        return tag("div", tag("p", sentence), details("The numbers", numbers))
    more = [
        [when, *(material.number(f, *AT, "reliability", when, i, name) for name, f in _OF_A_BIN)]
        for when, bins in curves.items()
        for i in range(len(bins))
    ]
    bins = table(["temperature", "mean confidence", "accuracy", "images"], more, caption="Bins of the curve")
    figure = figures.reliability(list(curves.items()))
    return Figure("reliability", figure, sentence, Markup(numbers + bins), height=340)


_OF_A_BIN = (("confidence", ".3f"), ("accuracy", ".3f"), ("images", "d"))


def _calibrated(material: Material) -> Markup:
    """Return a sentence on what the temperature changed on the images of the split."""
    at, split = ("model", "calibration"), material.split
    temperature, told = material.value(*at, "temperature"), material.value(*at, split)
    sure = "about as sure as it is right" if 0.95 <= temperature <= 1.05 else "too sure"
    sure = "not sure enough" if temperature < 0.95 else sure
    fell = told["ece_after"] < told["ece_before"]
    return join(
        [
            f"The model is {sure}: its temperature, fitted on validation images, is ",
            material.number(".2f", *at, "temperature"),
            ". Dividing the logits by it, as the command predict does, ",
            f"{'lowers' if fell else 'does not lower'} the expected calibration error on {split} images: ",
            material.number(".4f", *at, split, "ece_before"),
            " before, ",
            material.number(".4f", *at, split, "ece_after"),
            " after.",
        ]
    )
