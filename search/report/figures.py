"""Plotly figures as JSON values, without colours of a theme: the page sets those."""

from typing import Any

BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#d9822b", "#3a9d6b", "#8a94a3"


def best_so_far(points: list[Any], metric: str) -> dict[str, Any]:
    """Return the scores of all trials and the best so far, over the seconds that trials have trained."""
    complete = [p for p in points if p[0].state == "COMPLETE"]
    stopped = [p for p in points if p[0].state != "COMPLETE"]
    line = [p for p in points if p[3] is not None]
    return {
        "data": [
            _dots(stopped, "stopped early", GREY, symbol="x"),
            _dots(complete, "complete", BLUE),
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": [p[1] for p in line],
                "y": [p[3][1] for p in line],
                "line": {"shape": "hv", "color": GREEN, "width": 3},
                "hoverinfo": "skip",
            },
        ],
        "layout": {"xaxis": {"title": {"text": "seconds of training"}}, "yaxis": {"title": {"text": metric}}},
    }


def _dots(points: list[Any], name: str, colour: str, symbol: str = "circle") -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [p[1] for p in points],
        "y": [p[2] for p in points],
        "text": [f"{p[0].id} {p[0].baseline or p[0].params.get('strategy', '')}" for p in points],
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
        "marker": {"color": colour, "size": 7, "opacity": 0.75, "symbol": symbol},
    }
