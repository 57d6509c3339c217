"""Labels of training images that may be wrong."""

from typing import Any

from search.report.html import Markup, details, table, tag
from search.report.material import Material
from search.report.pictures import picture
from search.report.section import Figure, Section

AT = ("analysis", "model", "suspects")
SHOWN = 12


def section(material: Material) -> Section | None:
    """Return the most doubtful labels as pictures; None where there are none, or the page is to be shared."""
    suspects = material.explained.get("suspects", [])
    if not suspects:
        return None
    shown = [_suspect(material, place, one) for place, one in enumerate(suspects[:SHOWN])]
    rows = [
        [
            material.quote(*AT, i, "path"),
            material.quote(*AT, i, "label"),
            material.number(".3f", *AT, i, "given"),
            material.quote(*AT, i, "likely"),
            material.number(".3f", *AT, i, "probability"),
        ]
        for i in range(len(suspects))
    ]
    head = ["image", "label", "its probability", "looks like", "probability"]
    words = (
        "Training images whose label surprises heads that did not see them, the most doubtful first. Look at "
        "each: some labels are wrong, some images are hard. check --suspects FILE lists all of them, and "
        "data.exclude: FILE leaves out those whose label is wrong."
    )
    parts: list[Markup | Figure] = [
        tag("p", words),
        tag("div", *shown, class_="pictures"),
        details("The list", table(head, rows, caption="Doubtful labels")),
    ]
    return Section("suspects", "Labels to look at", parts)


def _suspect(material: Material, place: int, one: dict[str, Any]) -> Markup:
    told = tag(
        "figcaption",
        tag("b", material.quote(*AT, place, "likely"), "?"),
        " ",
        material.number(".2f", *AT, place, "probability"),
        Markup("<br>"),
        "labelled ",
        material.quote(*AT, place, "label"),
    )
    shown = picture(str(one["picture"]), f"labelled {one['label']}, looks like {one['likely']}")
    return tag("figure", shown, told, title=str(one["path"]))
