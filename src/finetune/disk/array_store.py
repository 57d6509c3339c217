"""A folder of large arrays that all processes of a node share: computed once, mapped, under a byte budget.

An entry is one array of rows, such as the features of all training images at one cut (array_file.py). When
the budget is reached, entries are evicted that have not been used for long, or that save less time per byte
than the new one. A file named CACHEDIR.TAG marks the folder. Other files in it are neither counted nor
changed.
"""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from finetune import steps
from finetune.disk.array_file import Entry, Layout, Make

IDLE_SECONDS = 3600.0
"""Seconds since an entry was last opened after which any new entry may evict it."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
"""Errors after which an array is not stored; its rows are then computed when they are needed."""
WHY = "kept on this node for later trials"
"""Reason why an entry is computed, for the user who waits."""
TAG = "CACHEDIR.TAG"
"""Name of the file that marks the folder; backup programs skip such folders (bford.info/cachedir)."""
_TAG_TEXT = """\
Signature: 8a477f597d28d172789f06886806bc55
# Features and decoded images, kept by finetune. `python -m search cache --dir DIR --clear` removes them.
"""
_NAME = re.compile(r"([0-9a-f]{24})\.(bin|json|part|sums)")
"""Pattern of the file names of an entry: its key, which is a hash, and the kind of file."""


class Store:
    """The entries of one folder.

    Args:
        root: the folder, used by this node alone; it is created if it is missing.
        budget_bytes: the bytes for the entries of all studies on the node together.
    """

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self.root, self.budget_bytes = root, budget_bytes

    def get(
        self,
        key: str,
        layout: Layout,
        make: Make,
        *,
        worth: float,
        facts: Mapping[str, Any],
        step: str,
        threads: int = 1,
    ) -> Tensor | None:
        """Return all rows of an entry, mapped from its file, after computing those that are missing.

        Args:
            key: the name of the entry, 24 hexadecimal digits: a hash of everything that decides its content.
            layout: the layout of the rows.
            make: computes rows; called for chunks that no other process computes.
            worth: the seconds that a stored byte saves, to compare the entry with others.
            facts: a description of the entry for people.
            step: what computing the rows is called where progress is shown.
            threads: the number of threads that call `make` at the same time.

        Returns:
            The rows (rows, *shape), which may be written to without changing the file; None if the budget or
            the disk has no room for them.
        """
        entry = Entry(self.root, key, layout)
        try:
            # A loop, since another process may remove the entry between filling and opening it.
            while (found := entry.open()) is None:
                if not self._make_room(entry, worth):
                    return None
                with steps.step(step, layout.rows, "images", WHY) as told:
                    about = {"worth": worth, "facts": dict(facts)}
                    entry.fill(make, about, threads=threads, tell=told.to)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            entry.remove()
            return None
        return found

    def is_usable(self) -> bool:
        """True if this process can write to the folder, which is created if it is missing."""
        try:
            self._mark()
        except OSError:
            return False
        return os.access(self.root, os.W_OK)

    def is_marked(self) -> bool:
        """True if the folder has the mark of a store."""
        try:
            return (self.root / TAG).read_text(encoding="utf-8", errors="replace") == _TAG_TEXT
        except OSError:
            return False

    def peek(self, key: str, layout: Layout) -> Tensor | None:
        """Return the rows of an entry if it is complete and undamaged, else None."""
        return Entry(self.root, key, layout).open()

    def entries(self) -> list[dict[str, Any]]:
        """List `key`, `bytes`, `used` (seconds since 1970), `worth`, `facts` of entries, last used first."""
        found = []
        for path in self._files("json"):
            try:
                known = json.loads(path.read_text())
                about = {"worth": float(known["worth"]), "facts": dict(known["facts"])}
                size, used = path.with_suffix(".bin").stat().st_size, path.stat().st_mtime
            except (OSError, ValueError, KeyError, TypeError):
                continue  # removed in the meantime, or damaged
            found.append({"key": path.stem, "bytes": size, "used": used, **about})
        return sorted(found, key=lambda entry: -entry["used"])

    def clear(self) -> int:
        """Remove every entry and return the bytes freed. Processes that have mapped one can still use it."""
        freed = 0
        for path in self._files("bin", "json", "part", "sums"):
            freed += _size(path)
            path.unlink(missing_ok=True)
        return freed

    def _files(self, *kinds: str) -> list[Path]:
        """Return the files of all entries with these suffixes."""
        names = [_NAME.fullmatch(path.name) for path in self.root.glob("*")]
        return [self.root / name[0] for name in names if name is not None and name[2] in kinds]

    def _mark(self) -> None:
        """Create the folder and its mark if they are missing."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not self.is_marked():
            (self.root / TAG).write_text(_TAG_TEXT, encoding="utf-8")

    def _make_room(self, entry: Entry, worth: float) -> bool:
        """Reserve the entry's bytes, evicting others. Return False if the budget has no room for them."""
        self._mark()
        with FileLock(self.root / ".lock"):
            if entry.part.exists() or entry.path.exists():
                return True  # reserved by another process
            # Reserved files count with their full size, so that processes that fill at the same time stay
            # within the budget together.
            used = sum(_size(path) for path in self._files("bin", "part"))
            victims = self._victims(used + entry.layout.bytes - self.budget_bytes, worth)
            if victims is None:
                return False
            for key in victims:
                Entry(self.root, key, entry.layout).remove()
            entry.reserve()
            return True

    def _victims(self, excess: int, worth: float) -> list[str] | None:
        """Return keys of entries whose removal frees `excess` bytes; None if evictable entries have fewer.

        Idle entries go first, the longest idle before others, then those of the least worth below `worth`.
        """
        now = time.time()
        candidates = []
        for entry in self.entries():
            idle = now - entry["used"] > IDLE_SECONDS
            if idle or entry["worth"] < worth:
                candidates.append((not idle, entry["used"] if idle else entry["worth"], entry))
        for part in self._files("part"):
            try:
                used = part.stat().st_mtime
            except FileNotFoundError:
                continue  # it is complete by now, and has another name
            if now - used > IDLE_SECONDS:  # the process that filled it has ended
                candidates.append((False, used, {"key": part.stem, "bytes": _size(part)}))
        chosen = []
        for _, _, entry in sorted(candidates, key=lambda candidate: candidate[:2]):
            if excess <= 0:
                break
            chosen.append(entry["key"])
            excess -= entry["bytes"]
        return chosen if excess <= 0 else None


def _size(path: Path) -> int:
    """Return a file's size in bytes; other processes rename files that they have filled, and remove some."""
    for there in (path, path.with_suffix(".bin")):
        with contextlib.suppress(FileNotFoundError):
            return there.stat().st_size
    return 0
