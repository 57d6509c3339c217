"""Drawings for a page without scripts. Colours come from the page's style."""

import re
from collections.abc import Sequence
from typing import Any

from search.report.html import Markup, join, tag

WIDTH = 640
LEFT = 190


def steps(points: Sequence[dict[str, Any]], high: Markup, low: Markup, seconds: Markup) -> Markup:
    """Return the scores of trials over what they cost, and a line of the best so far, without axes' ticks.

    Args:
        points: `analysis.best_so_far.points` of the JSON.
        high: the highest score as the page shows it.
        low: the lowest score.
        seconds: the seconds of slots at the right end.
    """
    right = max(point["slot_seconds"] for point in points) or 1.0
    scores = [point["score"] for point in points]
    bottom, top = min(scores), max(scores)
    span = (top - bottom) or 1.0
    height = 220

    def at(point: dict[str, Any]) -> tuple[float, float]:
        x = 50 + point["slot_seconds"] / right * (WIDTH - 70)
        return round(x, 1), round(16 + (top - point["score"]) / span * (height - 50), 1)

    line: list[str] = []
    last = None
    for point in points:
        x, y = at(point)
        if point["best"] is not None:
            y = y if point["best"] == point["trial"] else last or y
            line.append(f"{x},{y}" if last is None else f"{x},{last} {x},{y}")
            last = y
    spots = [tag("circle", cx=x, cy=y, r=2.5, class_="spot") for x, y in map(at, points)]
    words = [
        _label(high, x=0, y=20, class_="axis"),
        _label(low, x=0, y=height - 30, class_="axis"),
        _label(join([seconds, " s of slots"]), x=WIDTH - 20, y=height - 6, class_="axis", text_anchor="end"),
    ]
    curve = tag("polyline", points=" ".join(line), class_="curve")
    return _drawing(
        height, "Best score so far over the seconds that trials took of slots", [*spots, curve, *words]
    )


def bars(rows: Sequence[tuple[Markup, Markup, float, float, float]]) -> Markup:
    """Return shares with their intervals between 0 and 1, a row for each name.

    Args:
        rows: name and share as the page shows them; the share, and the ends of its interval.
    """

    def x(value: float) -> float:
        return round(LEFT + value * (WIDTH - LEFT - 60), 1)

    parts: list[Markup] = []
    for i, (name, told, share, low, high) in enumerate(rows):
        y = 20 + 26 * i
        parts += [
            _label(name, x=0, y=y + 4),
            tag("line", x1=x(low), x2=x(high), y1=y, y2=y, class_="bar even"),
            tag("circle", cx=x(share), cy=y, r=5, class_="dot even"),
            _label(told, x=WIDTH - 44, y=y + 4, class_="axis"),
        ]
    return _drawing(26 * len(rows) + 16, "Recall of each class with its interval", parts)


def _label(words: Markup, **attributes: object) -> Markup:
    """Return text of the page as text of a drawing: its elements become `tspan`, which keep their places."""
    return tag("text", Markup(re.sub(r"<(/?)(?:data|span)\b", r"<\1tspan", words)), **attributes)


def _drawing(height: int, label: str, parts: Sequence[Markup]) -> Markup:
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label, class_="still")
