"""Which source classes carry the best model's decisions."""

from typing import Any

from search.report.html import join, table, tag
from search.report.material import Material
from search.report.section import Section

WORDS = {
    "mixture": (
        "The row of each class began as a mixture of rows of the source: these are its largest parts. "
        "`explained` is how much of the trained row the mixture still makes up."
    ),
    "contribution": (
        "The head reads the source's answers beside the features: these answers speak most for each class, "
        "as shares of its logit. `explained` is what all answers together make up."
    ),
    "projection": (
        "The head does not read the source's answers. Its logits were projected on the source's logits: "
        "these source classes stand for each class, and `explained` is the share of its logit that they "
        "explain on images that did not choose them."
    ),
}
SHOWN = 60
"""Classes that the table lists."""


def section(material: Material) -> Section | None:
    """Return what each class leans on; None where it is not known, or the page is to be shared."""
    found = None if material.shareable else (material.model or {}).get("source_classes")
    if not found:
        return None
    rows = [
        _row(material, found["classes"][name], number) for number, name in enumerate(material.names[:SHOWN])
    ]
    head = ["class", "leans on", "explained"]
    told = WORDS[found["how"]].replace("`", "")
    if found.get("answers") is not None and found["how"] == "projection":
        told = told.replace("does not read the source's answers", "hardly heeds the source's answers")
    words = tag("p", told)
    return Section("sources", "What it leans on", [words, table(head, rows, caption="Source classes")])


def _row(material: Material, told: dict[str, Any], number: int) -> list[object]:
    place = ("model", "source_classes", "classes", material.names[number])
    leans = [
        join(
            [
                material.named(*place, "leans_on", source),
                " (",
                material.number(".2f", *place, "leans_on", source),
                ")",
            ]
        )
        for source in told["leans_on"]
    ]
    explained = material.number(".2f", *place, "explained")
    return [material.class_name(number), join(leans, ", ") if leans else "–", explained]
