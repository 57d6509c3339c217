"""Stop trials early: by a rule among trials of one strategy, and at the end of the study's time."""

import json
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from finetune.metrics import Objective
from finetune.objectives import Goal, Point, ordered
from search.record.records import TrialRecord

Rule = Literal["asha", "median", "hyperband", "none"]
ENOUGH = 3
"""Rivals that must have reached an epoch before the rule `median` judges a trial after it."""


class EarlyStopping(FIFOScheduler):
    """A rule within each strategy; when the budget is spent all trials stop, baselines included.

    A trial is compared with trials of its own strategy only: fine-tuning begins below a probe and ends
    above it, so that a comparison of the two after an epoch or two would be wrong. Trials are compared by
    their best epoch so far, since a trial's final score is that of its best epoch. No trial is stopped after
    its last epoch: nothing would be saved.

    - `asha` (Li et al., MLSys 2020): one in `factor` trials continues after each rung.
    - `hyperband` (Li et al., JMLR 2018): the trials are dealt out in turn to several such rules, of which
      each begins to stop `factor` times later than the one before.
    - `median` (Golovin et al., KDD 2017): a trial ends when it is below the median of the others.

    With several objectives a trial's place among the others is that of MO-ASHA (Schmucker et al., arXiv
    2106.12639): by fronts of trials that no other dominates, and in a front so that they lie far apart. Cost
    is known before the first epoch, and a trial that breaks a constraint ends after it under every rule.

    The state is a function of the trials' epochs, so `replay` rebuilds it from the record.

    Args:
        objective: metric of an epoch by which trials are compared.
        epochs: epochs of a trial that is not stopped.
        grace: epochs that every trial may run.
        factor: one in `factor` trials continues after each rung.
        rule: the rule; with `none` trials stop at the end of the budget only.
        is_over: returns True once all trials are to stop.
        strategy_of: function from Tune's trial id to the strategy, or None for a trial that runs to its end.
        number_of: function from Tune's trial id to the trial's number in the study.
        goal: further objectives and constraints; None: the metric alone.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        epochs: int,
        grace: int,
        factor: int,
        rule: Rule,
        is_over: Callable[[], bool] = lambda: False,
        strategy_of: Callable[[str], Hashable | None],
        number_of: Callable[[str], int] = lambda trial_id: 0,
        goal: Goal | None = None,
    ) -> None:
        super().__init__()
        self._objective, self._metric = objective, objective.metric  # Tune reads `_metric`
        self._epochs, self._rule, self._is_over = epochs, rule, is_over
        self._grace, self._factor = grace, factor
        self._strategy_of, self._number_of = strategy_of, number_of
        self._brackets = 1
        if rule == "hyperband":
            self._brackets += int(math.log(epochs / grace) / math.log(factor))
        self._goal = goal if goal is not None and goal.measured else None
        self._costs: dict[str, dict[str, float]] = {}
        """Costs of each running trial so far, by its id; kept only where the study has a goal for them."""
        self._rungs: dict[tuple[Hashable, int], _Halving | _Median | _Fronts] = {}
        """State of the rule for each strategy and bracket."""
        self._best: dict[str, float] = {}
        """Best value so far of each running trial, by its id."""

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles its scheduler, but `resume` reads the ledger instead."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP after an epoch."""
        if result["epoch"] >= self._epochs:  # it ends by itself, as COMPLETE and not as PRUNED
            return str(TrialScheduler.CONTINUE)
        if self._is_over():
            return str(TrialScheduler.STOP)
        strategy = self._strategy_of(trial.trial_id)
        if strategy is None:
            return str(TrialScheduler.CONTINUE)
        if self._goal is not None:
            if "effective" in result:  # with the first epoch in each slot
                self._costs.setdefault(trial.trial_id, {})
                self._costs[trial.trial_id] |= json.loads(result["effective"]).get("measured", {})
            self._spend(trial.trial_id, result)
            if self._goal.excess(self._costs[trial.trial_id]):
                return str(TrialScheduler.STOP)
        if self._rule == "none":
            return str(TrialScheduler.CONTINUE)
        return self._judge(strategy, self._number_of(trial.trial_id), trial.trial_id, result)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Return None, so that Tune starts trials in their order.

        The rule of Tune's own schedulers goes through all trials of the study at each step of the loop.
        """

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forget the best value of an ended trial; its values at the rungs stay."""
        self._best.pop(trial.trial_id, None)
        self._costs.pop(trial.trial_id, None)

    def replay(self, trials: Iterable[TrialRecord]) -> None:
        """Enter the epochs of an earlier run's trials, so that a resumed study judges as before.

        Interrupted trials are left out: the trials that continue them report all of their epochs again.
        """
        for trial in trials:
            if trial.baseline is None and not trial.interrupted:
                if self._goal is not None:
                    if self._goal.excess(trial.measured):
                        continue
                    self._costs[trial.id] = {**trial.measured, "train_seconds": 0.0}
                for epoch in trial.history:
                    if epoch["epoch"] < self._epochs:
                        if self._goal is not None:
                            self._spend(trial.id, epoch)
                        self._judge(trial.params["strategy"], trial.number, trial.id, epoch)
                self._best.pop(trial.id, None)
                self._costs.pop(trial.id, None)

    def _spend(self, name: str, result: Mapping[str, Any]) -> None:
        """Add the seconds of an epoch to what a trial costs."""
        costs = self._costs.setdefault(name, {})
        costs["train_seconds"] = costs.get("train_seconds", 0.0) + result.get("seconds", 0.0)

    def _judge(self, strategy: Hashable, number: int, name: str, result: dict[str, Any]) -> str:
        """Enter an epoch of a trial, and return CONTINUE or STOP."""
        value = result[self._objective.metric]
        best = self._best[name] = max(value, self._best.get(name, value), key=self._objective.worth)
        bracket = number % self._brackets
        if (strategy, bracket) not in self._rungs:
            self._rungs[strategy, bracket] = self._make(bracket)
        rungs, epoch = self._rungs[strategy, bracket], int(result["epoch"])
        if isinstance(rungs, _Fronts):
            assert self._goal is not None
            stops = rungs.stops(epoch, self._goal.point(best, self._costs.get(name, {})))
        else:
            stops = rungs.stops(name, epoch, best)
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def _make(self, bracket: int) -> "_Halving | _Median | _Fronts":
        several = self._goal is not None and bool(self._goal.objectives)
        if self._rule == "median":
            if several:
                return _Fronts(range(self._grace, self._epochs), share=1 / 2, enough=ENOUGH)
            return _Median(self._objective, self._grace)
        grace = min(self._epochs, self._grace * self._factor**bracket)
        if several:
            return _Fronts(_rungs(grace, self._factor, self._epochs), share=1 / self._factor)
        return _Halving(self._objective, grace, self._factor, self._epochs)


