"""The record of a study: an Optuna study in memory for speed, and its copy in a file for good.

The sampler reads the study in memory. A thread updates the file a few times a second, in one transaction
each time. So the search loop never waits for a commit (all commits of one trial take 24 ms on SQLite), and
after a crash the file holds every trial as it was moments before.
"""

import copy
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from finetune.metrics import Objective
from search.errors import RecordLost, SearchError, StudyError
from search.record import mirror, storage
from search.record.reader import to_record
from search.record.records import TrialRecord
from search.record.storage import OLD_NAME, only_study, open_storage

PAUSE_SECONDS = 0.2
"""Seconds between two rounds of writing. A crash of the whole machine loses at most this much."""
WAITING = 500
"""Number of trials that may wait to be written; further entries block until there is room."""
ON_DISK_ONLY = ("history", "effective")
"""Long facts of an ended trial that only the file holds. No sampler reads them, and keeping them would let
memory grow with every trial."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
# Optuna logs a warning about a damaged record before it raises; `read` reports the error itself.
optuna.logging.get_logger("optuna.storages._rdb.storage").setLevel(optuna.logging.ERROR)


@contextmanager
def _writing(path: Path, fault: type[SearchError]) -> Iterator[None]:
    """Raise errors that prevent the record from being written as a `fault`."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error, OSError) as error:
        raise fault(
            f"{path}: the record must be writable while a study runs, got {storage.reason(error)}. "
            "What it has is whole: see to the disk, then resume."
        ) from error


