"""Plotly figures of the search space: importances, all settings side by side, and each one alone."""

import math
from typing import Any

from search.record.records import TrialRecord
from search.report.figures import GREEN, GREY, Figure, axis, colour, lines, plain
from search.report.material import Material
from search.views.analysis.importance import is_all
from search.views.analysis.trials import GROUPS

ABOVE = 0.2
"""Share of the largest number of frozen blocks by which `all` stands above it."""
SHADES = dict(zip((name for name, _ in GROUPS), ("#1f9d63", "#3b7dd8", "#8b7fc7", GREY), strict=True))
"""Colour of each group of trials by score."""


def importances(found: dict[str, dict[str, float]]) -> Figure:
    """Return bars of the share that each setting explains, one colour for each strategy."""
    names = list(dict.fromkeys(name for values in found.values() for name in values))[::-1]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(strategy),
            "y": [plain(name.replace("_", " ")) for name in names],
            "x": [values.get(name) for name in names],
            "marker": {"color": colour(strategy)},
            "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
        }
        for strategy, values in found.items()
    ]
    return {
        "data": data,
        "layout": {"barmode": "group", "xaxis": axis("share explained", rangemode="tozero")},
    }


def parallel(grouped: list[tuple[str, list[TrialRecord]]], names: list[str], material: Material) -> Figure:
    """Return all settings side by side, a line for each trial.

    Plotly's own parallel coordinates are compiled in the browser, which the page's policy forbids.
    """
    every = [trial for _, some in grouped for trial in some]
    metric = material.record.metric
    scales = [_Axis(name, [t.params.get(name) for t in every]) for name in names]
    scales.append(_Axis(material.metric, [t.metrics["best"][metric] for t in every]))
    best = material.record.best

    def line(trials: list[TrialRecord]) -> tuple[list[Any], list[Any], list[Any]]:
        x: list[Any] = []
        y: list[Any] = []
        text: list[Any] = []
        for trial in trials:
            values = [*(trial.params.get(name) for name in names), trial.metrics["best"][metric]]
            x += [*range(len(scales)), None]
            y += [*(round(scale.at(value), 4) for scale, value in zip(scales, values, strict=True)), None]
            text += [
                *(
                    f"{trial.id}<br>{plain(s.title)}: {plain(s.shown(v))}"
                    for s, v in zip(scales, values, strict=True)
                ),
                "",
            ]
        return x, y, text

    data = []
    for name, some in reversed(grouped):
        x, y, text = line(some)
        data.append(lines(x, y, text, name, SHADES[name], 1.2, 0.45 if name == "the rest" else 0.7))
    if best is not None and best in every:
        x, y, text = line([best])
        data.append(lines(x, y, text, f"the best, {best.id}", GREEN, 4, 1.0))
    notes = [
        {"x": i, "y": y, "text": plain(label), "showarrow": False, "yanchor": anchor, "font": {"size": 11}}
        for i, scale in enumerate(scales)
        for y, label, anchor in scale.labels
    ]
    stands = [
        {
            "type": "line",
            "x0": i,
            "x1": i,
            "y0": 0,
            "y1": 1,
            "line": {"color": GREY, "width": 1},
            "layer": "below",
        }
        for i in range(len(scales))
    ]
    ticks = [
        scale.title.replace(" ", "<br>") if scale.title.count(" ") < 3 else scale.title for scale in scales
    ]
    layout = {
        "xaxis": {
            "tickvals": list(range(len(scales))),
            "ticktext": [plain(t).replace("&lt;br&gt;", "<br>") for t in ticks],
            "showgrid": False,
            "range": [-0.4, len(scales) - 0.6],
            "zeroline": False,
            "fixedrange": True,
        },
        "yaxis": {"visible": False, "range": [-0.17, 1.1], "fixedrange": True},
        "annotations": notes,
        "shapes": stands,
        "margin": {"l": 16, "r": 16, "t": 16, "b": 56},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "reversed"},
    }
    return {"data": data, "layout": layout}


