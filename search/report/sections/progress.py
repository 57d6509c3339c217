"""The best score so far, against the seconds of the search and against its cost."""

from typing import Any

from search.report import figures, svg
from search.report.html import Markup, join, table
from search.report.material import Material
from search.report.section import Figure, Section

AT = ("analysis", "best_so_far")


def section(material: Material) -> Section | None:
    """Return the best score so far, or None where no trial has a score."""
    found = material.value(*AT)
    if not found:
        return None
    places = [i for i, point in enumerate(found["points"]) if point["best"] == point["trial"]]
    rows = [
        [
            found["points"][i]["trial"],
            material.number(".1f", *AT, "points", i, "searched"),
            material.number(".1f", *AT, "points", i, "slot_seconds"),
            material.number(".4f", *AT, "points", i, "score"),
        ]
        for i in places
    ]
    head = ["trial", "seconds of the search", "seconds of slots", f"best {material.metric}"]
    numbers = table(head, rows, caption="New best trials")
    still = svg.steps(
        found["points"],
        material.number(".4f", *AT, "highest"),
        material.number(".4f", *AT, "lowest"),
        material.number(".0f", *AT, "slot_seconds"),
    )
    sentence = _sentence(material, found, places[-1] if places else None)
    figure = figures.best_so_far(found["points"], material)
    return Section("progress", "Best so far", [Figure("best-so-far", figure, sentence, numbers, still)])


def _sentence(material: Material, found: dict[str, Any], place: int | None) -> Markup:
    if place is None:
        return join(
            [f"No trial has completed yet; the dots are trials that were stopped early ({material.metric})."]
        )
    words: list[object] = [
        f"The best {material.metric} was found by {found['points'][place]['trial']}, after "
    ]
    if found["searched"] is not None:
        words += [
            material.number(".0f", *AT, "points", place, "searched"),
            " of ",
            material.number(".0f", *AT, "searched"),
            " seconds of the search. It had cost ",
        ]
    words += [
        material.number(".0f", *AT, "points", place, "slot_seconds"),
        " of the ",
        material.number(".0f", *AT, "slot_seconds"),
        " seconds that all trials together took of the slots.",
    ]
    return join(words)
