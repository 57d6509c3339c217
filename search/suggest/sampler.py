"""Optuna behind Ray Tune's `Searcher` interface: suggest the next trial.

Ray's own OptunaSearch can neither warm-start a conditional space nor tell Optuna that a trial was
stopped early. Here the ledger holds the study and this class only suggests; Tune's callback
(driver/callback.py) records in the ledger how each trial went.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from finetune.messages import TrainJob
from finetune.metrics import Objective
from search.record.ledger import Ledger
from search.suggest.chooser import Chooser, Planned
from search.suggest.models.samplers import make

__all__ = ["Planned", "StudySearcher", "Suggested", "make"]


@dataclass(frozen=True)
class Suggested:
    """A trial that was suggested to Tune and has not ended."""

    number: int
    """Number of the trial in the ledger."""
    job: TrainJob
    """Everything that a slot needs to train the trial."""
    plan: Planned | None = None
    """Its plan; None if it was sampled."""
    at: float = field(default_factory=time.monotonic)


class StudySearcher(Searcher):
    """Hand out the trials that the chooser chooses, until all trials of the study are handed out.

    Args:
        ledger: record of the study, which numbers the trials.
        chooser: chooses the trials.
        objective: metric that Tune reads from results, and its direction.
        make_job: makes the job of a trial from its number, parameters and plan (None for a sampled one).
        offer: hands a job to the slots.
        is_over: returns True once no further trial is to be suggested.
    """

    def __init__(
        self,
        ledger: Ledger,
        chooser: Chooser,
        *,
        objective: Objective,
        make_job: Callable[[int, dict[str, Any], Planned | None], TrainJob],
        offer: Callable[[TrainJob], Any],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=objective.metric, mode=objective.mode)
        self._ledger, self._chooser, self._make_job = ledger, chooser, make_job
        self._offer, self._is_over = offer, is_over
        self.suggested: dict[str, Suggested] = {}
        """Trials that have not ended, by Tune's trial id; the callback removes them when they end."""
        self.uncounted = 0
        """Trials handed out that do not count against `study.trials`."""

    @property
    def left(self) -> int:
        """Number of trials that run or are still to be handed out."""
        return len(self.suggested) + self._chooser.left

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher, but nothing is restored from that."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the id of the next trial, or FINISHED; a slot may begin it before Tune starts the trial."""
        if self._is_over():
            return str(Searcher.FINISHED)
        chosen = self._chooser.take()
        if chosen is None:
            return str(Searcher.FINISHED)
        trial = chosen.trial
        # Record the trial before it gets files and a slot, so that nothing is there of an unknown trial.
        self._ledger.suggested(trial.number, chosen.facts)
        job = self._make_job(trial.number, chosen.params, chosen.plan)
        self.suggested[trial_id] = Suggested(trial.number, job, chosen.plan)
        # A slot trains it only when the record on disk has it: a driver that dies would lose its epochs.
        self._ledger.once_written(lambda: self._offer(job))
        if not chosen.counted:
            self.uncounted += 1
        # The slots train meanwhile; asked for only when one is free, the sampler would make it wait.
        self._chooser.prepare()
        # Return the id only: Tune would copy, flatten and write a config of many keys over and over.
        return {"id": job.id}

    @property
    def samples(self) -> bool:
        """True once all planned trials are handed out."""
        return self._chooser.samples

    @property
    def waiting(self) -> int:
        """Number of trials that are still to be suggested."""
        return self._chooser.left

    def strategy_of(self, trial_id: str) -> str | None:
        """Return the strategy of a suggested trial, or None for one that early stopping spares."""
        job = self.suggested[trial_id].job
        return str(job.params["strategy"]) if job.may_be_stopped else None

    def number_of(self, trial_id: str) -> int:
        """Return the number in the study of a suggested trial."""
        return self.suggested[trial_id].number

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: the callback records results, also those that end a trial."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the callback ends trials in the ledger, with the reason if they failed."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a resumed study reads the ledger."""
