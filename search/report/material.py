"""All that a report is made of, read once: the record, the verdict and the best model's answers."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.disk.filesystems import text_of
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from search.verdict import contest
from search.verdict.answers import Answers
from search.verdict.words import Scale, Verdict
from search.views import table


@dataclass(frozen=True)
class Material:
    """The data that the sections of a report read."""

    record: StudyRecord
    shareable: bool = False
    """Leave out images, paths and names."""

    @cached_property
    def json(self) -> dict[str, Any]:
        """The content of `results --json --history`; numbers of the page are taken from it."""
        return table.to_json(self.record, history=True)

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict that every view of the study shows."""
        return contest.of(self.record)

    @cached_property
    def ranked(self) -> list[TrialRecord]:
        """Trials by state and score."""
        return table.ranked(self.record)

    @property
    def scale(self) -> Scale:
        """Format of scores and differences."""
        return Scale(self.record.metric)

    @property
    def metric(self) -> str:
        """The study's metric as people read it; a shareable page does not name a class."""
        name = self.record.metric
        return "val/recall of a class" if self.shareable and "/recall/" in name else name

    def score(self, trial: TrialRecord) -> float | None:
        """Return a trial's best score, or None."""
        return trial.metrics["best"].get(self.record.metric)

    def place(self, trial: TrialRecord) -> tuple[object, ...]:
        """Return the keys of a trial in the JSON."""
        return ("trials", self._places[trial.number])

    @cached_property
    def _places(self) -> dict[int, int]:
        return {trial.number: place for place, trial in enumerate(self.record.trials)}

    @property
    def model(self) -> dict[str, Any] | None:
        """Facts of the best trial in its model folder; None where it was not exported."""
        found: dict[str, Any] | None = self.json["model"]
        return found

    @cached_property
    def split(self) -> str:
        """The images on which the best model is shown: `test`, or `validation` where there are none."""
        model = self.model
        return "test" if model is not None and model["metrics"].get("test") else "validation"

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes; in a shareable page `class 1`, `class 2`, ..."""
        names = self.names
        return [f"class {i}" for i in range(1, len(names) + 1)] if self.shareable else names

    @property
    def names(self) -> list[str]:
        """Names of the classes as the JSON has them."""
        return [str(name) for name in self.model["classes"]] if self.model else []

    @cached_property
    def answers(self) -> Answers | None:
        """The answers of the best model on `split`; None where the record has none."""
        if self.record.best is None or self.model is None:
            return None
        path = StudyFolder(Path(self.record.folder)).answers(self.record.best.id)
        try:
            found = contest.load_answers(path, "test" if self.split == "test" else "val")
        except (OSError, KeyError, ValueError):
            return None
        return found if found.labels.size and found.labels.max() < len(self.names) else None

    @cached_property
    def mistakes(self) -> list[dict[str, Any]]:
        """The most confident mistakes with pictures; none in a shareable page."""
        if self.record.best is None or self.shareable or self.model is None:
            return []
        path = StudyFolder(Path(self.record.folder)).mistakes(self.record.best.id)
        try:
            found: list[dict[str, Any]] = json.loads(text_of(path))
        except (OSError, ValueError):
            return []
        return found

    @cached_property
    def explained(self) -> dict[str, Any]:
        """Maps and neighbours of the mistakes, and doubtful labels; nothing in a shareable page."""
        if self.record.best is None or self.shareable or self.model is None:
            return {}
        path = StudyFolder(Path(self.record.folder)).explained(self.record.best.id)
        try:
            found = json.loads(text_of(path))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def config(self) -> str:
        """The text of study.yaml."""
        path = StudyFolder(Path(self.record.folder)).config
        try:
            return text_of(path)
        except OSError:
            return ""