def of_setting(trials: list[TrialRecord], name: str, material: Material) -> Figure:
    """Return the score over one setting, with a colour for each strategy."""
    metric, data = material.record.metric, []
    values = [t.params[name] for t in trials]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v != -1]
    every = len(numbers) == sum(not is_all(name, v) for v in values) and bool(numbers)
    log = every and min(numbers) > 0 and max(numbers) / min(numbers) > 20
    few = not every or len(set(map(repr, values))) <= 6
    top = max(numbers, default=0) + max(1, round(ABOVE * max(numbers, default=0)))
    for strategy in dict.fromkeys(str(t.params.get("strategy")) for t in trials):
        mine = [t for t in trials if str(t.params.get("strategy")) == strategy]
        given = [t.params[name] for t in mine]
        x = [_tick(v, name) if few else top if is_all(name, v) else v for v in given]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain(strategy),
                "x": x,
                "y": [t.metrics["best"][metric] for t in mine],
                "text": [t.id for t in mine],
                "hovertemplate": "%{text}<br>%{x}: %{y:.4f}<extra></extra>",
                "marker": {"color": colour(strategy), "size": 6, "opacity": 0.7},
            }
        )
    ticks: dict[str, Any] = {"type": "log", "dtick": 1} if log else {}
    if every and not few and len(numbers) < len(values):
        shown = [min(numbers), round((min(numbers) + max(numbers)) / 2), max(numbers)]
        ticks = {"tickvals": [*shown, top], "ticktext": [*map(str, shown), "all"]}
    if few:
        order = sorted(
            {repr(v): v for v in values}.values(),
            key=lambda v: (math.inf, "") if is_all(name, v) else (0, v) if every else (0, str(v)),
        )
        kinds = [_tick(v, name) for v in order]
        ticks = {"type": "category", "categoryarray": kinds, "categoryorder": "array"}
    layout = {
        "xaxis": axis(name.replace("_", " "), **ticks),
        "yaxis": {},
        "margin": {"l": 44, "r": 8, "t": 8, "b": 44},
        "showlegend": False,
    }
    return {"data": data, "layout": layout}


def _tick(value: Any, name: str) -> str:
    if is_all(name, value):
        return "all"
    return plain(f"{value:.3g}" if isinstance(value, float) else value)


class _Axis:
    """One axis of the parallel coordinates: where a value stands between 0 and 1; -0.1 if it is not used."""

    def __init__(self, name: str, values: list[Any]) -> None:
        self.title = name.replace("_", " ")
        self._name = name
        self._all = any(is_all(name, value) for value in values)
        self._names: list[str] = []
        there = [self._number(value) for value in values if value is not None]
        numbers = [value for value in there if isinstance(value, float)]
        if len(numbers) < len(there):
            self._names = sorted({str(value) for value in there})
            self.low, self.high, self.log = 0.0, float(max(1, len(self._names) - 1)), False
            return
        finite = [value for value in numbers if math.isfinite(value)]
        self.low, self.high = min(finite, default=0.0), max(finite, default=1.0)
        self._top = self.high
        if self._all:  # all blocks frozen: above every count
            self.high = self.high + max(1.0, 0.08 * (self.high - self.low))
        self.log = self.low > 0 and self.high / self.low > 20

    def _number(self, value: Any) -> Any:
        if is_all(self._name, value):
            return math.inf
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)

    def at(self, value: Any) -> float:
        """Return the height of a value."""
        if value is None:
            return -0.1
        if self._names:
            return self._names.index(str(self._number(value))) / self.high if len(self._names) > 1 else 0.5
        number = min(self._number(value), self.high)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        number = math.log(number) if self.log else number
        return (number - low) / (high - low) if high > low else 0.5

    def shown(self, value: Any) -> str:
        """Return a value as text."""
        if value is None:
            return "not used"
        if is_all(self._name, value):
            return "all"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    @property
    def labels(self) -> list[tuple[float, str, str]]:
        """Heights, texts and anchors of the labels along the axis."""
        if self._names:
            places = [(self.at(name), name) for name in self._names]
            return [(y, name, "bottom" if y else "top") for y, name in places]
        found = [
            (self.at(self.low), _short(self.low), "top"),
            (self.at(self._top), _short(self._top), "bottom"),
        ]
        if self._all:
            found[1] = (1.0, "all", "bottom")
        return found


def _short(number: float) -> str:
    return f"{number:.0f}" if number == int(number) and abs(number) < 1e5 else f"{number:.3g}"
