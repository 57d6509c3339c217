"""Results of earlier trials, as portfolios need them: finished studies, and tables of recorded trials.

A table is a file of JSON lines. A line of a task has `task`, `data` (the name of its images), `backbone`,
`images`, `val_images`, `classes` and `common`, fields that all settings share. A line of a trial has `task`,
`setting` (fields by name, frozen blocks as a share), `scores` (accuracy after each epoch) and `seconds`.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.disk.filesystems import text_of
from search.config import config_file
from search.config.sections import SETTINGS
from search.record import reader
from search.record.records import TrialRecord
from search.record.study_folder import StudyFolder
from search.suggest.space import Space

FIELDS = tuple(name for name, setting in SETTINGS.items() if setting.carried)
"""Fields of a setting that are carried over to another study."""
WORST = 2.0
"""Largest loss that counts, in distances from a study's best trial to its median one."""
ENOUGH = 5
"""Trials that train blocks without which a study tells too little of them."""

Setting = dict[str, Any]


@dataclass(frozen=True)
class Situation:
    """Size and difficulty of a study's data; None where it is not known."""

    images: int | None = None
    """Training images."""
    classes: int | None = None
    frozen: float | None = None
    """Best score of a head on frozen features, from 0 (chance) to 1: near the source task it is high."""

    def far(self, other: "Situation") -> float:
        """Return how far two situations are apart; a factor of ten in images or classes is 1."""
        parts = []
        for mine, theirs in ((self.images, other.images), (self.classes, other.classes)):
            if mine and theirs:
                parts.append(math.log10(mine / theirs))
        if self.frozen is not None and other.frozen is not None:
            parts.append(3 * (self.frozen - other.frozen))
        return math.hypot(*parts) if parts else 0.0


@dataclass(frozen=True)
class Recorded:
    """One finished study, as much of it as a portfolio needs."""

    situation: Situation
    settings: tuple[Setting, ...]
    """Settings of the trials that trained blocks."""
    losses: tuple[float, ...]
    """Distance of each from the study's best: 0 is the best, 1 the median, at most WORST."""


@dataclass(frozen=True)
class Task:
    """One task of a table of recorded trials."""

    name: str
    data: str
    """Name of its images, which several tasks may share."""
    backbone: str
    images: int
    """Training images."""
    val_images: int
    classes: int
    settings: list[Setting] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)
    """Accuracy of each setting after each epoch."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of each whole trial."""

    @property
    def situation(self) -> Situation:
        """Size and difficulty of the task."""
        heads = [max(c) for s, c in zip(self.settings, self.curves, strict=True) if s["frozen_layers"] == 1]
        return _situation(self.images, self.classes, heads)

    def recorded(self) -> Recorded | None:
        """Return what the task tells of trials that train blocks; None if it tells too little."""
        trained = [
            (setting, max(curve))
            for setting, curve in zip(self.settings, self.curves, strict=True)
            if setting["frozen_layers"] < 1
        ]
        if len(trained) < ENOUGH:
            return None
        settings, scores = zip(*trained, strict=True)
        return Recorded(self.situation, settings, losses_of(scores))


def tasks(table: Path) -> list[Task]:
    """Return the tasks of a table of recorded trials."""
    found: dict[str, Task] = {}
    common: dict[str, Setting] = {}
    for line in text_of(table).splitlines():
        said = json.loads(line)
        name = said.pop("task")
        if "setting" not in said:
            common[name] = said.pop("common", {})
            found[name] = Task(name, **said)
            continue
        found[name].settings.append(common[name] | said["setting"])
        found[name].curves.append(said["scores"])
        found[name].seconds.append(said["seconds"])
    return list(found.values())


def read_study(folder: Path) -> Recorded | None:
    """Return what a finished study tells of trials that train blocks; None if it tells too little.

    Raises:
        StudyError: the folder holds no study, or its record cannot be read.
    """
    found = StudyFolder.open(folder)
    config = config_file.load(found.config)
    trials, facts = reader.read(found.database)
    space = Space(config)
    ended = [t for t in trials if t.state in ("COMPLETE", "PRUNED") and "weights" not in t.params]
    scored = [(t, config.study.objective.worth(t.metrics["best"][config.study.metric])) for t in ended
              if config.study.metric in t.metrics["best"]]  # fmt: skip
    trained = [(t, score) for t, score in scored if space.trains(t.params)]
    if len(trained) < ENOUGH:
        return None
    scores = [score for _, score in trained]
    return Recorded(
        situation_of(facts, scored, space),
        tuple(setting_of(trial.params, space.trained_share(trial.params)) for trial, _ in trained),
        losses_of(scores),
    )


def losses_of(scores: Sequence[float]) -> tuple[float, ...]:
    """Return the distance of each score from the best: 0 is the best, 1 the median, at most WORST."""
    best = max(scores)
    spread = max(best - statistics.median(scores), 1e-9)
    return tuple(min((best - score) / spread, WORST) for score in scores)


def setting_of(params: Mapping[str, Any], trained: float) -> Setting:
    """Return the fields of a trial that are carried over, its frozen blocks as a share.

    Args:
        params: values by plain names.
        trained: share of the blocks that the trial trains.
    """
    said = {name: params[name] for name in FIELDS if name in params}
    rates = {name: float(f"{said[name]:.3g}") for name in ("learning_rate", "backbone_rate") if name in said}
    return said | rates | {"frozen_layers": round(1 - trained, 3)}


def situation_of(
    facts: Mapping[str, Any], scored: Sequence[tuple[TrialRecord, float]], space: Space
) -> Situation:
    """Return the situation of a recorded study."""
    images = facts.get("provenance", {}).get("images", {}).get("train") or None
    classes = facts.get("provenance", {}).get("classes")
    return _situation(images, classes, [s for trial, s in scored if not space.trains(trial.params)])


def _situation(images: int | None, classes: int | None, heads: Sequence[float]) -> Situation:
    if not heads or not classes or not 0 <= max(heads) <= 1:
        return Situation(images, classes)
    return Situation(images, classes, round((max(heads) - 1 / classes) / (1 - 1 / classes), 3))
