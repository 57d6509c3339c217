"""The samplers of a study: models for each strategy, random search and a grid.

The bandit (bandit.py) fixes the strategy of a trial before it is asked for; Optuna's study then asks the
sampler for the rest. A model sees the trials of one strategy only, stopped ones too. Until a strategy has
START_UP ended trials, its suggestions are random.
"""

import contextlib
import copy
import importlib.util
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from finetune.objectives import Goal
from search.errors import StudyError
from search.suggest.models.constrained import seen_by_model
from search.suggest.models.gaussian import GaussianModel, from_unit
from search.suggest.models.tpe import BoundedTPE, remembered

Name = Literal["auto", "tpe", "gp", "cmaes", "random", "grid"]
START_UP = 8
"""Ended trials of a strategy before its model is asked."""
AGAIN = 50
"""Random draws after which a suggestion that repeats another is accepted: a small space has no others."""
POINTS = 4
"""Values of a range in a grid, if the range has more."""
ARM = "strategy"
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def make(
    name: str, *, seed: int, goal: Goal | None = None, start_up: int = START_UP, multivariate: bool = True
) -> BaseSampler:
    """Return the sampler of a name in `study.sampler`; models see the constraints of `goal`.

    Args:
        name: the name.
        seed: of everything that is drawn.
        goal: objectives and limits of the study.
        start_up: ended trials of a strategy before its model is asked.
        multivariate: whether TPE chooses the fields of a trial together.

    Raises:
        StudyError: the package that it needs is not installed.
    """
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "grid":
        return GridSampler(seed=seed)
    if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise StudyError(
            "study.sampler: cmaes needs the package cmaes, got none. "
            "Install it with `pip install 'transfer-search[cmaes]'`."
        )
    return ModelSampler(name, seed=seed, goal=goal, start_up=start_up, multivariate=multivariate)


def by_bandit(name: str) -> bool:
    """Return True if the bandit chooses strategies for a sampler, False if the sampler does."""
    return name not in ("random", "grid")


class ModelSampler(BaseSampler):
    """Optuna's sampler of a study, with a model for each strategy.

    All fields of a trial are chosen together, from those that earlier trials of its strategy have used, and
    not as an earlier or running trial has them, as long as there are others.
    """

    def __init__(
        self,
        name: str,
        *,
        seed: int,
        goal: Goal | None = None,
        start_up: int = START_UP,
        multivariate: bool = True,
    ) -> None:
        self._name, self._seed = name, seed
        self._goal = goal if goal is not None and goal.constraints else None
        self._start_up, self._multivariate = start_up, multivariate
        self._models: dict[Any, GaussianModel | _OfOptuna] = {}
        self._rng = np.random.default_rng(np.random.SeedSequence((seed, 1)))
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the fields that trials of the strategy have used and that are not fixed for this one."""
        fixed = trial.system_attrs.get("fixed_params", {})
        space: dict[str, BaseDistribution] = {}
        for other in _rivals(study, trial):
            if not other.distributions.keys() <= space.keys():  # of 10,000 trials few bring a new field
                space |= other.distributions
        return {name: space[name] for name in sorted(space) if name not in fixed and not space[name].single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose all fields of a trial."""
        if not search_space:
            return {}
        trials = _rivals(study, trial)
        found: Iterable[dict[str, Any]] = ()
        if sum(other.state in _ENDED for other in trials) >= self._start_up:
            # A model that cannot be fitted to these trials must not end the study: draw then.
            with contextlib.suppress(np.linalg.LinAlgError):
                known = remembered(trials, study.direction)
                if self._goal is not None:
                    known = seen_by_model(known, self._goal)
                found = self._asked(study, trial, known, search_space)
        seen = [other.params for other in trials]
        for config in found:
            if not _repeats(config, seen):
                return config
        for _ in range(AGAIN):
            config = self._draw(search_space)
            if not _repeats(config, seen):
                break
        return config

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a field that no trial of the strategy has used."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _asked(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        trials: Sequence[FrozenTrial],
        space: Mapping[str, BaseDistribution],
    ) -> Iterable[dict[str, Any]]:
        """Return candidates of the strategy's model, the most promising first."""
        arm = _arm(trial)
        if arm not in self._models:
            # The seed follows from the arm's name: a study that goes on may meet its arms in another order.
            own = np.random.SeedSequence((self._seed, 2, *str(arm).encode()))
            seed = int(own.generate_state(1)[0])
            gaussian = self._name in ("auto", "gp")
            self._models[arm] = (
                GaussianModel(seed) if gaussian else _OfOptuna(self._name, seed, self._multivariate)
            )
        model = self._models[arm]
        if isinstance(model, _OfOptuna):
            return model.suggest(study, trial, trials, space)
        return model.suggest(trials, space, maximize=study.direction == StudyDirection.MAXIMIZE)

    def _draw(self, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        shares = self._rng.random(len(space))
        return {n: from_unit(s, float(u)) for (n, s), u in zip(space.items(), shares, strict=True)}


class _OfOptuna:
    """A sampler of Optuna's as the model of one strategy.

    CMA-ES learns from complete trials only, so stopped ones are shown to it as complete with the best value
    that they reached. It chooses numbers; lists are left to TPE.
    """

    def __init__(self, name: str, seed: int, multivariate: bool) -> None:
        self._tpe = BoundedTPE(seed=seed, multivariate=multivariate)
        self._evolution = None
        if name == "cmaes":
            self._evolution = CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)

    def suggest(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        trials: Sequence[FrozenTrial],
        space: Mapping[str, BaseDistribution],
    ) -> list[dict[str, Any]]:
        """Return one candidate."""
        view: Any = _View(study, trials)
        found = _together(self._tpe, view, trial, space)
        if self._evolution is not None:
            seen = [_completed(other, study.direction) for other in trials]
            found |= _together(self._evolution, _View(study, seen), trial, space)
        for name, spread in space.items():  # fields that not every trial of the strategy has used
            if name not in found:
                found[name] = self._tpe.sample_independent(view, trial, name, spread)
        return [found]


