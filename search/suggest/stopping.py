"""Stop trials early: successive halving among trials of one strategy, and the study's time budget."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from search.record.records import TrialRecord


class EarlyStopping(FIFOScheduler):
    """ASHA (Li et al., MLSys 2020) within each strategy; at a deadline all trials stop, baselines included.

    A trial is compared with trials of its own strategy only: fine-tuning begins below a probe and ends
    above it, so that a comparison of the two after an epoch or two would be wrong. Trials are compared by
    their best epoch so far, since a trial's final score is that of its best epoch. No trial is stopped after
    its last epoch: nothing would be saved.

    Args:
        metric: metric of an epoch by which trials are compared.
        mode: `max` or `min`.
        epochs: epochs of a trial that is not stopped.
        grace: epochs that every trial may run.
        factor: one in `factor` trials continues after each rung.
        enabled: if False, trials stop at the deadline only.
        deadline: time on the monotonic clock at which all trials stop; None: no limit.
        strategy_of: see the attribute `_strategy_of`.
    """

    def __init__(
        self,
        *,
        metric: str,
        mode: str,
        epochs: int,
        grace: int,
        factor: int,
        enabled: bool,
        deadline: float | None,
        strategy_of: Callable[[str], str | None],
    ) -> None:
        super().__init__()
        self._metric, self._better = metric, max if mode == "max" else min
        self._epochs, self._enabled, self._deadline = epochs, enabled, deadline
        self._strategy_of = strategy_of
        """Function from Tune's trial id to the strategy, or None for a baseline, which runs to its end."""
        self._make_rungs = partial(
            ASHAScheduler,
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=epochs,
            grace_period=grace,
            reduction_factor=factor,
            stop_last_trials=False,
        )
        self._rungs: dict[str, ASHAScheduler] = {}
        """Rungs of each strategy, with the values that its trials reached at each."""
        self._best: dict[str, float] = {}
        """Best value so far of each running trial, by its id."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP after an epoch."""
        if result["epoch"] >= self._epochs:  # it ends by itself, as COMPLETE and not as PRUNED
            return str(TrialScheduler.CONTINUE)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return str(TrialScheduler.STOP)
        strategy = self._strategy_of(trial.trial_id)
        if not self._enabled or strategy is None:
            return str(TrialScheduler.CONTINUE)
        return self._judge(strategy, trial, result)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Return None, so that Tune starts trials in their order.

        The rule of Tune's own schedulers goes through all trials of the study at each step of the loop.
        """

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forget the best value of an ended trial; its values at the rungs stay."""
        self._best.pop(trial.trial_id, None)

    def replay(self, trials: Iterable[TrialRecord]) -> None:
        """Enter the epochs of an earlier run's trials, so that a resumed study judges as before.

        Interrupted trials are left out: the trials that continue them report all of their epochs again.
        """
        for trial in trials:
            if trial.baseline is None and not trial.interrupted:
                past = SimpleNamespace(trial_id=trial.id)
                for epoch in trial.history:
                    self._judge(trial.params["strategy"], past, epoch)
                self._best.pop(trial.id, None)

    def _judge(self, strategy: str, trial: Any, result: dict[str, Any]) -> str:
        """Enter an epoch of `trial`, anything with a `trial_id`, and return CONTINUE or STOP."""
        name, value = trial.trial_id, result[self._metric]
        best = self._best[name] = self._better(value, self._best.get(name, value))
        rungs = self._rungs.setdefault(strategy, self._make_rungs())
        rungs.on_trial_add(None, trial)  # there is only one bracket; adding a trial twice changes nothing
        return str(rungs.on_trial_result(None, trial, {"epoch": result["epoch"], self._metric: best}))
