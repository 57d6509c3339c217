"""Optuna behind Ray Tune's `Searcher` interface: suggest the next trial.

Ray's own OptunaSearch can neither warm-start a conditional space nor tell Optuna that a trial was
stopped early. Here the ledger holds the study and this class only suggests; Tune's callback
(driver/callback.py) records in the ledger how each trial went.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from optuna.samplers import BaseSampler, RandomSampler
from ray.tune.search import Searcher

from finetune.messages import TrainJob
from search.record.ledger import Ledger
from search.suggest.space import Space
from search.suggest.tpe import BoundedTPE


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A trial with given parameters: a baseline, a start, or an interrupted trial to continue."""

    params: dict[str, Any]
    baseline: str | None = None
    continues: int | None = None
    """Number of the interrupted trial that this one continues."""
    seed_of: int | None = None
    """Number of the trial whose seed this one uses: the first of a chain of interrupted trials."""


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


def make(name: str, *, seed: int) -> BaseSampler:
    """Return the Optuna sampler of a name, `tpe` or `random`."""
    return RandomSampler(seed=seed) if name == "random" else BoundedTPE(seed=seed)


class StudySearcher(Searcher):
    """Suggest the planned trials first, then sampled ones, until all trials of the study are handed out.

    Args:
        ledger: record of the study, which numbers the trials.
        space: search space of the study.
        metric: metric that Tune reads from results.
        mode: `max` or `min`.
        planned: trials with given parameters, in the order in which they are suggested.
        sampled: number of trials to sample after them.
        make_job: makes the job of a trial from its number, parameters and plan (None for a sampled one).
        offer: hands a job to the slots.
        is_over: returns True once no further trial is to be suggested.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        *,
        metric: str,
        mode: str,
        planned: Iterable[Planned],
        sampled: int,
        make_job: Callable[[int, dict[str, Any], Planned | None], TrainJob],
        offer: Callable[[TrainJob], Any],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._ledger, self._space, self._make_job = ledger, space, make_job
        self._offer = offer
        self._planned, self._sampled = deque(planned), sampled
        self._is_over = is_over
        self.suggested: dict[str, Suggested] = {}
        """Trials that have not ended, by Tune's trial id; the callback removes them when they end."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher, but nothing is restored from that."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the id of the next trial, or FINISHED; a slot may begin it before Tune starts the trial."""
        if self._is_over():
            return str(Searcher.FINISHED)
        if self._planned:
            plan = self._planned.popleft()
            # Parameters outside the space stay hidden from Optuna: it would learn from values nobody sampled.
            held = self._space.holds(plan.params)
            trial = self._ledger.ask(self._space.enqueue_params(plan.params) if held else None)
            params = self._space.suggest(trial) if held else plan.params
        elif self._sampled > 0:
            self._sampled -= 1
            plan = None
            trial = self._ledger.ask()
            params = self._space.suggest(trial)
        else:
            return str(Searcher.FINISHED)
        job = self._make_job(trial.number, params, plan)
        facts: dict[str, Any] = {"params": params}
        if plan is not None:
            set_by = {"baseline": plan.baseline, "continues": plan.continues, "seed_of": plan.seed_of}
            facts |= {name: fact for name, fact in set_by.items() if fact is not None}
        # Record the trial before a slot can begin it, so that no result arrives for an unknown trial.
        self._ledger.suggested(trial.number, facts)
        self.suggested[trial_id] = Suggested(trial.number, job, plan)
        self._offer(job)
        # Return the id only: Tune would copy, flatten and write a config of many keys over and over.
        return {"id": job.id}

    @property
    def samples(self) -> bool:
        """True once all planned trials are handed out."""
        return not self._planned

    @property
    def left(self) -> int:
        """Number of trials that are still to be suggested."""
        return len(self._planned) + self._sampled

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
