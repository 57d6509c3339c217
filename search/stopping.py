"""When a trial is given up: asynchronous successive halving on our own epoch, and the study's budget."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from search.record import TrialRecord


class EarlyStopping(ASHAScheduler):
    """ASHA (Li et al., MLSys 2020) that spares baselines and stops everything at a deadline.

    A trial's last epoch is never stopped: there is nothing left to save.
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
        is_spared: Callable[[str], bool],
    ) -> None:
        super().__init__(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=epochs,
            grace_period=grace,
            reduction_factor=factor,
            stop_last_trials=False,
        )
        self._enabled, self._deadline = enabled, deadline
        self._is_spared = is_spared
        """Asked with Tune's id of a trial: is it a baseline, which runs to its end?"""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP after an epoch."""
        if result["epoch"] >= self._max_t:
            return str(TrialScheduler.CONTINUE)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return str(TrialScheduler.STOP)
        if not self._enabled or self._is_spared(trial.trial_id):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forget an ended trial; its rungs stay."""
        self._trial_info.pop(trial.trial_id, None)

    def replay(self, trials: Iterable[TrialRecord]) -> None:
        """Enter the epochs of an earlier run's trials, so that a resumed study judges like before."""
        bracket = self._brackets[0]
        for trial in trials:
            if trial.baseline is None:
                for epoch in trial.history:
                    _enter(bracket, trial.id, int(epoch["epoch"]), self._metric_op * epoch[self._metric])


def _enter(bracket: Any, trial_id: str, epoch: int, reward: float) -> None:
    for milestone, recorded in bracket._rungs:
        if epoch == milestone:
            recorded[trial_id] = reward
