"""The verdict, in words and as intervals."""

from search.report import html, svg
from search.report.html import Markup, number, tag
from search.report.material import Material
from search.report.section import Section
from search.verdict.words import Scale


def section(material: Material) -> Section:
    """Return the verdict: the sentence, its key numbers, and each comparison with its interval."""
    verdict = material.verdict
    parts: list[Markup] = [tag("p", verdict.sentence, class_="verdict")]
    parts.append(_tiles(material))
    measured = [(i, one) for i, one in enumerate(verdict.comparisons) if one.difference is not None]
    if measured:
        scale = Scale(material.record.metric, material.record.mode)
        parts.append(svg.intervals([one for _, one in measured], scale))
    if verdict.comparisons:
        parts.append(tag("ul", *(tag("li", one.sentence) for one in verdict.comparisons)))
    parts += [
        tag("p", line) for line in (verdict.luck.sentence if verdict.luck else "", verdict.note) if line
    ]
    return Section("verdict", "Verdict", list(parts))


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
            scale = Scale(record.metric, record.mode)
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
