"""Trials in their order, and failures by cause: every view of a study takes them from here."""

import math
import re
from dataclasses import dataclass

from search.record.records import STATES, StudyRecord, TrialRecord, standing
from search.views.terminal import clean

INTERRUPTED = "interrupted"
"""State shown for a trial that ended only because the study was interrupted."""


@dataclass(frozen=True)
class Failures:
    """Trials that failed for the same reason."""

    cause: str
    """Error message of the first of these trials."""
    trials: tuple[TrialRecord, ...]


def ranked(study: StudyRecord) -> list[TrialRecord]:
    """Return the trials by state (COMPLETE, PRUNED, FAIL, RUNNING, WAITING), the best of each state first.

    Trials that break a constraint come after the others of their state. Of equal trials the earlier one comes
    first. Interrupted trials that a later trial continues are left out.
    """

    def key(trial: TrialRecord) -> tuple[int, bool, float, int]:
        return (
            STATES.index(trial.state),
            study.breaks(trial),
            study.objective.key(score(study, trial)),
            trial.number,
        )

    return sorted(standing(study.trials), key=key)


def has_rank(study: StudyRecord, trial: TrialRecord) -> bool:
    """Return True if a trial is complete, has a score and keeps the constraints, so that its place counts."""
    return trial.state == "COMPLETE" and score(study, trial) is not None and not study.breaks(trial)


def failures(study: StudyRecord) -> list[Failures]:
    """Return the failed trials grouped by cause, the most frequent cause first.

    Causes that differ only in numbers or paths count as the same. Interrupted trials have not failed, as
    `resume` continues them.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for trial in study.trials:
        if trial.state == "FAIL" and not trial.interrupted:
            groups.setdefault(_normalised(cause(trial)), []).append(trial)
    found = [Failures(cause(trials[0]), tuple(trials)) for trials in groups.values()]
    return sorted(found, key=lambda group: (-len(group.trials), group.trials[0].number))


def state_of(trial: TrialRecord) -> str:
    """Return the state that people read: `interrupted` is not a failure."""
    return INTERRUPTED if trial.interrupted else trial.state


def score(study: StudyRecord, trial: TrialRecord) -> float | None:
    """Return a trial's best score; None if it has none, or it is not a number."""
    value = trial.metrics["best"].get(study.metric)
    return None if value is None or math.isnan(value) else value


def cause(trial: TrialRecord) -> str:
    """Return the first line of a trial's error."""
    lines = (trial.error or "").strip().splitlines()
    return clean(lines[0]) if lines else "no reason recorded"


def without_paths(text: str) -> str:
    """Return a message with PATH in place of every path in it."""
    return re.sub(r"(?:[A-Za-z]:)?[\w.~-]*[/\\][^\s'\",;:)\]]+", "PATH", text)


def _normalised(text: str) -> str:
    return re.sub(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", "N", without_paths(text))
