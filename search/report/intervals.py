"""The verdict's intervals as rows of HTML, which stay readable at any width and need no script."""

from collections.abc import Sequence

from search.report.html import Markup, tag
from search.verdict.words import Comparison


def drawing(shown: Sequence[tuple[Comparison, Markup]]) -> Markup:
    """Return each comparison's difference and interval on one axis, with a line at no difference.

    Args:
        shown: comparisons that were measured, each with its difference as the page shows it.
    """
    bounds = [value for one, _ in shown for value in (one.low, one.high) if value is not None]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    margin = 0.06 * ((high - low) or 1.0)
    low, high = low - margin, high + margin

    def x(value: float | None) -> float:
        """Return the place of a value on the axis, in per cent."""
        return round(100 * ((value or 0.0) - low) / (high - low), 2)

    rows = [
        _row(one, difference, x(one.low), x(one.difference), x(one.high), x(0.0)) for one, difference in shown
    ]
    axis = tag("p", tag("span", "no difference", style=f"left:{x(0.0)}%"), class_="axis", aria_hidden="true")
    label = "Differences to the winner with their intervals: " + "; ".join(
        f"{one.against} {one.outcome}" for one, _ in shown
    )
    return tag("div", *rows, axis, class_="intervals", role="img", aria_label=label)


def _row(one: Comparison, difference: Markup, low: float, middle: float, high: float, zero: float) -> Markup:
    kind = {"better": "up", "worse": "down"}.get(one.outcome, "even")
    name = one.against if one.against in ("recipe", "runner-up") else f"best of {one.against}"
    track = tag(
        "div",
        tag("i", class_="zero", style=f"left:{zero}%"),
        tag("i", class_="bar", style=f"left:{low}%;width:{round(high - low, 2)}%"),
        tag("i", class_="dot", style=f"left:{middle}%"),
        class_="track",
    )
    who = tag("div", tag("b", name), " ", tag("span", one.trial), class_="who")
    return tag("div", who, track, tag("div", difference, class_="gain"), class_=f"row {kind}")
