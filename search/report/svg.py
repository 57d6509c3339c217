"""Small drawings that need no script: those that carry the verdict. Colours come from the page's style."""

from collections.abc import Sequence

from search.report.html import Markup, tag
from search.verdict.words import Comparison, Scale

WIDTH = 640
LEFT = 190


def intervals(compared: Sequence[Comparison], scale: Scale) -> Markup:
    """Return each comparison's difference and interval on one axis, with a line at no difference."""
    bounds = [value for one in compared for value in (one.low, one.high) if value is not None]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    span = (high - low) or 1.0
    low, high = low - 0.06 * span, high + 0.06 * span

    def x(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 20), 1)

    row = 44
    height = row * len(compared) + 34
    parts: list[Markup] = [
        tag("line", x1=x(0), x2=x(0), y1=4, y2=height - 26, class_="zero"),
        tag("text", "no difference", x=x(0), y=height - 8, class_="axis", text_anchor="middle"),
    ]
    for i, one in enumerate(compared):
        if one.low is None or one.high is None or one.difference is None:
            continue
        y = row * i + 22
        kind = {"better": "up", "worse": "down"}.get(one.outcome, "even")
        name = one.against if one.against in ("recipe", "runner-up") else f"best of {one.against}"
        parts += [
            tag("text", name, x=0, y=y - 2, class_="name"),
            tag("text", one.trial, x=0, y=y + 14, class_="axis"),
            tag("line", x1=x(one.low), x2=x(one.high), y1=y, y2=y, class_=f"bar {kind}"),
            tag("circle", cx=x(one.difference), cy=y, r=5, class_=f"dot {kind}"),
            tag(
                "text",
                scale.gain(one.difference),
                x=x(one.difference),
                y=y - 10,
                class_="axis",
                text_anchor="middle",
            ),
        ]
    label = "Differences to the winner with their intervals: " + "; ".join(
        f"{one.against} {one.outcome}" for one in compared
    )
    return _drawing(height, label, parts)


def steps(best: Sequence[tuple[float, float]], dots: Sequence[tuple[float, float]]) -> Markup:
    """Return points, and a line of the best so far, as a drawing without axes' ticks."""
    every = [*best, *dots]
    if not every:
        return Markup("")
    right = max(x for x, _ in every) or 1.0
    low, high = min(y for _, y in every), max(y for _, y in every)
    span = (high - low) or 1.0
    height = 220

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return round(50 + x / right * (WIDTH - 70), 1), round(16 + (high - y) / span * (height - 50), 1)

    line, last = [], None
    for point in best:
        x, y = at(point)
        line.append(f"{x},{y}" if last is None else f"{x},{last} {x},{y}")
        last = y
    spots = [tag("circle", cx=x, cy=y, r=2.5, class_="spot") for x, y in map(at, dots)]
    words = [
        tag("text", f"{high:.4f}", x=0, y=20, class_="axis"),
        tag("text", f"{low:.4f}", x=0, y=height - 30, class_="axis"),
        tag(
            "text", f"{right:.0f} s of training", x=WIDTH - 20, y=height - 6, class_="axis", text_anchor="end"
        ),
    ]
    curve = tag("polyline", points=" ".join(line), class_="curve")
    return _drawing(height, "Best score so far over seconds of training", [*spots, curve, *words])


def bars(rows: Sequence[tuple[str, float, float, float]]) -> Markup:
    """Return shares with their intervals between 0 and 1, a row for each name."""

    def x(value: float) -> float:
        return round(LEFT + value * (WIDTH - LEFT - 60), 1)

    parts: list[Markup] = []
    for i, (name, share, low, high) in enumerate(rows):
        y = 20 + 26 * i
        short = name if len(name) <= 24 else f"{name[:22]}…"
        parts += [
            tag("text", short, x=0, y=y + 4),
            tag("line", x1=x(low), x2=x(high), y1=y, y2=y, class_="bar even"),
            tag("circle", cx=x(share), cy=y, r=5, class_="dot even"),
            tag("text", f"{share:.3f}", x=WIDTH - 44, y=y + 4, class_="axis"),
        ]
    return _drawing(26 * len(rows) + 16, "Recall of each class with its interval", parts)


def _drawing(height: int, label: str, parts: Sequence[Markup]) -> Markup:
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label, class_="still")
