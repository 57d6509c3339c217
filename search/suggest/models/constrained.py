"""Show a sampler's model which trials break a constraint: with a score below all that satisfy it."""

import copy
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from finetune.objectives import Goal

FAR = 1.0
"""A limit that is broken by this share costs as much as lies between the best and the worst score."""


def seen_by_model(trials: Sequence[FrozenTrial], goal: Goal) -> list[FrozenTrial]:
    """Return the trials as a model is to see them; running ones and those within all limits stay.

    A trial that breaks a constraint gets the worst score of those that do not, less a penalty that grows with
    the excess up to FAR: so a model prefers any trial within the limits, and among others those near them.
    """
    kept: list[FrozenTrial] = []
    excess: dict[int, float] = {}
    for trial in trials:
        over = goal.excess(trial.user_attrs.get("measured", {}))
        if over and trial.state != TrialState.RUNNING:
            excess[trial.number] = min(over, FAR)
        else:
            kept.append(trial)
    objective = goal.objective
    scores = [value for trial in kept for value in _values(trial)]
    scores = scores or [value for trial in trials for value in _values(trial)]
    if not scores or not excess:
        return list(trials)
    worst, best = min(scores, key=objective.worth), max(scores, key=objective.worth)
    width = (worst - best) or (-1.0 if objective.mode == "max" else 1.0)
    return [
        _scored(trial, worst + width * excess[trial.number] / FAR) if trial.number in excess else trial
        for trial in trials
    ]


def _values(trial: FrozenTrial) -> list[float]:
    return [value for value in trial.intermediate_values.values() if value == value]


def _scored(trial: FrozenTrial, value: float) -> FrozenTrial:
    """Return a trial whose every epoch has a score."""
    now = copy.copy(trial)
    now.intermediate_values = dict.fromkeys(trial.intermediate_values, value)
    if trial.state == TrialState.COMPLETE:
        now.values = [value]
    return now