class _Halving:
    """Tune's ASHA with one bracket."""

    def __init__(self, objective: Objective, grace: int, factor: int, epochs: int) -> None:
        self._asha = ASHAScheduler(
            time_attr="epoch",
            metric="value",
            mode=objective.mode,
            max_t=epochs,
            grace_period=grace,
            reduction_factor=factor,
            stop_last_trials=False,
        )

    def stops(self, name: str, epoch: int, best: float) -> bool:
        """Enter a trial's best value after an epoch, and return whether the trial is to end."""
        trial = _Named(name)
        # There is only one bracket, so adding a trial twice changes nothing.
        self._asha.on_trial_add(None, trial)
        told = self._asha.on_trial_result(None, trial, {"epoch": epoch, "value": best})
        return bool(told == TrialScheduler.STOP)


class _Fronts:
    """A rule among trials with several objectives: the first `share` of those at a rung go on.

    Args:
        rungs: epochs after which trials are judged.
        share: share of the trials at a rung that goes on.
        enough: rivals that must have reached the rung before a trial is judged.
    """

    def __init__(self, rungs: Iterable[int], *, share: float, enough: int = 0) -> None:
        self._share, self._enough = share, enough
        self._reached: dict[int, list[Point]] = {rung: [] for rung in rungs}
        """Points of the trials that have reached each rung."""

    def stops(self, epoch: int, point: Point | None) -> bool:
        """Enter a trial's point after an epoch, and return whether the trial is to end."""
        rivals = self._reached.get(epoch)
        if rivals is None or point is None:
            return False
        rivals.append(point)
        if len(rivals) <= self._enough:
            return False
        place = ordered(rivals).index(len(rivals) - 1)
        return place >= max(1, math.ceil(len(rivals) * self._share))


def _rungs(grace: int, factor: int, epochs: int) -> list[int]:
    """Return the epochs of ASHA's rungs: grace, grace * factor and so on, below the last epoch."""
    found = []
    while grace < epochs:
        found.append(grace)
        grace *= factor
    return found


class _Median:
    """The median rule on best values. Tune's own looks through all epochs of all trials at each result."""

    def __init__(self, objective: Objective, grace: int) -> None:
        self._worth, self._grace = objective.worth, grace
        self._reached: dict[int, list[float]] = {}
        """Best values after each epoch, of all trials that reached it, as `Objective.worth`."""

    def stops(self, name: str, epoch: int, best: float) -> bool:
        """Enter a trial's best value after an epoch, and return whether the trial is to end."""
        if epoch < self._grace or not math.isfinite(best):
            return False
        rivals = self._reached.setdefault(epoch, [])
        stops = len(rivals) >= ENOUGH and self._worth(best) < statistics.median(rivals)
        rivals.append(self._worth(best))
        return stops


class _Named:
    """All of a trial that ASHA reads."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
