"""All that a report is made of, read once: the record as JSON, the verdict and the model's facts."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from search.record.records import StudyRecord, TrialRecord
from search.verdict import contest
from search.verdict.words import Verdict
from search.views import table


@dataclass(frozen=True)
class Material:
    """What the sections of a report read."""

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

    def place(self, trial: TrialRecord) -> tuple[object, ...]:
        """Return the keys of a trial in the JSON."""
        return ("trials", self._places[trial.number])

    @cached_property
    def _places(self) -> dict[int, int]:
        return {trial.number: place for place, trial in enumerate(self.record.trials)}
