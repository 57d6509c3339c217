"""Labels of training images that may be wrong."""

from typing import Any

from search.report.html import Markup, number, table, tag
from search.report.material import Material
from search.report.pictures import picture
from search.report.section import Figure, Section

SHOWN = 12


def section(material: Material) -> Section | None:
    """Return the most doubtful labels as pictures; None where there are none, or the page is to be shared."""
    suspects = material.explained.get("suspects", [])
    if not suspects:
        return None
    shown = [_suspect(one) for one in suspects[:SHOWN]]
    rows = [
        [
            one["path"],
            one["label"],
            number(one["given"], ".3f"),
            one["likely"],
            number(one["probability"], ".3f"),
        ]
        for one in suspects
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
        tag("details", tag("summary", "The list"), table(head, rows, caption="Doubtful labels")),
    ]
    return Section("suspects", "Labels to look at", parts)


def _suspect(one: dict[str, Any]) -> Markup:
    label, likely = str(one["label"]), str(one["likely"])
    told = tag(
        "figcaption",
        tag("b", f"{likely}?"),
        Markup(f" {number(one['probability'], '.2f')}"),
        Markup("<br>"),
        f"labelled {label}",
    )
    shown = picture(str(one["picture"]), f"labelled {label}, looks like {likely}")
    return tag("figure", shown, told, title=str(one["path"]))
