"""The Pareto front of a study with several objectives, and the trials above its limits."""

from typing import Any

from search.record.records import TrialRecord
from search.report.figures import BLUE, GREEN, GREY, axis, plain
from search.report.html import Markup, join, table
from search.report.material import Material
from search.report.section import Figure, Section
from search.views import front


def section(material: Material) -> Section | None:
    """Return the costs of the complete trials, or None where the study has no objectives or constraints."""
    goal = material.record.goal
    if goal is None:
        return None
    trials = [t for t in material.ranked if t.state == "COMPLETE" and material.score(t) is not None]
    names = goal.measured
    head = ["trial", f"best {material.metric}", *(name.replace("_", " ") for name in names), "front"]
    rows = [
        [
            trial.id,
            material.score_of(trial),
            *(material.number(".4g", *material.place(trial), "measured", n) for n in names),
            front.place(material.record, trial),
        ]
        for trial in trials
    ]
    shown = table(head, rows, caption="Complete trials and what they cost", sortable=True)
    title = "Pareto front" if goal.objectives else "Limits"
    figure = Figure("front", _figure(material, trials), _sentence(material), shown)
    return Section("front", title, [figure])


def _sentence(material: Material) -> Markup:
    goal = material.record.goal
    assert goal is not None
    limits = [material.quote("study", "constraints", i) for i in range(len(goal.constraints))]
    told: list[object] = [" Limits: ", join(limits, ", "), "."] if limits else []
    if not goal.objectives:
        return join(["The best trial is the best one within its limits.", *told])
    names = ", ".join((material.metric, *goal.objectives))
    return join(
        [
            material.number("d", "study", "front"),
            f" trials are on the front of {names}: no other trial is as good in all of them and better in "
            "one, where costs within ",
            material.percent(0, "analysis", "rules", "costs_that_count_as_equal"),
            " count as equal.",
            *told,
        ]
    )


def _figure(material: Material, trials: list[TrialRecord]) -> dict[str, Any]:
    """Return the score over the first measured quantity; the front is a line."""
    record = material.record
    assert record.goal is not None
    cost = record.goal.measured[0]
    groups = (
        ("complete", BLUE, [t for t in trials if t.number not in record.front and not record.breaks(t)]),
        ("above a limit", GREY, [t for t in trials if record.breaks(t)]),
        ("on the front", GREEN, [t for t in trials if t.number in record.front]),
    )
    data = []
    for name, shade, mine in groups:
        mine = sorted((t for t in mine if cost in t.measured), key=lambda t: t.measured[cost])
        if mine:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if name == "on the front" else "markers",
                    "name": name,
                    "x": [t.measured[cost] for t in mine],
                    "y": [t.metrics["best"][record.metric] for t in mine],
                    "text": [plain(f"{t.id} {t.baseline or t.params.get('strategy', '')}") for t in mine],
                    "hovertemplate": "%{text}<br>%{y:.4f}, %{x:.4g}<extra></extra>",
                    "line": {"color": shade, "shape": "hv"},
                    "marker": {"color": shade, "size": 8},
                }
            )
    return {
        "data": data,
        "layout": {"xaxis": axis(cost.replace("_", " ")), "yaxis": axis(material.metric)},
    }
