"""The best score so far, against seconds of training."""

from search.record.records import TrialRecord, standing
from search.report import figures, svg
from search.report.html import number, table
from search.report.material import Material
from search.report.section import Figure, Section


def section(material: Material) -> Section | None:
    """Return the best score so far, or None where no trial has a score."""
    record = material.record
    trials = [t for t in standing(record.trials) if t.metrics["best"].get(record.metric) is not None]
    if not trials:
        return None
    spent, points, best = 0.0, [], None
    for trial in trials:
        spent += trial.seconds
        score = trial.metrics["best"][record.metric]
        if trial.state == "COMPLETE" and record.objective.is_better(score, best and best[1]):
            best = (trial, score)
        points.append((trial, spent, score, best))
    steps = [(i, p) for i, p in enumerate(points) if p[3] is not None and p[3][0] is p[0]]
    rows = [
        [
            trial.id,
            number(at, ".1f"),
            number(score, ".4f", *material.place(trial), "metrics", "best", record.metric),
        ]
        for _, (trial, at, score, _) in steps
    ]
    sentence = _sentence(points, record.metric)
    figure = Figure(
        "best-so-far",
        figures.best_so_far(points, record.metric),
        sentence,
        table(
            ["trial", "seconds of training so far", f"best {record.metric}"], rows, caption="New best trials"
        ),
        svg.steps([(at, p[1]) for _, at, _, p in points if p], [(at, s) for _, at, s, _ in points]),
    )
    return Section("progress", "Best so far", [figure])


def _sentence(
    points: list[tuple[TrialRecord, float, float, tuple[TrialRecord, float] | None]], metric: str
) -> str:
    last = points[-1][3]
    if last is None:
        return f"No trial has completed yet; the dots are trials that were stopped early ({metric})."
    at = next(spent for trial, spent, _, _ in points if trial is last[0])
    return (
        f"The best {metric} was found by {last[0].id}, after {at:.0f} of {points[-1][1]:.0f} seconds that "
        "all trials together have trained."
    )
