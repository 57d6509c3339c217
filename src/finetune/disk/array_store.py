"""A folder of large arrays that all processes of a node share: computed once, mapped, under a byte budget.

An entry is one array of rows, such as the features of all training images at one cut (array_file.py).
When the budget is reached, entries make room that have not been used for long, or that save less time per
byte than the new one. A file by the name of CACHEDIR.TAG marks the folder; other people's files in it are
neither counted nor touched.
"""

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

from finetune.disk.array_file import Entry, Layout, Make

IDLE_SECONDS = 3600.0
"""An entry that nobody has opened for so long makes room for any other."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
"""Reasons for which nothing can be stored; features are then computed afresh."""
TAG = "CACHEDIR.TAG"
"""Name of the mark; backup programs know it, too (bford.info/cachedir)."""
_TAG_TEXT = """\
Signature: 8a477f597d28d172789f06886806bc55
# Features and decoded images, kept by finetune. `python -m search cache --dir DIR --clear` removes them.
"""
_NAME = re.compile(r"([0-9a-f]{24})\.(bin|json|part|sums)")
"""Of the files of an entry: its key, which is a hash, and what is in it."""


class Store:
    """The entries of one folder.

    Args:
        root: of this node alone; made where it is missing.
        budget_bytes: for all entries together, of all studies on the node.
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
        threads: int = 1,
    ) -> Tensor | None:
        """Return all rows of an entry (rows, *shape), mapped, computing those that nobody has yet.

        The tensor may be written to, which changes nobody else's copy.

        Args:
            key: names the entry, 24 hexadecimal digits; all that decides its content must be in them.
            layout: of the rows.
            make: computes rows; called for chunks that no other process computes.
            worth: seconds saved per byte, to compare it with other entries.
            facts: about the entry, for people.
            threads: that call `make` at the same time.

        Returns:
            None where the budget, or the disk, has no room for it.
        """
        entry = Entry(self.root, key, layout)
        try:
            while (found := entry.open()) is None:
                if not self._make_room(entry, worth):
                    return None
                entry.fill(make, {"worth": worth, "facts": dict(facts)}, threads=threads)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            entry.remove()
            return None
        return found

    def is_usable(self) -> bool:
        """True if this process can write to the folder, which is made where it is missing."""
        try:
            self._mark()
        except OSError:
            return False
        return os.access(self.root, os.W_OK)

    def is_marked(self) -> bool:
        """True if a store was kept in this folder before."""
        try:
            return (self.root / TAG).read_text(encoding="utf-8", errors="replace") == _TAG_TEXT
        except OSError:
            return False

    def peek(self, key: str, layout: Layout) -> Tensor | None:
        """Return an entry's rows if it is there, whole and sound."""
        return Entry(self.root, key, layout).open()

    def entries(self) -> list[dict[str, Any]]:
        """Return what is there: `key`, `bytes`, `used` (seconds since 1970), `facts`; the last used first."""
        found = []
        for path in self._files("json"):
            try:
                known = json.loads(path.read_text())
                about = {"worth": float(known["worth"]), "facts": dict(known["facts"])}
                size, used = path.with_suffix(".bin").stat().st_size, path.stat().st_mtime
            except (OSError, ValueError, KeyError, TypeError):
                continue  # removed at this moment, or damaged: not an entry
            found.append({"key": path.stem, "bytes": size, "used": used, **about})
        return sorted(found, key=lambda entry: -entry["used"])

    def clear(self) -> int:
        """Remove every entry; return how many bytes that freed. Whoever has one mapped keeps it."""
        freed = 0
        for path in self._files("bin", "json", "part", "sums"):
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
        return freed

    def _files(self, *kinds: str) -> list[Path]:
        """Return the files of all entries that end so."""
        names = [_NAME.fullmatch(path.name) for path in self.root.glob("*")]
        return [self.root / name[0] for name in names if name is not None and name[2] in kinds]

    def _mark(self) -> None:
        """Make the folder, with its mark."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not self.is_marked():
            (self.root / TAG).write_text(_TAG_TEXT, encoding="utf-8")

    def _make_room(self, entry: Entry, worth: float) -> bool:
        """Reserve the entry's bytes; False if the budget has no room for them."""
        self._mark()
        with FileLock(self.root / ".lock"):
            if entry.part.exists() or entry.path.exists():
                return True  # reserved by another process
            used = sum(path.stat().st_size for path in self._files("bin", "part"))
            victims = self._victims(used + entry.layout.bytes - self.budget_bytes, worth)
            if victims is None:
                return False
            for key in victims:
                Entry(self.root, key, entry.layout).remove()
            entry.reserve()
            return True

    def _victims(self, excess: int, worth: float) -> list[str] | None:
        """Return entries to remove that free `excess` bytes, least useful first; None: not enough."""
        now = time.time()
        candidates = []
        for entry in self.entries():
            idle = now - entry["used"] > IDLE_SECONDS
            if idle or entry["worth"] < worth:
                candidates.append((not idle, entry["used"] if idle else entry["worth"], entry))
        for part in self._files("part"):
            used = part.stat().st_mtime
            if now - used > IDLE_SECONDS:  # whoever filled it is gone
                candidates.append((False, used, {"key": part.stem, "bytes": part.stat().st_size}))
        chosen = []
        for _, _, entry in sorted(candidates, key=lambda candidate: candidate[:2]):
            if excess <= 0:
                break
            chosen.append(entry["key"])
            excess -= entry["bytes"]
        return chosen if excess <= 0 else None
