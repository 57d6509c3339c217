"""The SQLite file of a record, as Optuna's storage: made whole, opened so that a commit lasts, let go of."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import event
from sqlalchemy.pool import Pool, QueuePool

from finetune.disk.filesystems import is_network

STUDY_NAME = "study"
BUSY_SECONDS = 60
"""How long SQLite waits for another process, such as a dashboard, that holds the file."""


def open_storage(path: Path) -> RDBStorage:
    """Return the SQLite storage at `path`, in write-ahead mode with every commit synced to disk."""
    storage = over(lambda: sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False))

    @event.listens_for(storage.engine, "connect")
    def durable(connection: Any, _record: Any) -> None:
        connection.execute(f"pragma journal_mode={'delete' if is_network(path) else 'wal'}")
        connection.execute("pragma synchronous=full")

    storage.engine.dispose()  # connections opened so far lack the pragmas
    return storage


def over(
    connect: Callable[[], sqlite3.Connection], pool: type[Pool] = QueuePool, **options: Any
) -> RDBStorage:
    """Return a storage over connections of ours: as part of a URL, some paths would mean another file."""
    return RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": pool}, **options)


def make(path: Path, direction: StudyDirection) -> None:
    """Make a storage with an empty study; it appears whole.

    Whoever opened one that is half made would make the rest, and then its driver could not.
    """
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        storage = over(lambda: sqlite3.connect(part, check_same_thread=False))
        try:
            optuna.create_study(storage=storage, study_name=STUDY_NAME, direction=direction)
        finally:
            let_go(storage)
        os.replace(part, path)
    finally:
        for suffix in ("", "-journal"):
            path.with_name(f"{part.name}{suffix}").unlink(missing_ok=True)


def let_go(storage: RDBStorage) -> None:
    """Close every connection of a storage."""
    try:
        storage.remove_session()
    finally:
        storage.engine.dispose()
