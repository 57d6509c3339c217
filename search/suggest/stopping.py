"""When a trial is given up: successive halving among trials of one strategy, and the study's budget."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from search.record.records import TrialRecord


class EarlyStopping(FIFOScheduler):
    """ASHA (Li et al., MLSys 2020) within each strategy; at a deadline everything stops, baselines too.

    A trial is compared with trials of its own strategy only: fine-tuning begins below a probe and ends
    above it, so that a comparison of the two after an epoch or two is wrong. What is compared is the best
    epoch so far, which is what a trial counts with in the end. A trial's last epoch is never stopped:
    there is nothing left to save.
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
        """Asked with Tune's id of a trial; None: a baseline, which runs to its end."""
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
        """Strategy -> what its trials reached at each rung."""
        self._best: dict[str, float] = {}
        """Id of a trial that runs -> its best value so far."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP after an epoch."""
        if result["epoch"] >= self._epochs:
            return str(TrialScheduler.CONTINUE)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return str(TrialScheduler.STOP)
        strategy = self._strategy_of(trial.trial_id)
        if not self._enabled or strategy is None:
            return str(TrialScheduler.CONTINUE)
        return self._judge(strategy, trial, result)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Prefer no trial: Tune then starts them in their order.

        Tune's own rule looks through all trials there ever were, at each of its steps.
        """

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forget an ended trial; what it reached at the rungs stays."""
        self._best.pop(trial.trial_id, None)

    def replay(self, trials: Iterable[TrialRecord]) -> None:
        """Enter the epochs of an earlier run's trials, so that a resumed study judges like before.

        An interrupted one enters when it is tried again: it reports its epochs anew.
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
        rungs.on_trial_add(None, trial)  # the only bracket there is; adding it twice changes nothing
        return str(rungs.on_trial_result(None, trial, {"epoch": result["epoch"], self._metric: best}))
