"""A record as it is at this moment, in memory: reading changes no file, wherever it lies, whoever writes it.

SQLite makes files beside a database in write-ahead mode (`-wal`, `-shm`) even for a connection that only
reads, and needs a folder that it may write for that. There are ways around it, one for each state that a
record can be in (sqlite.org/wal.html, section "Read-Only Databases", and sqlite.org/uri.html).
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
"""The read version, a byte of the header, of a database in write-ahead mode (sqlite.org/fileformat.html)."""
_TRIES = 5
_BUSY_SECONDS = 10.0
"""How long SQLite waits for a process that writes just now."""


def take(path: Path) -> sqlite3.Connection:
    """Return a connection to a copy in memory of the database at `path`.

    Raises:
        StudyError: it is no SQLite database.
        sqlite3.Error: it cannot be read.
        OSError: the file cannot be opened.
    """
    path = Path(os.path.realpath(path))  # the files beside it stand where the file itself is
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
            continue  # a study began or ended meanwhile
        if memory is not None:
            return memory
    raise StudyError(f"{path}: a record must hold still to be read, got {_TRIES} changes. Try again.")


def _take(path: Path) -> sqlite3.Connection | None:
    """Return the copy; None: a study began meanwhile, so that it may be of two moments."""
    if _beside(path, "-wal").exists():
        if _beside(path, "-shm").exists():
            # Somebody writes, or was killed: their index is only read, or rebuilt in memory.
            return _copy(path, "mode=ro&readonly_shm=1")
        return _copy_elsewhere(path)  # the folder was copied: no index, and SQLite would make one here
    # A process must not open the file of its own SQLite connection itself: closing it drops its locks. One
    # that is in write-ahead mode and in use has a -wal.
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
        # A writer died in the middle of a transaction: what must be undone is undone in the copy.
        return _copy_elsewhere(path)


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(_MAGIC):
        got = "an empty file" if not header else "a file of another kind"
        raise StudyError(f"{path}: a record must be an SQLite database, got {got}. Restore it from a copy.")
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
    """Return what changes when a study begins or ends, or is written without a write-ahead log."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    names = tuple(_beside(path, suffix).exists() for suffix in ("-wal", "-shm"))
    return status.st_ino, status.st_size, status.st_mtime_ns, *names


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
