"""Several objectives and constraints in the table and the JSON; a study without them shows nothing of it."""

from collections.abc import Iterable, Sequence
from typing import Any

from search.record.records import StudyRecord, TrialRecord

FRONT = "front"
"""Title of the column that marks the Pareto front."""


def no_best(study: StudyRecord) -> str:
    """Return a line that says why no trial is the best."""
    done = [t for t in study.trials if t.state == "COMPLETE" and study.metric in t.metrics["best"]]
    limits = [] if study.goal is None else [str(constraint) for constraint in study.goal.constraints]
    if not limits:
        return f"best: none, no trial completed with {study.metric}"
    if not done:
        return f"best: none, no trial completed within {' and '.join(limits)}"
    return f"best: none, each of the {len(done)} complete trials breaks {' or '.join(limits)}"


def lines(study: StudyRecord, ranked: Iterable[TrialRecord]) -> list[str]:
    """Return a line with the trials on the Pareto front; nothing if the study has no further objectives."""
    if study.goal is None or not study.goal.objectives:
        return []
    names = study.goal.objectives
    told = [
        f"{trial.id} ({', '.join([f'{_score(study, trial):.4f}', *_costs(names, trial)])})"
        for trial in ranked
        if trial.number in study.front
    ]
    return [f"front of {', '.join((study.metric, *names))}: {'; '.join(told) or 'no trial'}"]


def titles(study: StudyRecord) -> list[str]:
    """Return the titles of the columns: what is measured, then FRONT; none without a goal."""
    return [] if study.goal is None else [*(name.replace("_", " ") for name in study.goal.measured), FRONT]


def cells(study: StudyRecord, trial: TrialRecord) -> list[str]:
    """Return the cells of a trial in these columns."""
    return [] if study.goal is None else [*_costs(study.goal.measured, trial), place(study, trial)]


def place(study: StudyRecord, trial: TrialRecord) -> str:
    """Return `yes` for a trial on the front, `no` beside it, `breaks NAME` above a limit, else `-`."""
    if study.goal is None:
        return "-"
    if trial.measured and (broken := study.goal.broken(trial.measured)):
        return f"breaks {', '.join(dict.fromkeys(constraint.name for constraint in broken))}"
    if not study.goal.objectives or trial.state != "COMPLETE":
        return "-"
    return "yes" if trial.number in study.front else "no"


def facts(study: StudyRecord) -> dict[str, Any]:
    """Return the goal and the front as the JSON has them; nothing without a goal."""
    if study.goal is None:
        return {}
    return {
        "objectives": study.goal.objectives,
        "constraints": study.goal.constraints,
        "front": sorted(study.front),
    }


def facts_of(study: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    """Return what the JSON says of a trial's costs; nothing without a goal."""
    if study.goal is None:
        return {}
    return {
        "measured": trial.measured,
        "breaks": study.goal.broken(trial.measured),
        "on_front": trial.number in study.front,
    }


def _score(study: StudyRecord, trial: TrialRecord) -> float:
    return trial.metrics["best"][study.metric]


def _costs(names: Sequence[str], trial: TrialRecord) -> list[str]:
    return [f"{trial.measured[name]:.4g}" if name in trial.measured else "-" for name in names]
