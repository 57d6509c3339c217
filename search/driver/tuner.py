"""Set up and run Ray Tune for trials that are trained in slots."""

import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.tune.error import TuneError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter

from search.driver import process
from search.driver.callback import StudyCallback
from search.driver.trial import SlotTrial
from search.errors import SearchError, SlotsLost
from search.slots.nodes import HEAD
from search.suggest.sampler import StudySearcher

TRIAL_RESOURCES = {"cpu": 0, HEAD: 0.001}
"""Resources of a trial's process (SlotTrial): it only waits, so it takes no CPU. The share of HEAD keeps it
on the head node, beside the exchange."""

LOW_ON_MEMORY = "running low on memory"
"""Words of Ray's memory monitor."""

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and TensorBoard logs replace them
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Environment variables that keep Ray's own tables, loggers and warnings quiet."""

LEAN = {
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune need not save its state often: `resume` reads the ledger
    "TUNE_RESULT_BUFFER_LENGTH": "1000",  # Tune takes all epochs that have arrived: SlotTrial.train_buffered
}
"""Environment variables that spare Tune work during the search."""


def quieten() -> None:
    """Keep Ray's own tables and hints off the terminal, unless the user's environment asks for them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Tune would print the traceback of a failed trial, which is in the trial's error file already.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


class Room(ConcurrencyLimiter):
    """Limit the trials that run at a time to the room there is now, as slots come and go with their nodes."""

    def __init__(self, searcher: StudySearcher, most: int, room: Callable[[], int]) -> None:
        super().__init__(searcher, max_concurrent=most)
        self._most, self._room = most, room

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's id, or FINISHED, or None if there is no room now."""
        self.max_concurrent = min(self._most, self._room())
        job: dict[str, Any] | str | None = super().suggest(trial_id)
        return job

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles its searcher, but `resume` reads the ledger instead."""
        return {}

    def get_state(self) -> dict[str, Any]:
        """Return no state, for the same reason."""
        return {}


def tune(
    exchange: Any,
    *,
    metric: str,
    searcher: StudySearcher,
    scheduler: TrialScheduler,
    watch: StudyCallback,
    most: int,
    room: Callable[[], int],
    retries: int,
    storage: Path,
    name: str,
) -> None:
    """Run the trials of a study; return early after an interrupt (Ctrl-C).

    Args:
        exchange: actor that gives trials to slots.
        metric: the study's metric.
        searcher: suggests trials.
        scheduler: stops trials early.
        watch: records what trials report.
        most: upper limit of the trials that run at a time.
        room: returns how many trials may run at a time now.
        retries: how often a trial's process in Tune is replaced after it died; the slot trains on meanwhile.
        storage: folder for the files that Tune writes.
        name: name of this run in that folder.

    Raises:
        SettingsIgnored: a worker trained with other settings than were suggested.
        SlotsLost: the exchange or the supervisor died, or the node is short of memory.
    """

    # Tune creates the trial objects, so they get the exchange as an attribute of a class made for this study.
    class StudyTrial(SlotTrial):
        pass

    StudyTrial.exchange, StudyTrial.metric = exchange, metric
    search = ray_tune.Tuner(
        ray_tune.with_resources(StudyTrial, TRIAL_RESOURCES),
        tune_config=ray_tune.TuneConfig(
            search_alg=Room(searcher, most, room),
            scheduler=scheduler,
            num_samples=-1,  # until the searcher has no more
            reuse_actors=True,
            trial_dirname_creator=lambda trial: searcher.suggested[trial.trial_id].job.id,
        ),
        run_config=ray_tune.RunConfig(
            name=name,
            storage_path=str(storage),
            callbacks=[watch],
            failure_config=ray_tune.FailureConfig(max_failures=retries),
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),  # slots write them
            verbose=0,
        ),
    )
    try:
        with process.environment(LEAN), process.handlers(signal.SIGINT, signal.SIGUSR1):
            search.fit()
    except (TuneError, SearchError):
        # Tune wraps the callback's exception; the user should see the original.
        if watch.fatal:
            raise watch.fatal from None
        raise
    except RuntimeError as error:
        if (short := short_of_memory(error, watch.folder.root)) is not None:
            raise short from None
        raise


def short_of_memory(error: RuntimeError, root: Path) -> SlotsLost | None:
    """Return the error for the user if Ray has ended processes of a study for lack of memory, else None.

    Ray's memory monitor may choose the process of a trial in Tune, which Tune does not take for a failed one.
    """
    if LOW_ON_MEMORY not in str(error):
        return None
    used = re.search(r"[\d.]+GB used / [\d.]+GB limit", str(error))
    got = used[0] if used else "too little"
    return SlotsLost(
        f"{root}: the node must have memory for the study, got {got}, and Ray has ended processes of it. "
        "The record is whole: lower resources.slots or data.batch_size, and "
        f"`python -m search resume {root}` goes on."
    )
