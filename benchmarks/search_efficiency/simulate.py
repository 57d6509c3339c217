"""A search on recorded curves: workers that train at once, in simulated time, and the product's own parts.

The sampler, the portfolio and early stopping are those of `search.suggest`. Simulated are only the workers,
which take as long for an epoch as the surrogate says, and the scores that they report.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState

from benchmarks.search_efficiency.tables import Config, Surrogate
from finetune.metrics import Objective
from search.suggest.models import samplers
from search.suggest.stopping import EarlyStopping, Rule

METRIC = "val/accuracy"
CHECKPOINTS = (5, 10, 25, 50)
"""Full trainings after which the best score so far is noted."""


@dataclass(frozen=True)
class Method:
    """One way to search."""

    name: str
    sampler: str = "tpe"
    portfolio: int = 0
    """Number of first trials from the portfolio."""
    stopping: Rule = "asha"
    grace: float = 1 / 8
    """Share of the epochs that every trial may train, two epochs at least."""
    start_up: int = samplers.START_UP
    """Ended trials before the sampler's model is asked."""
    multivariate: bool = True
    """Whether TPE chooses the fields of a trial together."""
    ahead: bool = False
    """Ask for a trial before a worker is free, and so without the result that frees it."""


@dataclass(frozen=True)
class Outcome:
    """Best score of one search after so many full trainings, and after as many at the average cost."""

    by_trainings: tuple[float, ...]
    by_cost: tuple[float, ...]
    trials: int


class Simulation:
    """One search by one method on one task.

    Args:
        surrogate: says how each configuration trains.
        task: position of the task.
        method: the way to search.
        seed: of the sampler.
        first: configurations to try first.
        unit: seconds of an average full training.
        workers: trials that train at once.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        task: int,
        method: Method,
        *,
        seed: int,
        first: Sequence[Config] = (),
        unit: float = 1.0,
        workers: int = 4,
    ) -> None:
        self._surrogate, self._task, self._method = surrogate, task, method
        self._epochs = surrogate.tables.epochs
        self._unit, self._workers = unit, workers
        sampler = samplers.make(
            method.sampler, seed=seed, start_up=method.start_up, multivariate=method.multivariate
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        for config in first[: method.portfolio]:
            self._study.enqueue_trial(config)
        self._stopping = EarlyStopping(
            objective=Objective(METRIC),
            epochs=self._epochs,
            grace=max(2, math.ceil(self._epochs * method.grace)),
            factor=3,
            rule=method.stopping,
            strategy_of=lambda name: "all",
            number_of=int,
        )
        self._asked: deque[tuple[optuna.Trial, Config]] = deque()
        self._best, self._trained, self._cost = 0.0, 0, 0.0
        self._by_trainings: list[float] = []
        self._by_cost: list[float] = []

    def run(self) -> Outcome:
        """Search until the last checkpoint."""
        order = itertools.count()
        events: list[tuple[float, int, Any]] = []
        for _ in range(self._workers):
            running = self._begin()
            events.append((running.seconds, next(order), running))
        heapq.heapify(events)
        while len(self._by_trainings) < len(CHECKPOINTS):
            now, _, running = heapq.heappop(events)
            if self._epoch(running):
                running = self._begin()
            heapq.heappush(events, (now + running.seconds, next(order), running))
        missing = len(CHECKPOINTS) - len(self._by_cost)
        costs = (*self._by_cost, *[self._best] * missing)
        return Outcome(tuple(self._by_trainings), costs, len(self._study.trials))

    def _begin(self) -> Any:
        """Return the next trial, and ask for the one after it."""
        if not self._asked:
            self._ask()
        trial, config = self._asked.popleft()
        if self._method.ahead:
            self._ask()
        curves, seconds = self._surrogate.predict([config], self._task)
        name = str(trial.number)
        return SimpleNamespace(
            trial=trial, trial_id=name, curve=curves[0], seconds=float(seconds[0]), epoch=0, best=0.0
        )

    def _ask(self) -> None:
        trial = self._study.ask()
        self._asked.append((trial, self._surrogate.tables.suggest(trial)))

    def _epoch(self, running: Any) -> bool:
        """Train one epoch, and return True if the trial ends with it."""
        value = float(running.curve[running.epoch])
        running.epoch += 1
        running.best = max(running.best, value)
        self._count(running, value)
        running.trial.report(value, running.epoch)
        result = {"epoch": running.epoch, METRIC: value}
        stop = self._stopping.on_trial_result(None, running, result) == "STOP"
        if not stop and running.epoch < self._epochs:
            return False
        self._stopping.on_trial_complete(None, running, result)
        if running.epoch == self._epochs:
            self._study.tell(running.trial, running.best)
        else:
            self._study.tell(running.trial, state=TrialState.PRUNED)
        return True

    def _count(self, running: Any, value: float) -> None:
        self._best = max(self._best, value)
        self._trained += 1
        self._cost += running.seconds
        spent = self._trained / self._epochs, self._cost / self._unit
        for notes, done in zip((self._by_trainings, self._by_cost), spent, strict=True):
            while len(notes) < len(CHECKPOINTS) and done >= CHECKPOINTS[len(notes)]:
                notes.append(self._best)
