"""Keep the weights of the best trials in a study's folder, over all runs of the study; delete the others."""

from collections.abc import Iterable, Sequence
from itertools import islice

from finetune.metrics import Objective
from search.record.records import TrialRecord, lineage
from search.record.study_folder import StudyFolder

_Entry = tuple[bool, float, int, str]
"""Sort key of a trial that ends with its id: complete trials first, then better ones, then earlier ones."""


class Kept:
    """The best `count` trials that have weights on disk, those of earlier runs included."""

    def __init__(
        self, folder: StudyFolder, *, objective: Objective, count: int, earlier: Iterable[TrialRecord]
    ) -> None:
        self._folder, self._count, self._objective = folder, count, objective
        metric = objective.metric
        ranked = sorted(
            self._entry(trial.number, trial.id, trial.state == "COMPLETE", trial.metrics["best"][metric])
            for trial in earlier
            if trial.state in ("COMPLETE", "PRUNED") and metric in trial.metrics["best"]
        )
        # A trial whose weights are gone must not take the place of one that has them.
        self._entries = list(islice((e for e in ranked if folder.best_weights(e[-1]).exists()), count))

    def add(self, number: int, trial_id: str, *, complete: bool, value: float) -> None:
        """Enter a trial that has ended, and delete the weights of the trial that it displaces."""
        self._entries = sorted([*self._entries, self._entry(number, trial_id, complete, value)])
        for *_, dropped in self._entries[self._count :]:
            self._folder.best_weights(dropped).unlink(missing_ok=True)
        del self._entries[self._count :]

    def sweep(self, trials: Sequence[TrialRecord]) -> None:
        """Delete the files that no trial needs any more.

        Call this last, since slots may write late. An interrupted trial keeps its files until another trial
        has continued it.
        """
        kept = {entry[-1] for entry in self._entries}
        continued = {trial.continues for trial in trials}
        wanted = [trial.number for trial in trials if trial.interrupted and trial.number not in continued]
        needed = {number for last in wanted for number in lineage(last, trials)}
        for trial in trials:
            if trial.state not in ("COMPLETE", "PRUNED", "FAIL") or trial.number in needed:
                continue
            self._folder.last_weights(trial.id).unlink(missing_ok=True)
            if trial.id not in kept:
                self._folder.best_weights(trial.id).unlink(missing_ok=True)

    def _entry(self, number: int, trial_id: str, complete: bool, value: float) -> _Entry:
        return not complete, self._objective.key(value), number, trial_id
