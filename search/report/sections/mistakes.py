"""The most confident mistakes, as pictures: what spoke for the answer, and the nearest training images."""

from typing import Any

from search.report.html import Markup, join, tag
from search.report.material import Material
from search.report.pictures import picture
from search.report.section import Section

AT = ("analysis", "model", "mistakes")


def section(material: Material) -> Section | None:
    """Return the pictures; None where there are none, or the page is to be shared."""
    mistakes = material.pictures
    if not mistakes:
        return None
    explained = {one["image"]: one for one in material.explained.get("mistakes", [])}
    shown = [_mistake(material, i, one, explained.get(one.get("image"))) for i, one in enumerate(mistakes)]
    words: list[object] = [
        "The ",
        material.number("d", *AT),
        f" wrong answers on {mistakes[0]['split']} images that the model is surest of. "
        "Look for labels that are wrong, and for what the pictures have in common.",
    ]
    if any(why["map"] for why in explained.values()):
        words.append(" Beside each: the same image, bright where it spoke for the wrong answer.")
    if explained:
        words.append(
            " Below: the training images that look most alike to the model, with their cosine; neighbours of "
            "the wrong class explain many mistakes."
        )
    return Section(
        "mistakes", "Worst mistakes", [tag("p", join(words)), tag("div", *shown, class_="pictures")]
    )


def _mistake(material: Material, place: int, one: dict[str, Any], why: dict[str, Any] | None) -> Markup:
    label, predicted = str(one["label"]), str(one["predicted"])
    shown = [picture(str(one["picture"]), f"{label}, taken for {predicted}")]
    near: list[Markup] = []
    if why is not None and why["map"]:
        shown.append(picture(str(why["map"]), f"the same, bright where it spoke for {predicted}"))
    if why is not None:
        near = [_neighbour(material, place, i, found) for i, found in enumerate(why["neighbours"])]
    told = tag(
        "figcaption",
        tag("b", material.quote(*AT, place, "predicted")),
        " ",
        material.number(".2f", *AT, place, "probability"),
        Markup("<br>"),
        "is ",
        material.quote(*AT, place, "label"),
    )
    beside = tag("div", *near, class_="near") if near else Markup("")
    return tag("figure", *shown, told, beside, title=str(one["path"]), class_="why" if why else None)


def _neighbour(material: Material, mistake: int, place: int, found: dict[str, Any]) -> Markup:
    at = (*AT, mistake, "neighbours", place)
    shown = picture(str(found["picture"]), f"a training image of {found['label']}")
    words = tag("small", material.quote(*at, "label"), " ", material.number(".2f", *at, "cosine"))
    return tag("span", shown, words, title=found["path"])
