"""Share of the scores that each setting explains, within each strategy, by Optuna's PED-ANOVA."""

import math
from collections.abc import Sequence
from typing import Any

from finetune.metrics import Objective
from search.record.records import TrialRecord

LEAST_TRIALS = 8
"""Sampled trials of a strategy below which importances would be noise."""


def searched(trials: Sequence[TrialRecord]) -> list[str]:
    """Return the settings that have more than one value among the trials that are no baselines."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        if trial.baseline is not None:
            continue
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(repr(value))
    return [name for name, seen in values.items() if len(seen) > 1]


def within_strategies(trials: Sequence[TrialRecord], objective: Objective) -> dict[str, dict[str, float]]:
    """Return for each strategy the share that each of its settings explains, the largest first."""
    strategies = dict.fromkeys(str(trial.params.get("strategy")) for trial in trials)
    found = {}
    for strategy in strategies:
        mine = [
            t
            for t in trials
            if str(t.params.get("strategy")) == strategy
            and t.state in ("COMPLETE", "PRUNED")
            and t.baseline is None
        ]
        shares = _importances(mine, objective) if len(mine) >= LEAST_TRIALS else {}
        if shares:
            found[strategy] = shares
    return found


def is_all(name: str, value: Any) -> bool:
    """Return True if the value of this setting stands for all blocks."""
    return name == "frozen_layers" and value in (-1, "all")


def _importances(trials: list[TrialRecord], objective: Objective) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # each study that it makes is an event for it
    names = [name for name in searched(trials) if all(name in trial.params for trial in trials)]
    if not names:
        return {}
    distributions = {name: _distribution([trial.params[name] for trial in trials]) for name in names}
    study = optuna.create_study(direction="maximize" if objective.mode == "max" else "minimize")
    for trial in trials:
        value = trial.metrics["best"][objective.metric]
        if math.isfinite(value):
            params = {n: _held(trial.params[n], distributions[n]) for n in names}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, value=value)
            )
    try:
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError, ZeroDivisionError):  # all scores are equal
        return {}
    return {name: float(share) for name, share in shares.items() if math.isfinite(share)}


def _distribution(values: list[Any]) -> Any:
    """Return a distribution that reaches from the smallest to the largest value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers:
        return CategoricalDistribution(sorted({repr(value) for value in values}))
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high)
    return FloatDistribution(float(low), float(high), log=low > 0 and high / low > 20)


def _held(value: Any, distribution: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(distribution, CategoricalDistribution):
        return repr(value)
    return float(value) if isinstance(distribution, FloatDistribution) else value
