"""Plotly figures as JSON values, without colours of a theme: the page sets those.

Text that plotly shows may hold a few HTML tags, so names from outside are escaped for it here.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.strategy import STRATEGIES
from search.record.records import TrialRecord
from search.report.material import Material

BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#d9822b", "#3a9d6b", "#8a94a3"
OF_STRATEGY = dict(zip(STRATEGIES, (BLUE, ORANGE, GREEN), strict=False))
Figure = dict[str, Any]


def plain(text: object) -> str:
    """Return text that plotly shows as it is."""
    return html.escape(str(text), quote=False)


def colour(strategy: object) -> str:
    """Return a strategy's colour, the same in every figure."""
    return OF_STRATEGY.get(str(strategy), "#8b7fc7")


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with a title."""
    return {"title": {"text": plain(title)}, **more}


def best_so_far(points: list[dict[str, Any]], material: Material) -> Figure:
    """Return the scores of all trials and the best so far: over the seconds of the search, and over the cost.

    Args:
        points: `analysis.best_so_far.points` of the JSON.
        material: the study; without its times there is the cost alone.
    """
    timed = all(point["searched"] is not None for point in points)
    axes = [("searched", "seconds of the search", "x")] * timed
    axes.append(("slot_seconds", "cost: seconds of slots", "x2" if timed else "x"))
    trials = {trial.id: trial for trial in material.record.trials}
    data: list[dict[str, Any]] = []
    for name, _, axis_name in axes:
        first = axis_name == "x"
        complete = [p for p in points if trials[p["trial"]].state == "COMPLETE"]
        stopped = [p for p in points if trials[p["trial"]].state != "COMPLETE"]
        line = [p for p in points if p["best"] is not None]
        data += [
            _dots(stopped, name, trials, "stopped early", GREY, symbol="x"),
            _dots(complete, name, trials, "complete", BLUE),
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": [p[name] for p in line],
                "y": [trials[p["best"]].metrics["best"][material.record.metric] for p in line],
                "line": {"shape": "hv", "color": GREEN, "width": 3},
                "hoverinfo": "skip",
            },
        ]
        for trace in data[-3:]:
            trace |= {"xaxis": axis_name, "legendgroup": trace["name"], "showlegend": first}
    layout: dict[str, Any] = {"yaxis": axis(material.metric)}
    for i, (_, title, axis_name) in enumerate(axes):
        domain = {"domain": [i / 2 + 0.03 * i, (i + 1) / 2 - 0.03 * (1 - i)]} if timed else {}
        layout[f"xaxis{axis_name[1:]}"] = axis(title, **domain)
    return {"data": data, "layout": layout}


def _dots(
    points: list[dict[str, Any]],
    over: str,
    trials: dict[str, TrialRecord],
    name: str,
    shade: str,
    symbol: str = "circle",
) -> dict[str, Any]:
    told = [trials[p["trial"]] for p in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [p[over] for p in points],
        "y": [p["score"] for p in points],
        "text": [plain(f"{t.id} {t.baseline or t.params.get('strategy', '')}") for t in told],
        "hovertemplate": "%{text}<br>%{y:.4f} after %{x:.0f} s<extra></extra>",
        "marker": {"color": shade, "size": 7, "opacity": 0.75, "symbol": symbol},
    }


def lines(
    x: list[Any], y: list[Any], text: list[Any], name: str, shade: str, width: float, opacity: float
) -> Figure:
    """Return many lines as one trace; None in `x` ends a line."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": y,
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": shade, "width": width},
        "opacity": opacity,
    }


