"""The record of a study: an Optuna study in memory for speed, and the same in a file for good.

The sampler reads memory; a thread brings the storage up to date a few times a second, in one
transaction. So the search loop waits for no commit (24 ms for all of a trial's, on SQLite), and after
a crash the storage holds every trial as it was moments before.
"""

import copy
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from finetune.filesystems import is_network
from search import config_file
from search.errors import StudyError
from search.layout import StudyFolder, trial_id
from search.mirror import Mirror
from search.record import StudyRecord, TrialRecord

STUDY_NAME = "study"
PAUSE_SECONDS = 0.2
"""Between two rounds of writing: what a crash of the whole machine may cost the record, at most."""
WAITING = 500
"""Trials at most that wait to be written."""
BUSY_SECONDS = 60
"""How long SQLite waits for another process, such as a dashboard, that holds the file."""
ON_DISK_ONLY = ("history", "effective")
"""The long facts of an ended trial: no sampler reads them, and memory would grow with every trial."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(path: Path) -> RDBStorage:
    """Return the SQLite storage at `path`, in write-ahead mode with every commit synced to disk."""
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}})

    @event.listens_for(storage.engine, "connect")
    def durable(connection: Any, _record: Any) -> None:
        connection.execute(f"pragma journal_mode={'delete' if is_network(path) else 'wal'}")
        connection.execute("pragma synchronous=full")

    storage.engine.dispose()  # connections opened so far lack the pragmas
    return storage


def _make(path: Path, direction: StudyDirection) -> None:
    """Make a storage with an empty study; it appears whole.

    Whoever opened one that is half made would make the rest, and then its driver could not.
    """
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    storage = RDBStorage(f"sqlite:///{part}")
    optuna.create_study(storage=storage, study_name=STUDY_NAME, direction=direction)
    storage.remove_session()
    storage.engine.dispose()
    os.replace(part, path)


class Ledger:
    """What was suggested and what came of it. Not for several drivers at once."""

    def __init__(
        self,
        path: Path,
        *,
        mode: str,
        sampler: optuna.samplers.BaseSampler,
        learned: Callable[[FrozenTrial], FrozenTrial] = lambda trial: trial,
    ) -> None:
        """Open the record, and make it where there is none.

        Args:
            path: its file.
            mode: `max` or `min`.
            sampler: what suggests.
            learned: gives an earlier trial as the sampler is to see it.
        """
        direction = StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE
        self._path = path
        if not path.exists():
            _make(path, direction)
        self._storage = open_storage(path)
        self._stored = optuna.load_study(storage=self._storage, study_name=STUDY_NAME)
        fail_orphans(self._stored)
        self._study = optuna.create_study(direction=direction, sampler=sampler)
        self._study.add_trials([learned(trial) for trial in self._stored.get_trials(deepcopy=False)])
        self._mirror = Mirror(self._storage, self._stored._study_id)
        self._open: dict[int, optuna.Trial] = {}
        self._dirty: dict[int, tuple[FrozenTrial, Callable[[], None]]] = {}
        self._marked: dict[int, float] = {}
        """When each open trial was last handed to the writer."""
        self._writing = self._hurried = False
        self._wake = threading.Condition()
        self._closing = False
        self._failure: Exception | None = None
        self._writer = threading.Thread(target=self._write_forever, name="ledger", daemon=True)
        self._writer.start()

    @property
    def trials(self) -> list[FrozenTrial]:
        """Every trial so far, as memory has it."""
        return self._study.get_trials(deepcopy=False)

    def ask(self, enqueued: Mapping[str, Any] | None = None) -> optuna.Trial:
        """Open a trial for `Space.suggest`; `enqueued` fixes searched parameters by Optuna's names."""
        if enqueued is not None:
            self._study.enqueue_trial(dict(enqueued))
        trial = self._study.ask()
        self._open[trial.number] = trial
        return trial

    def suggested(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Enter what was suggested for an open trial, with JSON-able facts about it."""
        for name, value in attributes.items():
            self._open[number].set_user_attr(name, value)
        self._mark(self._open[number])

    def report(self, number: int, epoch: int, value: float) -> None:
        """Enter the metric after an epoch (counted from 1)."""
        self._open[number].report(value, epoch)
        if time.monotonic() - self._marked.get(number, -math.inf) >= PAUSE_SECONDS:
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

        `then` is called, from another thread, once the file has it: only then may it be announced.
        """
        trial = self._open.pop(number)
        for name, fact in attributes.items():
            if name not in ON_DISK_ONLY:
                trial.set_user_attr(name, fact)
        self._study.tell(trial, value if state == "COMPLETE" else None, TrialState[state])
        self._mark(trial, then, attributes)
        del self._marked[number]

    def is_open(self, number: int) -> bool:
        """True while the trial has been asked for and not ended."""
        return number in self._open

    def records(self) -> list[TrialRecord]:
        """Return every trial so far as a plain record."""
        return [to_record(trial) for trial in self.trials]

    @property
    def facts(self) -> dict[str, Any]:
        """What `set_fact` kept."""
        return self._stored.user_attrs

    def set_fact(self, name: str, value: Any) -> None:
        """Keep a JSON-able fact about the whole study."""
        self._stored.set_user_attr(name, value)

    def close(self) -> None:
        """Write what is left and let go of the file.

        Raises:
            Exception: what kept the writer from writing.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._writer.join()
        self._storage.remove_session()
        self._storage.engine.dispose()
        if self._failure:
            raise self._failure

    def flush(self) -> None:
        """Wait until the file has all that was entered."""
        with self._wake:
            self._hurried = True
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._failure or not (self._dirty or self._writing))
            self._hurried = False

    def _mark(
        self,
        trial: optuna.Trial,
        then: Callable[[], None] = lambda: None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Hand a trial as it is now to the writer, with facts that memory does not keep."""
        self._marked[trial.number] = time.monotonic()
        # Optuna's memory replaces what it changes, so this stays as it is while the writer reads it.
        now = copy.copy(self._study._storage.get_trial(trial._trial_id))
        now.user_attrs = {**now.user_attrs, **facts}
        with self._wake:
            # Whoever enters faster than the disk takes waits here, or memory would have no bound.
            self._wake.wait_for(lambda: self._failure or len(self._dirty) < WAITING)
            if self._failure:
                raise self._failure
            self._dirty[now.number] = now, then
            self._wake.notify_all()

    def _write_forever(self) -> None:
        try:
            while True:
                with self._wake:
                    self._writing = False
                    self._wake.notify_all()
                    self._wake.wait_for(lambda: self._dirty or self._closing)
                    if not self._dirty:
                        return
                    dirty, self._dirty, self._writing = self._dirty, {}, True
                    self._wake.notify_all()
                self._write(dirty)
                with self._wake:  # short trials begin and end meanwhile, and are then written once
                    self._wake.wait_for(lambda: self._hurried or self._closing, timeout=PAUSE_SECONDS)
        except Exception as error:  # the search loop raises it at its next entry
            with self._wake:
                self._failure = error
                self._wake.notify_all()

    def _write(self, dirty: Mapping[int, tuple[FrozenTrial, Callable[[], None]]]) -> None:
        try:
            self._mirror.write([dirty[number][0] for number in sorted(dirty)])
        except SQLAlchemyError as error:
            raise StudyError(
                f"{self._path}: the record must be writable while a study runs, got "
                f"{getattr(error, 'orig', error)}. What it has is whole: see to the disk, then resume."
            ) from error
        for _, then in dirty.values():
            then()


def fail_orphans(study: optuna.Study) -> None:
    """Fail the trials that a dead driver left running.

    A RUNNING trial that nobody runs would bias TPE, which counts it as a bad one (constant liar).
    """
    for orphan in study.get_trials(deepcopy=True, states=(TrialState.RUNNING,)):
        facts = {"error": "interrupted: the study's driver died", "interrupted": True}
        for name, fact in facts.items():
            study._storage.set_trial_user_attr(orphan._trial_id, name, fact)
        study.tell(orphan.number, state=TrialState.FAIL)


def read(path: Path) -> tuple[list[TrialRecord], dict[str, Any]]:
    """Return the trials and the study's facts that a storage holds; it may be in use."""
    storage = open_storage(path)
    try:
        study = optuna.load_study(storage=storage, study_name=STUDY_NAME)
        return [to_record(t) for t in study.get_trials(deepcopy=False)], study.user_attrs
    finally:
        storage.remove_session()
        storage.engine.dispose()


def read_study(folder: StudyFolder) -> StudyRecord:
    """Return the record of the study in a results folder.

    Raises:
        StudyError: the folder has no record yet.
    """
    config = config_file.load(folder.config)
    if not folder.database.exists():
        raise StudyError(f"{folder.root}: a study must have begun to be read, got no optuna.db. Resume it.")
    trials, facts = read(folder.database)
    state = facts.get("state", "running")
    if state == "running" and not folder.is_held():
        state = "interrupted"  # its driver died
    return StudyRecord(
        name=config.study.name,
        metric=config.study.metric,
        mode=config.study.mode,
        planned=config.study.trials,
        epochs=config.study.epochs,
        state=state,
        seconds=facts.get("seconds", 0.0),
        provenance=facts.get("provenance", {}),
        trials=tuple(trials),
        folder=str(folder.root),
    )


def to_record(trial: FrozenTrial) -> TrialRecord:
    """Return the plain record of an Optuna trial."""
    facts = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        id=trial_id(trial.number),
        state=trial.state.name,
        params=facts.get("params", {}),
        baseline=facts.get("baseline"),
        metrics=_metrics(facts),
        epochs=facts.get("epochs", len(trial.intermediate_values)),
        seconds=facts.get("seconds", 0.0),
        error=facts.get("error"),
        note=facts.get("note"),
        log=facts.get("log"),
        interrupted=facts.get("interrupted", False),
        continues=facts.get("continues"),
        seed_of=facts.get("seed_of"),
        slot=facts.get("slot"),
        effective=facts.get("effective", {}),
        history=facts.get("history", []),
    )


def _metrics(facts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return metrics of the best and the last epoch; recalls of many classes are stored as one text each."""
    recalls = facts.get("recalls", {})
    metrics: dict[str, dict[str, float]] = facts.get("metrics", {"best": {}, "last": {}})
    return {name: values | json.loads(recalls.get(name, "{}")) for name, values in metrics.items()}
