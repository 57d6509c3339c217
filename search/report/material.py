"""All that a report is made of, read once: the record, its JSON, and the pictures kept beside it.

Sections take numbers and words from the JSON by their keys, so each of them names its place in
`results --json --history`, and the page cannot say anything else than the JSON.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.disk.filesystems import text_of
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from search.report import html
from search.report.html import Markup
from search.verdict import contest
from search.verdict.words import Scale, Verdict
from search.views import ranking, table
from search.views.analysis import kept
from search.views.terminal import seconds_text


@dataclass(frozen=True)
class Material:
    """The data that the sections of a report read."""

    record: StudyRecord
    shareable: bool = False
    """Leave out images, paths and names."""

    @cached_property
    def json(self) -> dict[str, Any]:
        """The content of `results --json --history`."""
        return table.to_json(self.record, history=True)

    @property
    def analysis(self) -> dict[str, Any]:
        """What is worked out from the record; see `search.views.analysis`."""
        found: dict[str, Any] = self.json["analysis"]
        return found

    def value(self, *keys: object) -> Any:
        """Return the value at these keys of the JSON; None where there is none."""
        found: Any = self.json
        for key in keys:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def number(self, shown: str, *keys: object) -> Markup:
        """Return a number of the JSON in a format; a list stands for its length."""
        found = self.value(*keys)
        return html.number(len(found) if isinstance(found, list) else found, shown, *self._source(keys))

    def percent(self, digits: int, *keys: object) -> Markup:
        """Return a share of the JSON in per cent."""
        return html.told(f"{100 * self.value(*keys):.{digits}f} %", self.value(*keys), *keys)

    def gain(self, *keys: object) -> Markup:
        """Return a difference of scores with its sign; a dash where there is none."""
        found = self.value(*keys)
        if found is None or not math.isfinite(found):
            return Markup("–")
        return html.told(self.scale.gain(found), found, *keys)

    def duration(self, *keys: object) -> Markup:
        """Return seconds of the JSON as people say them."""
        return html.told(seconds_text(self.value(*keys)), self.value(*keys), *keys)

    def quote(self, *keys: object) -> Markup:
        """Return text of the JSON, or another value as text."""
        return html.quoted(self.value(*keys), *keys)

    def named(self, *keys: object) -> Markup:
        """Return the last of these keys, which is a name there."""
        return html.quoted(keys[-1], *keys)

    def _source(self, keys: tuple[object, ...]) -> tuple[object, ...]:
        """Return the keys for the page; none where they name a class that a shareable page may not name."""
        return () if self.shareable and any("recall/" in str(key) for key in keys) else keys

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict that every view of the study shows."""
        return contest.of(self.record)

    @cached_property
    def ranked(self) -> list[TrialRecord]:
        """Trials by state and score."""
        return ranking.ranked(self.record)

    @property
    def scale(self) -> Scale:
        """Format of scores and differences."""
        return Scale(self.record.metric)

    @property
    def metric(self) -> str:
        """The study's metric as people read it; a shareable page does not name a class."""
        name = self.record.metric
        return "val/recall of a class" if self.shareable and "/recall/" in name else name

    def score_of(self, trial: TrialRecord) -> Markup:
        """Return a trial's best score for the page."""
        return self.number(".4f", *self.place(trial), "metrics", "best", self.record.metric)

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
        return "validation" if self.model is None else kept.split_of(self.model)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes; in a shareable page `class 1`, `class 2`, ..."""
        names = self.names
        return [f"class {i}" for i in range(1, len(names) + 1)] if self.shareable else names

    @property
    def names(self) -> list[str]:
        """Names of the classes as the JSON has them."""
        return [str(name) for name in self.model["classes"]] if self.model else []

    def class_name(self, number: int, most: int | None = None) -> Markup:
        """Return the name of a class for the page, cut to `most` characters if there is a limit."""
        name = self.classes[number]
        if most is not None and len(name) > most:
            name = f"{name[: most - 2]}…"
        return html.text(name) if self.shareable else html.quoted(name, "model", "classes", number)

    @cached_property
    def pictures(self) -> list[dict[str, Any]]:
        """The most confident mistakes with pictures; none in a shareable page."""
        return [] if self.shareable or self.model is None else kept.mistakes(self.record)

    @cached_property
    def explained(self) -> dict[str, Any]:
        """Maps and neighbours of the mistakes, and doubtful labels; nothing in a shareable page."""
        return {} if self.shareable or self.model is None else kept.explained(self.record)

    @cached_property
    def config(self) -> str:
        """The text of study.yaml."""
        path = StudyFolder(Path(self.record.folder)).config
        try:
            return text_of(path)
        except OSError:
            return ""
