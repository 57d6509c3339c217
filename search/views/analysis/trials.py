"""The course of a search, worked out from its trials: counts, best so far, gains, costs, failures."""

import math
from collections import Counter
from statistics import median
from typing import Any

from search.record.records import EXACT, STATES, StudyRecord, TrialRecord, standing
from search.views import ranking
from search.views.ranking import INTERRUPTED, ranked, score

GROUPS = (("best 10 %", 0.1), ("next 20 %", 0.3), ("next 30 %", 0.6), ("the rest", 1.0))
"""Groups of trials by score: name, and share of trials up to which they reach."""
FROZEN = (("all blocks frozen", 1.0), ("most blocks frozen", 0.5), ("few blocks frozen", 0.0))
"""Groups of trials by how much is frozen: name, and least share of the blocks."""


def scored(study: StudyRecord) -> list[TrialRecord]:
    """Return the trials that have a score, in the order of suggestion."""
    return [trial for trial in standing(study.trials) if score(study, trial) is not None]


def counts(study: StudyRecord) -> dict[str, Any]:
    """Return how many trials there are: those that count as trials of the study, exact heads, by state."""
    trials = standing(study.trials)
    states = Counter(ranking.state_of(trial) for trial in trials)
    solved = sum(trial.baseline == EXACT for trial in trials)
    return {
        "trials": len(trials) - solved,
        "exact": solved,
        "all": len(trials),
        "complete": states["COMPLETE"],
        "states": {state: states[state] for state in (*STATES, INTERRUPTED) if states[state]},
    }


def ranks(study: StudyRecord) -> dict[str, int]:
    """Return the rank of each complete trial that has a score and keeps the constraints, by id."""
    order = enumerate(ranked(study), start=1)
    return {trial.id: rank for rank, trial in order if ranking.has_rank(study, trial)}


def baselines(study: StudyRecord) -> list[dict[str, Any]]:
    """Return the baselines, with how far the best trial is ahead of each that has completed."""
    best = study.best
    found = []
    for trial in standing(study.trials):
        if trial.baseline is None:
            continue
        value, gain = score(study, trial), None
        if best is not None and value is not None and trial.state == "COMPLETE":
            gain = study.objective.gain(best.metrics["best"][study.metric], value)
        found.append({"baseline": trial.baseline, "trial": trial.id, "winner_ahead_by": gain})
    return found


def best_so_far(study: StudyRecord) -> dict[str, Any] | None:
    """Return the score of each trial as it ended, with the time and the cost until then; None without scores.

    `searched` is the seconds of the search, null in records of older versions; `slot_seconds` is what all
    trials that had ended took of the slots. `best` is the best complete trial until then.
    """
    trials = list(study.trials)
    if all(trial.searched is not None for trial in trials):
        trials.sort(key=lambda trial: (trial.searched or 0.0, trial.number))
    points: list[dict[str, Any]] = []
    spent, best = 0.0, None
    for trial in trials:
        spent += trial.seconds
        value = score(study, trial)
        if value is None or trial.interrupted:
            continue
        first = best is None or study.objective.is_better(value, best.metrics["best"][study.metric])
        if trial.state == "COMPLETE" and not study.breaks(trial) and first:
            best = trial
        points.append(
            {
                "trial": trial.id,
                "searched": trial.searched,
                "slot_seconds": round(spent, 3),
                "score": value,
                "best": None if best is None else best.id,
            }
        )
    if not points:
        return None
    values = [point["score"] for point in points]
    return {
        "points": points,
        "slot_seconds": round(spent, 3),
        "searched": None if any(p["searched"] is None for p in points) else points[-1]["searched"],
        "lowest": min(values),
        "highest": max(values),
    }


def groups(study: StudyRecord) -> list[tuple[str, list[TrialRecord]]]:
    """Return the trials in groups by score, the best group first; empty groups are left out."""
    order = sorted(scored(study), key=lambda t: study.objective.key(t.metrics["best"][study.metric]))
    made, begin = [], 0
    for name, share in GROUPS:
        end = max(begin, math.ceil(share * len(order)))
        if order[begin:end]:
            made.append((name, order[begin:end]))
        begin = end
    return made


