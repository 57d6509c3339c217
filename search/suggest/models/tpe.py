"""Optuna's TPE with a bounded memory, so that a suggestion costs the same after 10,000 trials as after 1,000.

Optuna's TPE looks at every earlier trial, several times for each group of parameters of a conditional space.
Here it sees the good trials, as many as it models as good, and at most MODELLED of all others, taken evenly
over the study. Up to MODELLED trials the suggestions equal Optuna's to the bit.
"""

import heapq
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.record import mirror

MODELLED = 1000
"""Largest number of trials that are modelled besides the good and the running ones."""
BEST = 25
"""Largest number of trials that TPE models as good: the limit in Optuna's `default_gamma`."""


class BoundedTPE(TPESampler):
    """Multivariate TPE with groups for conditional spaces, over a bounded number of trials.

    TPE: Bergstra et al., NeurIPS 2011; multivariate as in Falkner et al., ICML 2018.
    """

    def __init__(self, *, seed: int, multivariate: bool = True) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group` is experimental
            super().__init__(seed=seed, multivariate=multivariate, group=multivariate)
        self._seen: tuple[optuna.Study, int, Any] | None = None
        """Study and number of the trial that is being sampled, and the view of the study for it."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together; see Optuna's `BaseSampler`."""
        return super().infer_relative_search_space(self._view(study, trial), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample the parameters that are sampled together."""
        return super().sample_relative(self._view(study, trial), trial, dict(search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that is not among those sampled together."""
        return super().sample_independent(self._view(study, trial), trial, param_name, param_distribution)

    def _view(self, study: optuna.Study, trial: FrozenTrial) -> Any:
        """Return the view of the study for a trial, made once for all of the trial's parameters.

        It is the study itself with an Optuna of another release than the view was made for.
        """
        if not mirror.fits():
            return study
        if self._seen is None or self._seen[0] is not study or self._seen[1] != trial.number:
            self._seen = study, trial.number, _View(study)
        return self._seen[2]


class _View:
    """A study as it is now, in which the sampler sees only the trials that `remembered` returns."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._trials = remembered(study.get_trials(deepcopy=False), study.direction)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = False, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


def remembered(trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return the BEST complete trials, all running ones and, of all trials, every 2nd, 4th, 8th and so on.

    The trials are taken evenly over the study. The latest ones alone would lie where the good ones lie, and
    TPE would see no difference between good and bad.
    """
    stride = 1
    while len(trials) > stride * MODELLED:
        stride *= 2  # powers of 2, so that a trial which is left out once stays left out
    if stride == 1:
        return list(trials)
    sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
    complete = (trial for trial in trials if trial.state == TrialState.COMPLETE)
    best = heapq.nsmallest(BEST, complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    kept = {trial.number for trial in best}
    return [
        trial
        for trial in trials
        if trial.number % stride == 0 or trial.state == TrialState.RUNNING or trial.number in kept
    ]
