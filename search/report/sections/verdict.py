"""The verdict, in words and as intervals."""

from search.report import html, intervals
from search.report.html import Markup, details, join, table, tag
from search.report.material import Material
from search.report.section import Section

COMPARED = ("verdict", "comparisons")


def section(material: Material) -> Section:
    """Return the verdict: the sentence, its key numbers, and each comparison with its interval."""
    verdict = material.verdict
    sentence = material.quote("verdict", "sentence")
    if verdict.winner is None and material.metric != material.record.metric:
        sentence = html.text("No verdict: no trial completed.")  # the sentence names the class of the metric
    parts: list[Markup] = [tag("p", sentence, class_="verdict"), _tiles(material)]
    if any(one.difference is not None for one in verdict.comparisons):
        parts += _intervals(material)
    count = range(len(verdict.comparisons))
    if count:
        parts.append(tag("ul", *(tag("li", material.quote(*COMPARED, i, "sentence")) for i in count)))
    if verdict.luck:
        parts.append(tag("p", material.quote("verdict", "luck", "sentence")))
    if verdict.note:
        parts.append(tag("p", material.quote("verdict", "note")))
    return Section("verdict", "Verdict", [part for part in parts if part])


def _intervals(material: Material) -> list[Markup]:
    """Return the comparisons as a drawing, and its numbers."""
    verdict = material.verdict
    words = (
        "How far the winner is ahead, as the mean over seeds on the same images. All intervals hold together "
        "with ",
        material.percent(0, "analysis", "rules", "confidence"),
        "; those that cross the line cannot be told apart.",
    )
    rows = [
        [
            one.against,
            one.trial,
            *(material.number(".4f", *COMPARED, i, name) for name in ("difference", "low", "high")),
            material.number("d", *COMPARED, i, "seeds"),
            one.outcome,
        ]
        for i, one in enumerate(verdict.comparisons)
    ]
    head = ["against", "trial", "ahead by", "low", "high", "seeds", "outcome"]
    drawn = intervals.drawing(
        [
            (one, material.gain(*COMPARED, i, "difference"))
            for i, one in enumerate(verdict.comparisons)
            if one.difference is not None
        ]
    )
    return [
        tag("p", *words, class_="soft"),
        drawn,
        details("The numbers", table(head, rows, caption="Comparisons")),
    ]


def _tiles(material: Material) -> Markup:
    record, best = material.record, material.record.best
    if best is None:
        return Markup("")
    tiles = [
        _tile(
            f"best {material.metric}",
            material.score_of(best),
            f"{best.id}, {best.params.get('strategy', '')}",
        )
    ]
    for place, one in enumerate(material.verdict.comparisons):
        if one.against in ("recipe", "runner-up") and one.difference is not None:
            gain = material.gain(*COMPARED, place, "difference")
            tiles.append(_tile(f"against the {one.against}", gain, one.outcome))
    count = material.number("d", "analysis", "counts", "trials")
    heads = material.number("d", "analysis", "counts", "exact")
    exact = material.value("analysis", "counts", "exact")
    more = ["and ", heads, f" exact head{'s'[: exact > 1]}, "] if exact else []
    tiles.append(_tile("trials", count, join([*more, record.state])))
    return tag("div", *tiles, class_="tiles")


def _tile(title: object, value: object, below: object) -> Markup:
    return tag("div", tag("span", title), tag("b", value), tag("span", below), class_="tile")
