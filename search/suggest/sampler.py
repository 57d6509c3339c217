"""Optuna behind Tune's `Searcher`: what to try next.

Ray's own OptunaSearch can neither warm-start a conditional space nor tell Optuna that a trial was
stopped early. Here the ledger holds the study; this class only suggests, and the watch (tuner.py)
tells the ledger how each trial went.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from optuna.samplers import BaseSampler, RandomSampler
from ray.tune.search import Searcher

from search.record.ledger import Ledger
from search.suggest.space import Space
from search.suggest.tpe import BoundedTPE


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A trial that is set rather than sampled: a baseline, or one to try again."""

    params: dict[str, Any]
    baseline: str | None = None
    continues: int | None = None
    """Number of the interrupted trial that this one goes on with."""
    seed_of: int | None = None
    """Number of the trial whose seed it uses: the first one that was interrupted."""


@dataclass(frozen=True)
class Suggested:
    """A trial that was suggested and has not ended."""

    number: int
    """In the ledger."""
    job: dict[str, Any]
    at: float = field(default_factory=time.monotonic)


def make(name: str, *, seed: int) -> BaseSampler:
    """Return Optuna's sampler: `tpe` or `random`."""
    return RandomSampler(seed=seed) if name == "random" else BoundedTPE(seed=seed)


class StudySearcher(Searcher):
    """Suggests planned trials first, then sampled ones, until the study's trials are all handed out."""

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        *,
        metric: str,
        mode: str,
        planned: Iterable[Planned],
        sampled: int,
        make_job: Callable[[int, dict[str, Any], Planned | None], dict[str, Any]],
        offer: Callable[[dict[str, Any]], Any],
        deadline: float | None = None,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._ledger, self._space, self._make_job = ledger, space, make_job
        self._offer = offer
        self._planned, self._sampled = deque(planned), sampled
        self._deadline = deadline
        self.suggested: dict[str, Suggested] = {}
        """By Tune's trial id."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher; nothing is restored from that, `resume` reads the ledger."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the job of the next trial, or FINISHED; a slot may begin before Tune starts the trial."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return str(Searcher.FINISHED)
        if self._planned:
            plan = self._planned.popleft()
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
        self._ledger.suggested(trial.number, facts)
        self.suggested[trial_id] = Suggested(trial.number, job)
        self._offer(job)
        # Text, as Tune copies, flattens and writes a config with many keys over and over.
        return {"job": json.dumps(job)}

    def strategy_of(self, trial_id: str) -> str | None:
        """Return the strategy of a suggested trial; None: a baseline, which is never stopped early."""
        job = self.suggested[trial_id].job
        return None if job["spared"] else str(job["params"]["strategy"])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing to do: the watch enters results, also those that end a trial."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to do: the watch ends trials, with the reason where they failed."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a resumed study reads the ledger."""
