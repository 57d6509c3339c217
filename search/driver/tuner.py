"""Ray Tune, set up for trials that borrow slots."""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.tune.error import TuneError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter

from search.driver import process
from search.driver.callback import Watch
from search.driver.trial import SlotTrial
from search.errors import SearchError
from search.slots.nodes import HEAD
from search.suggest.sampler import StudySearcher

# A trial function only waits, so it takes no CPU; this keeps it on the head node, beside the exchange.
TRIAL_RESOURCES = {"cpu": 0, HEAD: 0.001}

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and the board keep what these would
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

LEAN = {
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's state of all trials; `resume` reads the ledger instead
    "TUNE_RESULT_BUFFER_LENGTH": "1000",  # epochs that are there come together: SlotTrial.train_buffered
}


def quieten() -> None:
    """Keep Ray's own tables and hints off the terminal, unless the user's environment asks for them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # A failed trial is in the record with its reason and its trace; Tune would print the trace too.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


class Room(ConcurrencyLimiter):
    """Lets as many trials run at a time as there is room for now: slots come and go with their nodes."""

    def __init__(self, searcher: StudySearcher, most: int, room: Callable[[], int]) -> None:
        super().__init__(searcher, max_concurrent=most)
        self._most, self._room = most, room

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's job, FINISHED, or None: not now."""
        self.max_concurrent = min(self._most, self._room())
        job: dict[str, Any] | str | None = super().suggest(trial_id)
        return job

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher; nothing is restored from that, `resume` reads the ledger."""
        return {}

    def get_state(self) -> dict[str, Any]:
        """Tune saves its searcher's state, too."""
        return {}


def tune(
    exchange: Any,
    *,
    searcher: StudySearcher,
    scheduler: TrialScheduler,
    watch: Watch,
    trials: int,
    most: int,
    room: Callable[[], int],
    retries: int,
    storage: Path,
    name: str,
) -> None:
    """Run `trials` trials, as many at a time as `room` says, at `most`; returns early when interrupted.

    A trial whose process here dies gets another one, `retries` times; what its slot does goes on meanwhile.

    Raises:
        SettingsIgnored: a worker trained with other settings than were suggested.
        SlotsLost: the exchange or the keeper died.
    """

    class StudyTrial(SlotTrial):
        pass

    StudyTrial.exchange = exchange
    search = ray_tune.Tuner(
        ray_tune.with_resources(StudyTrial, TRIAL_RESOURCES),
        tune_config=ray_tune.TuneConfig(
            search_alg=Room(searcher, most, room),
            scheduler=scheduler,
            num_samples=trials,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: searcher.suggested[trial.trial_id].job["id"],
        ),
        run_config=ray_tune.RunConfig(
            name=name,
            storage_path=str(storage),
            callbacks=[watch],
            failure_config=ray_tune.FailureConfig(max_failures=retries),
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),  # slots keep them
            verbose=0,
        ),
    )
    try:
        with process.environment(LEAN), process.handlers(signal.SIGINT, signal.SIGUSR1):
            search.fit()
    except (TuneError, SearchError):
        if watch.fatal:
            raise watch.fatal from None
        raise
