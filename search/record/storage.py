"""The SQLite file of a record as Optuna's storage: made atomically, opened for durable commits, closed."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import event
from sqlalchemy.pool import Pool, QueuePool

from finetune.disk.atomic import settle
from finetune.disk.filesystems import is_network

OLD_NAME = "study"
"""Optuna's name of every study whose record an earlier version made."""
BUSY_SECONDS = 60
"""Seconds for which SQLite waits if another process, such as a dashboard, has locked the file."""


def open_storage(path: Path) -> RDBStorage:
    """Return the SQLite storage at `path`, with every commit synced to disk.

    It uses a write-ahead log, except on a network file system, where such a log does not work.
    """
    storage = over(lambda: sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False))

    @event.listens_for(storage.engine, "connect")
    def durable(connection: Any, _record: Any) -> None:
        connection.execute(f"pragma journal_mode={'delete' if is_network(path) else 'wal'}")
        connection.execute("pragma synchronous=full")

    storage.engine.dispose()  # connections that are open already lack the pragmas
    return storage


def over(
    connect: Callable[[], sqlite3.Connection], pool: type[Pool] = QueuePool, **options: Any
) -> RDBStorage:
    """Return a storage whose connections come from `connect`.

    A path inside a database URL would not do: some characters in it would make it name another file.
    """
    return RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": pool}, **options)


def make(path: Path, direction: StudyDirection, *, name: str = OLD_NAME) -> None:
    """Make a storage with an empty study called `name`; it appears at `path` only when it is complete.

    A reader that opened it half made would create the missing tables, and then the driver could not.
    """
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        # What this Optuna makes is compatible with it.
        storage = over(lambda: sqlite3.connect(part, check_same_thread=False), skip_compatibility_check=True)
        try:
            optuna.create_study(storage=storage, study_name=name, direction=direction)
        finally:
            let_go(storage)
        settle(part)
        os.replace(part, path)
        settle(path)
    finally:
        for suffix in ("", "-journal"):
            path.with_name(f"{part.name}{suffix}").unlink(missing_ok=True)


def only_study(storage: RDBStorage) -> str | None:
    """Return Optuna's name of the study in a record, which has one; None if it has none or several."""
    # Optuna's own list of names would load and keep the attributes of every study.
    with storage.engine.connect() as connection:
        names = connection.exec_driver_sql("select study_name from studies").scalars().all()
    return str(names[0]) if len(names) == 1 else None


def let_go(storage: RDBStorage) -> None:
    """Close every connection of a storage."""
    try:
        storage.remove_session()
    finally:
        storage.engine.dispose()


def reason(error: BaseException) -> str:
    """Return the cause of an error, without Optuna's and SQLAlchemy's wrappers, as one line."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    text = " ".join(str(error).split())
    return text if isinstance(error, (sqlite3.Error, TypeError)) else f"{type(error).__name__}: {text}"
