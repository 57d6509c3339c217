"""The verdict, in words and as intervals."""

from search.report import html, svg
from search.report.html import Markup, details, number, table, tag
from search.report.material import Material
from search.report.section import Section
from search.verdict.words import CONFIDENCE, Scale


def section(material: Material) -> Section:
    """Return the verdict: the sentence, its key numbers, and each comparison with its interval."""
    verdict = material.verdict
    parts: list[Markup] = [tag("p", verdict.sentence, class_="verdict")]
    parts.append(_tiles(material))
    if any(one.difference is not None for one in verdict.comparisons):
        parts += _intervals(material)
    if verdict.comparisons:
        parts.append(tag("ul", *(tag("li", one.sentence) for one in verdict.comparisons)))
    parts += [
        tag("p", line) for line in (verdict.luck.sentence if verdict.luck else "", verdict.note) if line
    ]
    return Section("verdict", "Verdict", list(parts))


def _intervals(material: Material) -> list[Markup]:
    """Return the comparisons as a drawing, and its numbers."""
    verdict, scale = material.verdict, material.scale
    words = (
        "How far the winner is ahead, as the mean over seeds on the same images. All intervals hold "
        f"together with {100 * CONFIDENCE:.0f} %; those that cross the line cannot be told apart."
    )
    rows = []
    for place, one in enumerate(verdict.comparisons):
        at = ("verdict", "comparisons", place)
        cells = [number(getattr(one, n), ".4f", *at, n) for n in ("difference", "low", "high")]
        rows.append([one.against, one.trial, *cells, number(one.seeds, "d", *at, "seeds"), one.outcome])
    head = ["against", "trial", "ahead by", "low", "high", "seeds", "outcome"]
    drawn = svg.intervals([one for one in verdict.comparisons if one.difference is not None], scale)
    return [
        tag("p", words, class_="soft"),
        drawn,
        details("The numbers", table(head, rows, caption="Comparisons")),
    ]


def _tiles(material: Material) -> Markup:
    record, verdict = material.record, material.verdict
    best = record.best
    if best is None:
        return Markup("")
    score = number(
        best.metrics["best"][record.metric], ".4f", *material.place(best), "metrics", "best", record.metric
    )
    tiles = [_tile(f"best {record.metric}", score, f"{best.id}, {best.params.get('strategy', '')}")]
    for place, one in enumerate(verdict.comparisons):
        if one.against in ("recipe", "runner-up") and one.difference is not None:
            scale = Scale(record.metric)
            gain = tag(
                "data",
                scale.gain(one.difference),
                value=repr(one.difference),
                data_json=html.pointer("verdict", "comparisons", place, "difference"),
            )
            tiles.append(_tile(f"against the {one.against}", gain, one.outcome))
    done = sum(trial.state == "COMPLETE" for trial in record.trials)
    tiles.append(_tile("trials", f"{len(record.trials)}", f"{done} complete, {record.state}"))
    return tag("div", *tiles, class_="tiles")


def _tile(title: object, value: object, below: object) -> Markup:
    return tag("div", tag("span", title), tag("b", value), tag("span", below), class_="tile")
