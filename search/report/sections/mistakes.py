"""The most confident mistakes, as pictures."""

from search.report.html import Markup, number, tag
from search.report.material import Material
from search.report.section import Section

SHOWN = 18


def section(material: Material) -> Section | None:
    """Return the pictures; None where there are none, or the page is to be shared."""
    mistakes = material.mistakes[:SHOWN]
    if not mistakes:
        return None
    pictures = [_picture(one) for one in mistakes]
    words = (
        f"The {len(pictures)} wrong answers on {mistakes[0]['split']} images that the model is surest of. "
        "Look for labels that are wrong, and for what the pictures have in common."
    )
    return Section("mistakes", "Worst mistakes", [tag("p", words), tag("div", *pictures, class_="pictures")])


def _picture(one: dict[str, object]) -> Markup:
    probability = one["probability"]
    assert isinstance(probability, float)
    label, predicted = str(one["label"]), str(one["predicted"])
    code = str(one["picture"])
    safe = code if all(c.isalnum() or c in "+/=" for c in code) else ""
    image = Markup(
        tag(
            "img",
            src=f"data:image/webp;base64,{safe}",
            alt=f"{label}, taken for {predicted}",
            width=96,
            height=96,
            loading="lazy",
        ).removesuffix("</img>")
    )
    told = tag(
        "figcaption",
        tag("b", predicted),
        Markup(f" {number(probability, '.2f')}"),
        Markup("<br>"),
        f"is {label}",
    )
    return tag("figure", image, told, title=str(one["path"]))
