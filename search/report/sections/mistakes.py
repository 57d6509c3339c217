"""The most confident mistakes, as pictures: what spoke for the answer, and the nearest training images."""

from typing import Any

from search.report.html import Markup, number, tag
from search.report.material import Material
from search.report.pictures import picture
from search.report.section import Section

SHOWN = 18


def section(material: Material) -> Section | None:
    """Return the pictures; None where there are none, or the page is to be shared."""
    mistakes = material.mistakes[:SHOWN]
    if not mistakes:
        return None
    explained = {one["image"]: one for one in material.explained.get("mistakes", [])}
    rows = [_mistake(one, explained.get(one.get("image"))) for one in mistakes]
    words = (
        f"The {len(rows)} wrong answers on {mistakes[0]['split']} images that the model is surest of. "
        "Look for labels that are wrong, and for what the pictures have in common."
    )
    if explained:
        words += (
            " Beside each: the same image, bright where it spoke for the wrong answer. Below: the training "
            "images that look most alike to the model; neighbours of the wrong class explain many mistakes."
        )
    return Section("mistakes", "Worst mistakes", [tag("p", words), tag("div", *rows, class_="pictures")])


def _mistake(one: dict[str, Any], why: dict[str, Any] | None) -> Markup:
    label, predicted = str(one["label"]), str(one["predicted"])
    shown = [picture(str(one["picture"]), f"{label}, taken for {predicted}")]
    near: list[Markup] = []
    if why is not None:
        shown.append(picture(str(why["map"]), f"the same, bright where it spoke for {predicted}"))
        near = [_neighbour(found) for found in why["neighbours"]]
    told = tag(
        "figcaption",
        tag("b", predicted),
        Markup(f" {number(one['probability'], '.2f')}"),
        Markup("<br>"),
        f"is {label}",
    )
    beside = tag("div", *near, class_="near") if near else Markup("")
    return tag("figure", *shown, told, beside, title=str(one["path"]), class_="why" if why else None)


def _neighbour(found: dict[str, Any]) -> Markup:
    label = str(found["label"])
    shown = picture(str(found["picture"]), f"a training image of {label}")
    return tag("span", shown, tag("small", label), title=f"{found['path']}, cosine {found['cosine']:.2f}")
