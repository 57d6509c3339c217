"""What may be wrong with the data: doubtful labels, copies across splits, shortcuts."""

from typing import Any

from search.report.html import Markup, details, join, table, tag
from search.report.material import Material
from search.report.pictures import picture
from search.report.section import Figure, Section

AT = ("analysis", "model", "suspects")
FOUND = ("study", "findings")
SHOWN = 12


def section(material: Material) -> Section | None:
    """Return doubtful labels and the findings of `check`; None without them, or in a page to be shared."""
    suspects = material.explained.get("suspects", [])
    if material.shareable or (not suspects and material.record.findings is None):
        return None
    parts: list[Markup | Figure] = [*_labels(material, suspects), *_findings(material)]
    return Section("suspects", "What may be wrong with the data", parts)


def _labels(material: Material, suspects: list[dict[str, Any]]) -> list[Markup]:
    """Return the most doubtful labels as pictures, and all that were kept as a list."""
    if not suspects:
        return []
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
        "Training images whose label surprises heads that did not see them, on features of the pretrained "
        "backbone, the most doubtful first. Look at each: some labels are wrong, some images are hard. check "
        "--suspects FILE lists all of them, and data.exclude: FILE leaves out those whose label is wrong."
    )
    return [
        tag("p", words),
        tag("div", *shown, class_="pictures"),
        details("The list", table(head, rows, caption="Doubtful labels")),
    ]


def _findings(material: Material) -> list[Markup]:
    """Return what `check` has found about copies and shortcuts."""
    found = material.record.findings
    if found is None:
        words = (
            "Copies across splits and shortcuts are looked for by the command check, which was not run here."
        )
        return [tag("p", words, class_="soft")]
    if not found:
        return [tag("p", "The command check has found no copies across splits and no shortcut.")]
    return [
        tag("p", "What the command check has found:"),
        tag("ul", *(_finding(material, place, one) for place, one in enumerate(found))),
    ]


def _finding(material: Material, place: int, one: dict[str, Any]) -> Markup:
    images = [material.quote(*FOUND, place, "images", i) for i in range(len(one["images"]))]
    listed = [details("Images", join(images, ", "))] if images else []
    return tag("li", material.quote(*FOUND, place, "text"), *listed)


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
