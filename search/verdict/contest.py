"""Which settings of a study are compared, and what its record knows about them."""

import json
from collections.abc import Iterable

from search.record.records import StudyRecord, TrialRecord, standing
from search.verdict.words import Contestant, Verdict, verdict


def contestants(record: StudyRecord, top: int) -> list[TrialRecord]:
    """Return the trials to compare: the best `top`, the recipe, and the best of each strategy.

    The winner comes first and the others by score. A setting that was tried twice counts once.
    """
    sign = -1.0 if record.mode == "max" else 1.0
    done = [
        t for t in standing(record.trials) if t.state == "COMPLETE" and record.metric in t.metrics["best"]
    ]
    done.sort(key=lambda t: (sign * t.metrics["best"][record.metric], t.number))
    done = list(_once(done))
    first_of = {str(trial.params.get("strategy")): trial for trial in reversed(done)}
    wanted = {trial.number for trial in (*done[:top], *first_of.values())}
    return [trial for trial in done if trial.number in wanted or trial.baseline == "recipe"]


def unmeasured(record: StudyRecord, top: int = 3) -> Verdict:
    """Return the verdict on a study whose settings were trained with one seed each."""
    known = [_contestant(record, trial) for trial in contestants(record, top)]
    return verdict(
        known[0] if known else None, known[1:], metric=record.metric, mode=record.mode, split="val"
    )


def of(record: StudyRecord) -> Verdict:
    """Return the verdict that every view of the study shows."""
    return unmeasured(record)


def _contestant(record: StudyRecord, trial: TrialRecord) -> Contestant:
    return Contestant(
        trial=trial.id,
        strategy=str(trial.params.get("strategy", "unknown")),
        baseline=trial.baseline,
        chosen=trial.metrics["best"][record.metric],
    )


def _once(trials: Iterable[TrialRecord]) -> Iterable[TrialRecord]:
    seen = set()
    for trial in trials:
        setting = json.dumps(trial.params, sort_keys=True, default=str)
        if trial.baseline or setting not in seen:
            yield trial
        seen.add(setting)
