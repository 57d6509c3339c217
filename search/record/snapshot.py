"""Copy a record into memory as it is now, without changing any file, even while a study writes it.

For a database in write-ahead mode, SQLite makes files beside it (`-wal`, `-shm`) even for a connection that
only reads, and needs write access to the folder for that. Each state that a record can be in has its own
way around this (sqlite.org/wal.html, section "Read-Only Databases", and sqlite.org/uri.html).
"""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from search.errors import StudyError

_MAGIC = b"SQLite format 3\0"
_READ_VERSION = 19
_WRITE_AHEAD = 2
"""Value of the header's read version, at byte 19, in write-ahead mode (sqlite.org/fileformat.html)."""
_TRIES = 5
_BUSY_SECONDS = 10.0
"""Seconds for which SQLite waits if another process is writing."""


def take(path: Path) -> sqlite3.Connection:
    """Return a connection to a copy in memory of the database at `path`.

    Raises:
        StudyError: the file is not an SQLite database, or changes too often to be read.
        sqlite3.Error: the database cannot be read.
        OSError: the file cannot be opened.
    """
    path = Path(os.path.realpath(path))  # -wal and -shm lie beside the file itself, not beside a link to it
    if not path.is_file():
        got = "something else" if path.exists() else "no such file"
        raise StudyError(f"{path}: a record must be a file, got {got}. Restore it from a copy.")
    for _ in range(_TRIES):
        before = _state(path)
        try:
            memory = _take(path)
        except (sqlite3.Error, FileNotFoundError):
            if _state(path) == before:
                raise
            continue  # a study began or ended meanwhile, so the error may be due to that: try again
        if memory is not None:
            return memory
    raise StudyError(f"{path}: a record must hold still to be read, got {_TRIES} changes. Try again.")


def _take(path: Path) -> sqlite3.Connection | None:
    """Return the copy, or None if a study began meanwhile, so that the copy may mix two states."""
    if _beside(path, "-wal").exists():
        if _beside(path, "-shm").exists():
            # A process is writing, or was killed: read its index, or rebuild one in memory.
            return _copy(path, "mode=ro&readonly_shm=1")
        return _copy_elsewhere(path)  # the folder was copied: no index, and SQLite would make one here
    # A process must not open the file of its own SQLite connection by itself: closing it drops the locks of
    # the connection. Reading the header here is safe: a record that is open in write-ahead mode has a -wal,
    # and was dealt with above.
    if _header(path)[_READ_VERSION] == _WRITE_AHEAD:
        before = _state(path)
        memory = _copy(path, "mode=ro&immutable=1")  # nobody has it open
        if _state(path) == before:
            return memory
        memory.close()
        return None
    try:
        return _copy(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if "readonly" not in str(error):
            raise
        # A writer died in the middle of a transaction. SQLite rolls it back in a copy of the files.
        return _copy_elsewhere(path)


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        header = file.read(100)
    rule = f"{path}: a record must be an SQLite database"
    if not header:  # also left by a study that was killed before its first commit
        raise StudyError(
            f"{rule}, got an empty file. Restore it from a copy; if the study had no trial yet, delete the "
            "file, and `resume` begins it."
        )
    if len(header) < 100 or not header.startswith(_MAGIC):
        raise StudyError(f"{rule}, got a file of another kind. Restore it from a copy.")
    return header


def _copy(path: Path, options: str) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as file:
            file.execute("begin")
            file.execute("select count(*) from sqlite_master")  # waits for a writer; `backup` would for ever
            file.backup(memory)
    except BaseException:
        memory.close()
        raise
    return memory


def _copy_elsewhere(path: Path) -> sqlite3.Connection:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for suffix in ("", "-wal", "-journal"):
            if _beside(path, suffix).exists():
                shutil.copyfile(_beside(path, suffix), _beside(copy, suffix))
        return _copy(copy, "mode=rw")


def _state(path: Path) -> tuple[object, ...]:
    """Return facts about the files that change if a study begins or ends, or writes without a -wal."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    names = tuple(_beside(path, suffix).exists() for suffix in ("-wal", "-shm"))
    return status.st_ino, status.st_size, status.st_mtime_ns, *names


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