def curves(trials: list[TrialRecord], material: Material) -> Figure:
    """Return the metric over the epochs: a colour for each strategy, grey and a cross where stopped early."""
    metric, data = material.record.metric, []
    best = material.record.best

    def points(mine: list[TrialRecord]) -> tuple[list[Any], list[Any], list[Any]]:
        x: list[Any] = []
        y: list[Any] = []
        text: list[Any] = []
        for trial in mine:
            told = [e for e in trial.history if metric in e]
            x += [*(int(e.get("epoch", i)) for i, e in enumerate(told, 1)), None]
            y += [*(round(e[metric], 5) for e in told), None]
            text += [*([trial.id] * len(told)), ""]
        return x, y, text

    stopped = [t for t in trials if t.state == "PRUNED"]
    if stopped:
        data.append(lines(*points(stopped), "stopped early", GREY, 1, 0.6))
        ends = [(t.id, [e for e in t.history if metric in e][-1]) for t in stopped]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "showlegend": False,
                "x": [int(e.get("epoch", 0)) for _, e in ends],
                "y": [round(e[metric], 5) for _, e in ends],
                "text": [name for name, _ in ends],
                "hovertemplate": "%{text} was stopped<extra></extra>",
                "marker": {"symbol": "x", "size": 6, "color": GREY},
            }
        )
    others = [t for t in trials if t.state != "PRUNED" and t is not best]
    for strategy in dict.fromkeys(str(t.params.get("strategy")) for t in others):
        mine = [t for t in others if str(t.params.get("strategy")) == strategy]
        data.append(lines(*points(mine), plain(strategy), colour(strategy), 1.4, 0.65))
    if best is not None and best in trials:
        shade = colour(best.params.get("strategy"))
        data.append(lines(*points([best]), f"the best, {best.id}", shade, 4, 1.0))
    for line in data:
        if line["mode"] == "lines":
            line["hovertemplate"] = "%{text}, epoch %{x}<br>%{y:.4f}<extra></extra>"
    layout = {
        "xaxis": axis("epoch", dtick=1 if material.record.epochs <= 20 else None),
        "yaxis": axis(material.metric),
    }
    return {"data": data, "layout": layout}


def recalls(rows: list[tuple[str, float, float, float]]) -> Figure:
    """Return recalls with their intervals, the worst on top: name, recall, low, high."""
    rows = rows[::-1]
    data = {
        "type": "scatter",
        "mode": "markers",
        "x": [row[1] for row in rows],
        "y": [_short(row[0]) for row in rows],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [row[3] - row[1] for row in rows],
            "arrayminus": [row[1] - row[2] for row in rows],
            "thickness": 2,
            "color": BLUE,
        },
        "marker": {"color": BLUE, "size": 9},
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
        "showlegend": False,
    }
    layout = {"xaxis": axis("recall", range=[0, 1.02]), "yaxis": {"type": "category"}}
    return {"data": [data], "layout": layout}


def _short(name: str) -> str:
    return plain(name if len(name) <= 28 else f"{name[:26]}…")


def confusion(counts: list[list[int]], names: list[str]) -> Figure:
    """Return the confusion matrix: a row for each true class, shaded by its share, labelled by images."""
    matrix = np.array(counts)
    sizes = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, sizes, out=np.zeros(matrix.shape), where=sizes > 0)
    ticks = [_short(name) for name in names]
    unique = ticks if len(set(ticks)) == len(ticks) else [f"{t} {i}" for i, t in enumerate(ticks, 1)]
    data = {
        "type": "heatmap",
        "z": [[round(float(v), 4) for v in row] for row in shares],
        "x": unique,
        "y": unique,
        "text": [[str(int(v)) if v else "" for v in row] for row in matrix],
        "texttemplate": "%{text}" if len(names) <= 20 else "",
        "hovertemplate": "is %{y}<br>was taken for %{x}<br>%{text} images<extra></extra>",
        "colorscale": [[0, "rgba(59,125,216,0.04)"], [1, "rgba(59,125,216,0.7)"]],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    layout = {
        "xaxis": axis("was taken for", type="category", showgrid=False, side="bottom"),
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, "ticks": ""},
    }
    return {"data": [data], "layout": layout}


def reliability(curves_: Sequence[tuple[str, list[dict[str, float]]]]) -> Figure:
    """Return accuracy over confidence before and after the temperature."""
    data: list[Any] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "perfect",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"color": GREY, "dash": "dot", "width": 1.5},
            "hoverinfo": "skip",
        }
    ]
    for (when, bins), shade in zip(curves_, (ORANGE, GREEN), strict=True):
        most = max((b["images"] for b in bins), default=1)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{when} the temperature",
                "x": [b["confidence"] for b in bins],
                "y": [b["accuracy"] for b in bins],
                "text": [f"{int(b['images'])} images" for b in bins],
                "hovertemplate": "confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{text}<extra></extra>",
                "line": {"color": shade, "width": 2},
                "marker": {
                    "color": shade,
                    "size": [round(5 + 11 * math.sqrt(b["images"] / most), 1) for b in bins],
                },
            }
        )
    layout = {"xaxis": axis("confidence", range=[0, 1.02]), "yaxis": axis("accuracy", range=[0, 1.02])}
    return {"data": data, "layout": layout}
