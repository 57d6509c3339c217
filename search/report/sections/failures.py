"""Failed trials by cause."""

from typing import Any

from search.report.html import Markup, join, table, tag
from search.report.material import Material
from search.report.section import Section
from search.views.ranking import without_paths

AT = ("analysis", "failures")
SHOWN = 20


def section(material: Material) -> Section | None:
    """Return the causes of failures, the most frequent first; None if nothing failed."""
    causes = material.value(*AT, "causes")
    if not causes:
        return None
    rows = [_row(material, place, one) for place, one in enumerate(causes[:SHOWN])]
    failed, count = material.number("d", *AT, "trials"), material.number("d", "analysis", "counts", "all")
    words = join([failed, " of ", count, " trials failed and have no score."])
    return Section(
        "failures",
        "Failures by cause",
        [tag("p", words), table(["trials", "cause", "numbers"], rows, caption="Causes")],
    )


def _row(material: Material, place: int, one: dict[str, Any]) -> list[object]:
    at = (*AT, "causes", place)
    shown = [material.number("d", *at, "trials", i) for i in range(min(SHOWN, len(one["trials"])))]
    more = Markup(" ..." if len(one["trials"]) > SHOWN else "")
    cause: object = without_paths(one["cause"]) if material.shareable else material.quote(*at, "cause")
    return [material.number("d", *at, "trials"), cause, join([join(shown, ", "), more])]