def _together(
    sampler: BaseSampler, view: Any, trial: FrozenTrial, space: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    known = sampler.infer_relative_search_space(view, trial)
    return sampler.sample_relative(view, trial, {n: s for n, s in known.items() if n in space})


class _View:
    """A study in which a sampler sees some of the trials only."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(
        self, deepcopy: bool = False, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = False, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


def _completed(trial: FrozenTrial, direction: StudyDirection) -> FrozenTrial:
    """Return a stopped trial as a complete one with the best value that it reached; others as they are."""
    values = [value for value in trial.intermediate_values.values() if math.isfinite(value)]
    if trial.state != TrialState.PRUNED or not values:
        return trial
    now = copy.copy(trial)
    now.state = TrialState.COMPLETE
    now.values = [max(values) if direction == StudyDirection.MAXIMIZE else min(values)]
    return now


def _arm(trial: FrozenTrial) -> Any:
    """Return the strategy of a trial, also of one that has not been asked for it; None: not searched."""
    return trial.params.get(ARM, trial.system_attrs.get("fixed_params", {}).get(ARM))


def _rivals(study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
    """Return the ended and running trials of a trial's strategy."""
    states = (*_ENDED, TrialState.RUNNING)
    return [
        other
        for other in study.get_trials(deepcopy=False, states=states)
        if other.number != trial.number and other.params and _arm(other) == _arm(trial)
    ]


def _repeats(config: Mapping[str, Any], seen: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if another trial has the same values in all fields that it uses."""
    return any(
        all(config[name] == value for name, value in params.items() if name in config) for params in seen
    )


class GridSampler(BaseSampler):
    """Every combination once, in an order that spreads; a range counts with at most POINTS values.

    The space is a tree, since a field may be used or not depending on others: a trial goes to the value whose
    branch has been taken least of those that are not done. When all are done, values repeat.
    """

    def __init__(self, *, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return no fields: each is chosen by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no values."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of the branch that has been taken least."""
        before = list(trial.params.items())
        paths = [
            list(other.params.items())
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and list(other.params.items())[: len(before)] == before
        ]
        paths = [path for path in paths if len(path) > len(before) and path[len(before)][0] == param_name]
        spreads = {
            name: spread for other in study.get_trials(deepcopy=False)
            for name, spread in other.distributions.items()
        }  # fmt: skip
        spreads[param_name] = param_distribution
        values = grid(param_distribution)
        taken = [[path for path in paths if path[len(before)][1] == value] for value in values]
        done = [_done(below, len(before) + 1, spreads) for below in taken]
        left = [i for i in range(len(values)) if not done[i]] or list(range(len(values)))
        order = self._rng.permutation(left)
        return values[min(order, key=lambda i: len(taken[i]))]


def grid(spread: BaseDistribution) -> list[Any]:
    """Return the values of a field in a grid."""
    if isinstance(spread, CategoricalDistribution):
        return list(spread.choices)
    if isinstance(spread, IntDistribution) and not spread.log:
        count = (spread.high - spread.low) // spread.step + 1
        if count <= POINTS:
            return [spread.low + i * spread.step for i in range(count)]
    return list(dict.fromkeys(from_unit(spread, i / (POINTS - 1)) for i in range(POINTS)))


def _done(paths: Sequence[Sequence[tuple[str, Any]]], depth: int, spreads: Mapping[str, Any]) -> bool:
    """Return True if the trials have been at every end of the branch that they have in common so far."""
    if not paths:
        return False
    longer = [path for path in paths if len(path) > depth]
    if not longer:
        return True
    name = longer[0][depth][0]
    return all(
        _done([path for path in longer if path[depth] == (name, value)], depth + 1, spreads)
        for value in grid(spreads[name])
    )
