"""Read the record of a study from its file, which may be in use and is not changed."""

import dataclasses
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from sqlalchemy.pool import StaticPool

from search.config import config_file
from search.errors import StudyError
from search.record import reads, rows, snapshot, storage
from search.record.records import StudyFacts, StudyRecord, TrialRecord, check_types, standing
from search.record.storage import only_study
from search.record.study_folder import StudyFolder, trial_id


def read(path: Path) -> tuple[list[TrialRecord], dict[str, Any]]:
    """Return the trials and the study's facts from a record, which may be in use and is not changed.

    Raises:
        StudyError: the file is damaged, or is not the record of a study.
    """
    try:
        with closing(snapshot.take(path)) as memory:
            return _read(memory)
    except StudyError:
        raise
    except Exception as error:  # SQLite, Optuna and json each raise their own errors for a damaged file
        raise StudyError(
            f"{path}: the record must be one that this version wrote, whole, got {storage.reason(error)}. "
            "Restore it from a copy."
        ) from error


def _read(memory: sqlite3.Connection) -> tuple[list[TrialRecord], dict[str, Any]]:
    # Optuna would read much of a damaged file without complaint: let SQLite check the whole of it first.
    (found,) = memory.execute("pragma integrity_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found.splitlines()[-1])
    try:
        stored = storage.over(lambda: memory, StaticPool, skip_table_creation=True)
    except RuntimeError:
        raise sqlite3.DatabaseError("tables of another version of Optuna") from None
    try:
        if (name := only_study(stored)) is None:
            raise sqlite3.DatabaseError("no study, or several")
        trials, facts = rows.read(memory, name)
    finally:
        storage.let_go(stored)
    known = {field.name for field in dataclasses.fields(StudyFacts)} & set(facts)
    check_types(StudyFacts(**{name: facts[name] for name in known}))
    return [_checked(row) for row in trials], facts


def _checked(row: rows.Row) -> TrialRecord:
    try:
        record = of_facts(row.number, row.state, row.facts, row.epochs)
        check_types(record)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{trial_id(row.number)}: {error}") from error
    return record


def read_study(folder: StudyFolder) -> StudyRecord:
    """Return the record of the study in a results folder.

    Raises:
        StudyError: the folder has no record yet, or the record is damaged.
    """
    config = config_file.load(folder.config)
    if not folder.database.exists():
        raise StudyError(f"{folder.root}: a study must have begun to be read, got no optuna.db. Resume it.")
    trials, facts = read(folder.database)
    state = facts.get("state", "running")
    if state == "running" and not folder.is_held():
        state = "interrupted"  # its driver died without noting the end
    record = StudyRecord(
        name=config.study.name,
        metric=config.study.metric,
        # Of a private study the record holds the released trial alone; the number of the others is secret.
        planned=len(trials)
        if config.privacy.is_on
        else config.study.trials + sum(not trial.counted for trial in standing(trials)),
        privacy=facts.get("privacy"),
        ended=facts.get("ended"),
        plan=facts.get("plan"),
        features=facts.get("features"),
        findings=facts.get("findings"),
        refit=config.study.refit,
        goal=config.study.goal if config.study.goal.measured else None,
        is_open=config.study.is_open,
        epochs=config.study.epochs,
        state=state,
        seconds=facts.get("seconds", 0.0),
        provenance=facts.get("provenance", {}),
        trials=tuple(_with_log(trial, folder) for trial in trials),
        folder=str(folder.root),
        test_reads=reads.of(folder),
        repeats=tuple(facts.get("repeats", ())),
        verdict=facts.get("verdict"),
    )
    try:
        check_types(record)
    except TypeError as error:
        raise StudyError(f"{folder.database}: {error}. Restore it from a copy.") from None
    return record


def _with_log(trial: TrialRecord, folder: StudyFolder) -> TrialRecord:
    """Return a trial whose log is the file in this folder, wherever the folder lay when the trial failed."""
    return trial if trial.log is None else dataclasses.replace(trial, log=str(folder.error(trial.id)))


def to_record(trial: FrozenTrial) -> TrialRecord:
    """Return the plain record of an Optuna trial."""
    return of_facts(trial.number, trial.state.name, trial.user_attrs, len(trial.intermediate_values))


def of_facts(number: int, state: str, facts: Mapping[str, Any], epochs: int) -> TrialRecord:
    """Return the record of a trial from the facts that are stored about it, and its number of epochs."""
    return TrialRecord(
        number=number,
        id=trial_id(number),
        state=state,
        params=facts.get("params", {}),
        baseline=facts.get("baseline"),
        metrics=_metrics(facts),
        epochs=facts.get("epochs", epochs),
        seconds=facts.get("seconds", 0.0),
        searched=facts.get("searched"),
        error=facts.get("error"),
        note=facts.get("note"),
        log=facts.get("log"),
        interrupted=facts.get("interrupted", False),
        continues=facts.get("continues"),
        seed_of=facts.get("seed_of"),
        counted=facts.get("counted", True),
        slot=facts.get("slot"),
        retries=facts.get("retries", 0),
        effective=facts.get("effective", {}),
        measured=facts.get("measured", {}),
        history=facts.get("history", []),
    )


def _metrics(facts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the metrics of the best and the last epoch, including recalls that were stored as one text."""
    recalls = facts.get("recalls", {})
    metrics: dict[str, dict[str, float]] = {"best": {}, "last": {}} | facts.get("metrics", {})
    return {name: values | json.loads(recalls.get(name, "{}")) for name, values in metrics.items()}
