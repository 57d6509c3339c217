"""The trials that a run of a study has to do, by its record: those planned, and how many to sample."""

from collections.abc import Sequence
from typing import Any

from search.config.sections import Study
from search.driver.ending import left
from search.record.records import EXACT, TrialRecord
from search.suggest.chooser import Planned
from search.suggest.models import samplers
from search.suggest.space import Space


def to_do(
    earlier: Sequence[TrialRecord], study: Study, space: Space, starts: Sequence[dict[str, Any]]
) -> tuple[list[Planned], int]:
    """Return the trials of this run.

    Args:
        earlier: trials of earlier runs.
        study: goal and limits of the study.
        space: its search space.
        starts: settings to try first.

    Returns:
        The planned trials (first `exact`, which does not count, then interrupted trials, other baselines and
        the starts), and the number of counted trials to sample after them.
    """
    # An interrupted trial is run again unless an earlier resume has done so, or the space has changed so that
    # its settings are no longer possible.
    continued = {trial.continues for trial in earlier}
    again = [
        Planned(
            params=trial.params,
            baseline=trial.baseline,
            continues=trial.number,
            seed_of=trial.number if trial.seed_of is None else trial.seed_of,
            counted=trial.counted,
        )
        for trial in earlier
        if trial.interrupted
        and trial.number not in continued
        and space.settings_now(trial, cache_dir="") is not None
    ]
    # A baseline that has ended, or is run again above, is not planned a second time.
    settled = {(trial.baseline, trial.params.get("backbone")) for trial in earlier if not trial.interrupted}
    settled |= {(plan.baseline, plan.params.get("backbone")) for plan in again}
    fresh = [
        plan for plan in _baselines(study, space) if (plan.baseline, plan.params["backbone"]) not in settled
    ]
    # Neither is a start that an earlier run has tried, whatever came of it.
    tried = [space.sampled(trial.params) for trial in earlier]
    every = all(space.arms.values()) or not samplers.by_bandit(study.sampler)
    first = [
        Planned(params=params, counted=every or space.trains(params))
        for params in starts
        if space.sampled(params) not in tried
    ]
    remaining = max(0, left(earlier, study))
    # Heads that are solved for come first: in seconds there is a model, and a number to beat.
    solved = [plan for plan in again + fresh if plan.baseline == EXACT] if remaining > 0 else []
    planned: list[Planned] = []
    for plan in [plan for plan in again + fresh if plan.baseline != EXACT] + first:
        if remaining > 0:  # the last trials of a study are counted ones
            planned.append(plan)
            remaining -= plan.counted
    return solved + planned, remaining


def _baselines(study: Study, space: Space) -> list[Planned]:
    """Return the baselines of a study; `exact` is one for each backbone."""
    return [
        Planned(params=space.baseline(name, backbone), baseline=name)
        for name in study.baselines
        for backbone in (space.backbones if name == EXACT else (None,))
    ]