class Ledger:
    """Suggested trials and their results, in memory and in a file. Only one driver may have it open.

    The search loop calls every method from one thread. `_open` holds Optuna's own objects of trials that
    have not ended; `_dirty` holds copies that wait for the writer's thread, `_after` what to call once
    they are written, and `_wake` guards both.
    """

    def __init__(
        self,
        path: Path,
        *,
        metric: str,
        sampler: optuna.samplers.BaseSampler,
        name: str = OLD_NAME,
        learned: Callable[[FrozenTrial], FrozenTrial] = lambda trial: trial,
    ) -> None:
        """Open the record, or make it if there is none.

        Args:
            path: file of the record.
            metric: metric of the study; Optuna gets its name for its dashboard and plots.
            sampler: Optuna's sampler, which suggests the trials.
            name: name of the study for Optuna, if the record is made.
            learned: returns an earlier trial as the sampler is to see it.
        """
        self._path, self.objective = path, Objective(metric)
        minimizes = self.objective.mode == "min"
        direction = StudyDirection.MINIMIZE if minimizes else StudyDirection.MAXIMIZE
        self._memory = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(storage=self._memory, direction=direction, sampler=sampler)
        self._memory_id = self._memory.get_study_id_from_name(self._study.study_name)
        with _writing(path, StudyError):
            if not path.exists():
                storage.make(path, direction, name=name)
            self._storage = open_storage(path)
            try:
                self._stored = self._take_up(learned, metric)
            except BaseException:  # leave no open connection behind, also after Ctrl-C
                storage.let_go(self._storage)
                raise
        self._mirror = mirror.make(self._storage, self._stored.study_name)
        self._open: dict[int, optuna.Trial] = {}
        self._dirty: dict[int, tuple[FrozenTrial, Callable[[], None]]] = {}
        self._after: list[Callable[[], None]] = []
        self._writing = self._hurried = False
        self._wake = threading.Condition()
        self._closing = False
        self._failure: Exception | None = None
        self._writer = threading.Thread(target=self._write_forever, name="ledger", daemon=True)
        self._writer.start()

    def _take_up(self, learned: Callable[[FrozenTrial], FrozenTrial], metric: str) -> optuna.Study:
        """Copy the earlier trials into memory, and return the stored study."""
        name = only_study(self._storage)
        earlier = optuna.load_study(storage=self._storage, study_name=name)
        if earlier.metric_names != [metric]:
            with warnings.catch_warnings():  # the call is marked experimental
                warnings.simplefilter("ignore", ExperimentalWarning)
                earlier.set_metric_names([metric])
        fail_orphans(earlier, self._storage)
        self._study.add_trials([_short(learned(trial)) for trial in earlier.get_trials(deepcopy=False)])
        # Load the study again: an Optuna study keeps every trial that it has read in memory.
        return optuna.load_study(storage=self._storage, study_name=name)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, as they are in memory."""
        return self._study.get_trials(deepcopy=False)

    def ask(self, enqueued: Mapping[str, Any] | None = None) -> optuna.Trial:
        """Open a trial for `Space.suggest`; `enqueued` fixes searched parameters, by their Optuna names."""
        if enqueued is not None:
            self._study.enqueue_trial(dict(enqueued))
        trial = self._study.ask()
        self._open[trial.number] = trial
        return trial

    def suggested(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Record the suggested parameters of an open trial, with JSON-able facts about it."""
        for name, value in attributes.items():
            self._open[number].set_user_attr(name, value)
        self._mark(self._open[number])

    def report(self, number: int, epoch: int, value: float) -> None:
        """Record the metric after an epoch (counted from 1)."""
        self._open[number].report(value, epoch)
        self._mark(self._open[number])

    def end(
        self,
        number: int,
        state: str,
        value: float | None,
        attributes: Mapping[str, Any],
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Close a trial as COMPLETE (with its best value), PRUNED or FAIL, with facts about it.

        The writer's thread calls `then` once the file has the trial: it may be announced only after that.
        """
        trial = self._open.pop(number)
        # The long facts bypass memory: `_mark` hands them to the writer.
        for name, fact in attributes.items():
            if name not in ON_DISK_ONLY:
                trial.set_user_attr(name, fact)
        self._study.tell(trial, value if state == "COMPLETE" else None, TrialState[state])
        self._mark(trial, then, attributes)

    def is_open(self, number: int) -> bool:
        """Return True if the trial was opened by `ask` and has not ended."""
        return number in self._open

    def records(self) -> list[TrialRecord]:
        """Return every trial so far as a plain record."""
        return [to_record(trial) for trial in self.trials]

    @property
    def facts(self) -> dict[str, Any]:
        """The facts about the whole study that `set_fact` has written, also in earlier runs."""
        return self._stored.user_attrs

    def set_fact(self, name: str, value: Any) -> None:
        """Write a JSON-able fact about the whole study to the file, at once."""
        with _writing(self._path, RecordLost):
            self._stored.set_user_attr(name, value)

    def close(self) -> None:
        """Write everything that is still in memory, then close the file.

        Raises:
            Exception: the error that stopped the writer.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._writer.join()  # it writes what is left, then ends
        storage.let_go(self._storage)
        if self._failure:
            raise self._failure

    def flush(self) -> None:
        """Wait until the file has everything that was recorded, or the writer has failed."""
        with self._wake:
            self._hurried = True
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._failure or not (self._dirty or self._after or self._writing))
            self._hurried = False

    def once_written(self, call: Callable[[], None]) -> None:
        """Call something as soon as the file has all that was recorded so far, without waiting for that.

        The writer's thread does so, or the caller's if nothing is left to write. After an error of the
        writer it is not called.
        """
        with self._wake:
            if self._failure:
                raise self._failure
            if self._dirty or self._writing:
                self._after.append(call)
                self._wake.notify_all()
                return
        call()

    def _mark(
        self,
        trial: optuna.Trial,
        then: Callable[[], None] = lambda: None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Hand a copy of a trial's present state to the writer, with facts that memory does not keep."""
        # Optuna keeps changing these dicts while the writer's thread reads, so the writer gets copies.
        where = self._memory.get_trial_id_from_study_id_trial_number(self._memory_id, trial.number)
        now = copy.copy(self._memory.get_trial(where))
        now.params, now.distributions = dict(now.params), dict(now.distributions)
        now.intermediate_values = dict(now.intermediate_values)
        now.system_attrs = dict(now.system_attrs)
        now.user_attrs = {**now.user_attrs, **facts}
        with self._wake:
            # Wait if trials come faster than the disk takes them; memory would have no bound otherwise.
            self._wake.wait_for(lambda: self._failure or len(self._dirty) < WAITING)
            if self._failure:
                raise self._failure
            # A later state replaces an earlier one that is still waiting, so each is written once. No `then`
            # is lost by that: only `end` gives one, and it is the last entry of its trial.
            self._dirty[now.number] = now, then
            self._wake.notify_all()

    def _write_forever(self) -> None:
        """Write waiting trials in rounds until `close` is called and none are left."""
        try:
            while True:
                with self._wake:
                    self._writing = False
                    self._wake.notify_all()
                    self._wake.wait_for(lambda: self._dirty or self._after or self._closing)
                    if not (self._dirty or self._after):
                        return
                    # Take the whole round under the lock, but write it outside, so that the search loop can
                    # enter trials meanwhile. `_writing` tells `flush` that a round is not on disk yet.
                    dirty, self._dirty, self._writing = self._dirty, {}, True
                    after, self._after = self._after, []
                    self._wake.notify_all()
                self._write(dirty)
                for call in after:
                    call()
                with self._wake:  # pause, so that a trial that begins and ends meanwhile is written once
                    self._wake.wait_for(lambda: self._hurried or self._after or self._closing, PAUSE_SECONDS)
        except Exception as error:  # `_mark` and `close` raise it in the search loop
            with self._wake:
                self._failure = error
                self._wake.notify_all()

    def _write(self, dirty: Mapping[int, tuple[FrozenTrial, Callable[[], None]]]) -> None:
        with _writing(self._path, RecordLost):
            self._mirror.write([dirty[number][0] for number in sorted(dirty)])
        for _, then in dirty.values():
            then()


def _short(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of a trial without the facts that only the file holds."""
    short = copy.copy(trial)
    short.user_attrs = {name: fact for name, fact in trial.user_attrs.items() if name not in ON_DISK_ONLY}
    return short


def fail_orphans(study: optuna.Study, storage: RDBStorage) -> None:
    """Mark the trials of a stored study that a dead driver left running as failed and interrupted.

    A RUNNING trial that nobody runs would bias TPE, which treats running trials as bad ones (constant liar).
    """
    study_id = storage.get_study_id_from_name(study.study_name)
    for orphan in study.get_trials(deepcopy=True, states=(TrialState.RUNNING,)):
        where = storage.get_trial_id_from_study_id_trial_number(study_id, orphan.number)
        facts = {"error": "interrupted: the study's driver died", "interrupted": True}
        for name, fact in facts.items():
            storage.set_trial_user_attr(where, name, fact)
        study.tell(orphan.number, state=TrialState.FAIL)
