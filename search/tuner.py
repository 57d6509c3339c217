"""Ray Tune, set up for trials that borrow slots."""

import logging
import os
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.tune.error import TuneError
from ray.tune.schedulers import TrialScheduler

from search.sampler import StudySearcher
from search.trial import run_trial
from search.watch import Watch

# A trial function only waits, so it takes no CPU; this keeps it on the head node, beside the exchange.
TRIAL_RESOURCES = {"cpu": 0, "node:__internal_head__": 0.001}

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and the board keep what these would
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def quieten() -> None:
    """Keep Ray's own tables and hints off the terminal, unless the user's environment asks for them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # A failed trial is in the record with its reason and its trace; Tune would print the trace too.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def tune(
    exchange: Any,
    *,
    searcher: StudySearcher,
    scheduler: TrialScheduler,
    watch: Watch,
    trials: int,
    concurrent: int,
    storage: Path,
    name: str,
) -> None:
    """Run `trials` trials, `concurrent` at a time; returns early when interrupted.

    Raises:
        SettingsIgnored: a worker trained with other settings than were suggested.
    """

    def trainable(config: dict[str, Any]) -> None:
        run_trial(config, exchange)

    search = ray_tune.Tuner(
        ray_tune.with_resources(trainable, TRIAL_RESOURCES),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: searcher.suggested[trial.trial_id][1]["id"],
        ),
        run_config=ray_tune.RunConfig(name=name, storage_path=str(storage), callbacks=[watch], verbose=0),
    )
    try:
        search.fit()
    except TuneError:
        if watch.fatal:
            raise watch.fatal from None
        raise
