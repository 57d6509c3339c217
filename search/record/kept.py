"""Keep the weights of the best trials in a study's folder, over all runs of the study; delete the others."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from finetune.metrics import Objective
from finetune.objectives import Goal, Point, fronts
from search.record.records import TrialRecord, lineage
from search.record.study_folder import StudyFolder


class _Entry(NamedTuple):
    """A trial in the order of trials: complete ones that satisfy all constraints first, then better ones."""

    last: bool
    """True for a trial that is not complete or breaks a constraint."""
    key: float
    number: int
    id: str
    point: Point | None
    """Its point among the objectives; None if it cannot be on the front."""


class Kept:
    """The best `count` trials that have weights on disk, those of earlier runs included.

    With several objectives the trials of the Pareto front are kept besides.
    """

    def __init__(
        self,
        folder: StudyFolder,
        *,
        objective: Objective,
        count: int,
        earlier: Iterable[TrialRecord],
        goal: Goal | None = None,
    ) -> None:
        self._folder, self._count, self._objective = folder, count, objective
        self._goal = goal or Goal(objective.metric)
        metric = objective.metric
        ranked = sorted(
            self._entry(t.number, t.id, t.state == "COMPLETE", t.metrics["best"][metric], t.measured)
            for t in earlier
            if t.state in ("COMPLETE", "PRUNED") and metric in t.metrics["best"]
        )
        # A trial whose weights are gone must not take the place of one that has them.
        there = [entry for entry in ranked if folder.best_weights(entry.id).exists()]
        self._entries, _ = self._split(there)

    def add(
        self,
        number: int,
        trial_id: str,
        *,
        complete: bool,
        value: float,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """Enter a trial that has ended, and delete the weights of the trials that it displaces."""
        this = self._entry(number, trial_id, complete, value, measured or {})
        self._entries, dropped = self._split(sorted([*self._entries, this]))
        for entry in dropped:
            self._folder.best_weights(entry.id).unlink(missing_ok=True)

    def sweep(self, trials: Sequence[TrialRecord]) -> None:
        """Delete the files that no trial needs any more.

        Call this last, since slots may write late. An interrupted trial keeps its files until another trial
        has continued it.
        """
        kept = {entry.id for entry in self._entries}
        continued = {trial.continues for trial in trials}
        wanted = [trial.number for trial in trials if trial.interrupted and trial.number not in continued]
        needed = {number for last in wanted for number in lineage(last, trials)}
        for trial in trials:
            if trial.state not in ("COMPLETE", "PRUNED", "FAIL") or trial.number in needed:
                continue
            self._folder.last_weights(trial.id).unlink(missing_ok=True)
            if trial.id not in kept:
                self._folder.best_weights(trial.id).unlink(missing_ok=True)

    def _split(self, entries: list[_Entry]) -> tuple[list[_Entry], list[_Entry]]:
        """Return the entries that are kept and those that are not."""
        front: set[int] = set()
        if self._goal.objectives:
            able = [entry for entry in entries if entry.point is not None]
            first = next(iter(fronts([entry.point for entry in able if entry.point])), [])
            front = {able[place].number for place in first}
        best = {entry.number for entry in entries[: self._count]} | front
        kept = [entry for entry in entries if entry.number in best]
        return kept, [entry for entry in entries if entry.number not in best]

    def _entry(
        self, number: int, trial_id: str, complete: bool, value: float, measured: Mapping[str, float]
    ) -> _Entry:
        able = complete and not self._goal.excess(measured)
        point = self._goal.point(value, measured) if able and self._goal.objectives else None
        return _Entry(not able, self._objective.key(value), number, trial_id, point)
