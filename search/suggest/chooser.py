"""The order of a study's trials: planned ones first, then those that bandit and sampler choose.

The next trial is chosen when the one before it is handed out, so no slot waits for the sampler. It is chosen
without the results of trials that end in between; with one slot, that is without the result of one trial.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from finetune.objectives import Goal
from search.record.ledger import Ledger
from search.suggest.bandit import Bandit
from search.suggest.space import Space

HEAD_COST = 0.01
"""Cost of an epoch of a head on frozen features, where an epoch that trains every block costs 1."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A trial with given parameters: a baseline, a start, or an interrupted trial to continue."""

    params: dict[str, Any]
    baseline: str | None = None
    continues: int | None = None
    """Number of the interrupted trial that this one continues."""
    seed_of: int | None = None
    """Number of the trial whose seed this one uses: the first of a chain of interrupted trials."""
    counted: bool = True
    """Whether the trial counts against `study.trials`."""


@dataclass(frozen=True)
class Next:
    """A trial that was chosen and not handed out yet."""

    trial: optuna.Trial
    params: dict[str, Any]
    plan: Planned | None
    counted: bool

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the trial for the record."""
        facts: dict[str, Any] = {"params": self.params}
        if self.plan is not None:
            plan = self.plan
            set_by = {"baseline": plan.baseline, "continues": plan.continues, "seed_of": plan.seed_of}
            facts |= {name: fact for name, fact in set_by.items() if fact is not None}
        return facts if self.counted else facts | {"counted": False}


class Chooser:
    """Choose trials until all of a study are handed out.

    Args:
        ledger: record of the study, whose sampler is asked.
        space: search space of the study.
        planned: trials with given parameters, in their order.
        sampled: counted trials to sample after them.
        epochs: epochs of a trial that is not stopped.
        arms: each strategy, and whether its trials count; None: the sampler chooses strategies, and every
            trial counts.
        goal: the study's constraints: a trial that breaks one is a failed one to the bandit; None: there are
            none.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        *,
        planned: Iterable[Planned],
        sampled: int,
        epochs: int = 1,
        arms: Mapping[str, bool] | None = None,
        goal: Goal | None = None,
    ) -> None:
        self._goal = goal
        self._ledger, self._space, self._epochs = ledger, space, epochs
        self._planned, self._sampled = deque(planned), sampled
        self._arms = arms if arms is not None and len(arms) > 1 else None
        self._bandit = Bandit(arms or {}, ledger.objective)
        self._next: Next | None = None
        self._chosen = False
        for trial in ledger.trials:
            self._learn(trial)

    @property
    def left(self) -> int:
        """Number of trials that are still to be handed out, of those that do not count only the planned."""
        waiting = self._chosen and self._next is not None and (self._next.plan or self._next.counted)
        return len(self._planned) + self._sampled + bool(waiting)

    @property
    def samples(self) -> bool:
        """True once all planned trials are handed out."""
        return not self._planned and not (self._chosen and self._next is not None and self._next.plan)

    def take(self) -> Next | None:
        """Return the next trial, or None after the last one; call `prepare` when it is handed out."""
        self.prepare()
        self._chosen = False
        return self._next

    def prepare(self) -> None:
        """Choose the trial that `take` will return."""
        if not self._chosen:
            self._next = self._choose()
            self._chosen = True

    def _choose(self) -> Next | None:
        self._follow()
        if self._planned:
            plan = self._planned.popleft()
            # Parameters outside the space stay hidden from Optuna: it would learn from values nobody sampled.
            held = self._space.holds(plan.params)
            trial = self._ledger.ask(self._space.enqueue_params(plan.params) if held else None)
            params = self._space.suggest(trial) if held else plan.params
            counted = plan.counted
        elif self._sampled > 0:
            plan, counted = None, True
            arm = self._bandit.choose() if self._arms is not None else None
            trial = self._ledger.ask(None if arm is None else {"strategy": arm})
            params = self._space.suggest(trial)
            if self._arms is not None:
                counted = self._space.trains(params) or all(self._arms.values())
            self._sampled -= counted
        else:
            return None
        if plan is None or plan.baseline is None:
            self._bandit.begin(trial.number, params["strategy"], self._epochs * self._cost(params))
        return Next(trial, params, plan, counted)

    def _follow(self) -> None:
        """Tell the bandit which trials have ended since."""
        ended = [number for number in self._bandit.running if not self._ledger.is_open(number)]
        trials = self._ledger.trials if ended else []
        for number in ended:
            self._end(trials[number])

    def _learn(self, trial: FrozenTrial) -> None:
        """Tell the bandit of a trial of an earlier run."""
        facts = trial.user_attrs
        if trial.state.is_finished() and "params" in facts and not facts.keys() & {"baseline", "interrupted"}:
            self._bandit.begin(trial.number, facts["params"].get("strategy", ""), 0.0)
            self._end(trial)

    def _end(self, trial: FrozenTrial) -> None:
        values = [value for value in trial.intermediate_values.values() if math.isfinite(value)]
        breaks = self._goal is not None and self._goal.excess(trial.user_attrs.get("measured", {})) > 0
        value = (
            max(values, key=self._ledger.objective.worth)
            if values and trial.state != TrialState.FAIL and not breaks
            else None
        )
        # A trial that failed in its first epoch has cost something, too.
        epochs = max(1, len(trial.intermediate_values))
        self._bandit.end(trial.number, value, epochs * self._cost(trial.user_attrs.get("params", {})))

    def _cost(self, params: Mapping[str, Any]) -> float:
        return HEAD_COST + self._space.trained_share(params)