def group_bounds(study: StudyRecord) -> dict[str, dict[str, float]]:
    """Return number of trials, lowest and highest score of each group."""
    found = {}
    for name, some in groups(study):
        values = [trial.metrics["best"][study.metric] for trial in some]
        found[name] = {"trials": len(some), "lowest": min(values), "highest": max(values)}
    return found


def with_curves(study: StudyRecord) -> list[TrialRecord]:
    """Return the trials that have an epoch with the metric."""
    return [t for t in standing(study.trials) if any(study.metric in epoch for epoch in t.history)]


def curves(study: StudyRecord) -> dict[str, int]:
    """Return how many trials have a learning curve, and what early stopping spared of their epochs."""
    trials = with_curves(study)
    stopped = [trial for trial in trials if trial.state == "PRUNED"]
    return {
        "trials": len(trials),
        "stopped": len(stopped),
        "epochs_spared": sum(study.epochs - trial.epochs for trial in stopped),
        "epochs_of_full_trials": study.epochs * sum(trial.baseline != EXACT for trial in trials),
    }


def costs(study: StudyRecord) -> dict[str, Any]:
    """Return seconds by how much is frozen, the cost and saving of stored features, the verdict's seconds."""
    left = [t for t in standing(study.trials) if t.history and _share_frozen(t) is not None]
    found: list[dict[str, Any]] = []
    for name, least in FROZEN:
        mine = [trial for trial in left if (_share_frozen(trial) or 0.0) >= least]
        left = [trial for trial in left if (_share_frozen(trial) or 0.0) < least]
        if mine:
            found.append(
                {
                    "group": name,
                    "trials": len(mine),
                    "epoch_seconds": median(_epoch_seconds(trial) for trial in mine),
                    "seconds": round(sum(trial.seconds for trial in mine), 3),
                }
            )
    slowdown = None
    if len(found) > 1 and found[0]["group"] == FROZEN[0][0] and found[0]["epoch_seconds"] > 0:
        slowdown = found[-1]["epoch_seconds"] / found[0]["epoch_seconds"]
    again = [float(one["seconds"]) for one in study.repeats]
    return {
        "by_frozen_blocks": found,
        "slowdown_of_the_last_group": slowdown,
        "features": _features(study),
        "verdict": {"trainings": len(again), "seconds": round(sum(again), 3)},
    }


def _features(study: StudyRecord) -> dict[str, Any] | None:
    """Return what stored features cost and saved; None where no trial has read them.

    The saving is an estimate: each epoch that read stored features would have passed the training and
    validation images through the frozen blocks, at the speed at which this study has computed features.
    """
    readers = [t for t in standing(study.trials) if t.effective.get("stored_cut")]
    if not readers:
        return None
    computed = study.features or {"arrays": 0, "images": 0, "seconds": 0.0}
    epochs = sum(trial.epochs for trial in readers if trial.baseline != EXACT)
    images = study.provenance.get("images", {})
    each = images.get("train", 0) + images.get("val", 0)
    saved = None
    if computed["images"] and each:
        saved = round(epochs * each * computed["seconds"] / computed["images"] - computed["seconds"], 3)
    return {**computed, "trials": len(readers), "epochs": epochs, "seconds_saved": saved}


def failures(study: StudyRecord) -> dict[str, Any]:
    """Return the number of failed trials, and the trials of each cause, the most frequent cause first."""
    found = ranking.failures(study)
    causes = [{"cause": one.cause, "trials": [trial.number for trial in one.trials]} for one in found]
    return {"trials": sum(len(one.trials) for one in found), "causes": causes}


def _epoch_seconds(trial: TrialRecord) -> float:
    """Return the seconds of the trial's usual epoch."""
    return median(epoch.get("seconds", 0.0) for epoch in trial.history)


def _share_frozen(trial: TrialRecord) -> float | None:
    """Return the share of the backbone's blocks that the trial froze."""
    frozen, blocks = trial.effective.get("frozen_blocks"), trial.effective.get("blocks")
    count = len(blocks) if isinstance(blocks, list) else blocks
    if not isinstance(frozen, int) or not isinstance(count, int) or not count:
        return None
    return frozen / count
