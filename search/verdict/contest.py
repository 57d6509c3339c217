"""Which settings of a study are compared, and what its record knows about them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from search.config.sections import EXACT
from search.record.records import StudyRecord, TrialRecord, standing
from search.record.study_folder import StudyFolder
from search.verdict import words
from search.verdict.answers import Answers, credits_of
from search.verdict.paired import Runs
from search.verdict.words import Contestant, Verdict, verdict

FACT = "repeats"
"""Name of the fact in the record that lists the trainings with other seeds."""
FIRST_SEED = 10**6
"""Trainings with other seeds take their seeds as trials from this number on would."""


def contestants(record: StudyRecord, top: int) -> list[TrialRecord]:
    """Return the trials to compare: the best `top`, the recipe, and the best of each strategy.

    The winner comes first and the others by score; those that break a constraint only
    if they are baselines. A setting that was tried twice counts once.
    """
    metric, key = record.metric, record.objective.key
    if record.best is None:
        return []
    done = [t for t in standing(record.trials) if t.state == "COMPLETE" and metric in t.metrics["best"]]
    done.sort(key=lambda t: (record.breaks(t), key(t.metrics["best"][metric]), t.number))
    done = list(_once(t for t in done if t.baseline or not record.breaks(t)))
    first_of = {str(trial.params.get("strategy")): trial for trial in reversed(done)}
    wanted = {trial.number for trial in (*done[:top], *first_of.values())}
    return [trial for trial in done if trial.number in wanted or trial.baseline == "recipe"]


def seeds_of(trial: TrialRecord, seeds: int) -> int:
    """Return how often a setting is trained again: a head that is solved for has no seed, so once."""
    return min(seeds, 1) if trial.params.get("strategy") == EXACT else seeds


def measured(record: StudyRecord, *, top: int, seeds: int) -> Verdict:
    """Return the verdict on a study from the trainings with other seeds, as its folder keeps them."""
    chosen = contestants(record, top)
    folder = StudyFolder(Path(record.folder))
    split = "val" if record.provenance.get("images", {}).get("test") == 0 else "test"
    classes = _classes(record)
    known = [_contestant(record, trial, seeds, folder, split, classes) for trial in chosen]
    return verdict(known[0] if known else None, known[1:], objective=record.objective, split=split)


def of(record: StudyRecord) -> Verdict:
    """Return the verdict that every view of a study shows.

    It is the one in the record, unless the study has not been measured, or has another winner since.
    """
    if record.verdict is not None:
        told = words.from_json(record.verdict)
        if told.winner == (record.best.id if record.best else None):
            return told
    chosen = contestants(record, top=2)
    known = [_contestant(record, trial) for trial in chosen]
    return verdict(known[0] if known else None, known[1:], objective=record.objective, split="val")


def load_answers(path: Path, split: str) -> Answers:
    """Return the answers of a model on a split, as an export or a training with another seed kept them.

    Raises:
        OSError: the file cannot be read.
        KeyError, ValueError: it does not hold the split, or is damaged.
    """
    with np.load(path, allow_pickle=False) as kept:
        found = {name: kept[f"{split}/{name}"] for name in ("labels", "predicted", "confidence", "of_label")}
        return Answers(
            labels=found["labels"].astype(np.int64),
            predicted=found["predicted"].astype(np.int64),
            confidence=found["confidence"].astype(np.float64),
            of_label=found["of_label"].astype(np.float64),
            in_top5=kept[f"{split}/in_top5"],
            calibrated=kept[f"{split}/calibrated"].astype(np.float64),
        )


def _contestant(
    record: StudyRecord,
    trial: TrialRecord,
    seeds: int = 0,
    folder: StudyFolder | None = None,
    split: str = "",
    classes: list[str] | None = None,
) -> Contestant:
    repeats = [one for one in record.repeats if one["trial"] == trial.id and folder is not None]
    again, shares = [], []
    for one in repeats:
        if one["state"] != "COMPLETE" or folder is None:
            continue
        try:
            answers = load_answers(folder.answers(one["id"]), split)
            shares.append(credits_of(answers, record.metric.removeprefix("val/"), classes or []))
        except (OSError, KeyError, ValueError):  # removed or damaged: that seed is lost
            continue
        again.append(float(one["metrics"][record.metric]))
    runs = None
    if shares and len({len(one) for one in shares}) == 1:
        stacked = np.stack(shares)
        solved = trial.params.get("strategy") == EXACT
        runs = Runs(scores=stacked.mean(axis=1), credits=stacked, solved=solved)
    return Contestant(
        trial=trial.id,
        strategy=str(trial.params.get("strategy", "unknown")),
        baseline=trial.baseline,
        chosen=trial.metrics["best"][record.metric],
        again=tuple(again),
        failed=max(0, seeds_of(trial, seeds) - len(again)),
        runs=runs,
    )


def _classes(record: StudyRecord) -> list[str]:
    names: Any = record.provenance.get("classes", [])
    return [str(name) for name in names]


def _once(trials: Iterable[TrialRecord]) -> Iterable[TrialRecord]:
    seen = set()
    for trial in trials:
        setting = json.dumps(trial.params, sort_keys=True, default=str)
        if trial.baseline or setting not in seen:
            yield trial
        seen.add(setting)
