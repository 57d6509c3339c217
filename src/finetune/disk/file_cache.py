"""Keep copies of far files on this node's own disk; the first process that needs one fetches it for the node.

A file is far if a URL names it (s3://, gs:// and all that fsspec opens), or if it is on a network file
system. A copy is one file. Its name is a hash of its location and of its size and version there, and it gets
that name when it is complete. All processes of a node share the folder; a lock lets one of them fetch a file
while the others wait. When the budget is reached, the copies that were used longest ago are removed. A file
for which there is no room is read from its origin.
"""

import hashlib
import os
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from finetune import steps
from finetune.disk.filesystems import is_far, is_network, is_url, open_binary

BUDGET_BYTES = 50 * 2**30
"""Default budget for the copies of all studies on a node; `limit` sets another one."""
CHUNK_BYTES = 4 * 2**20
"""Bytes that are copied at a time."""
LOCKS = 256
"""Number of lock files, and so the most files fetched at the same time. Each name belongs to one of them."""
KEPT_SECONDS = 60.0
"""Seconds for which a used copy is not removed, since another process may be about to open it."""

_NAME = re.compile(r"[0-9a-f]{64}(\.|$)")
"""Pattern of the file name of a copy."""


def limit(budget_bytes: int) -> None:
    """Set the budget that this process applies to all copies of its node; with 0 it makes none."""
    global _budget_bytes
    _budget_bytes = budget_bytes


def here() -> "FileCache":
    """Return the file cache of this node, in its cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return _cache(os.path.join(cache, "finetune", "files"), _budget_bytes)


_budget_bytes = BUDGET_BYTES


@lru_cache(maxsize=8)
def _cache(root: str, budget_bytes: int) -> "FileCache":
    # A cache folder on a network is as far as the files themselves, so it gets no copies.
    return FileCache(Path(root), 0 if is_network(root) else budget_bytes)


@dataclass(frozen=True)
class FileCache:
    """The copies below one folder.

    Args:
        root: the folder, used by this node alone; it is created if it is missing.
        budget_bytes: the bytes for all copies together; with 0 no copy is made.
    """

    root: Path
    budget_bytes: int
    _known: dict[str, Path] = field(default_factory=dict, compare=False, repr=False)
    """Copies that this process has found or fetched, by location."""

    def local(self, location: str) -> Path | None:
        """Return this node's copy of a far file, fetching it first if it is missing.

        Returns:
            The path of the copy, or None if there is no room for it; the caller then reads the original.

        Raises:
            OSError: the file cannot be read; some of fsspec's file systems raise errors of their own.
        """
        known = self._known.get(location)
        if known is not None and _use(known):
            return known
        size, stamp = _about(location)
        name = hashlib.sha256(repr((location, size, stamp)).encode()).hexdigest()
        copy = self.root / (name + os.path.splitext(location)[1].lower())
        self.root.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            # Another process may have fetched it while this one waited for the lock, so look again.
            with FileLock(self.root / f"{int(name, 16) % LOCKS:03d}.lock"):
                if not copy.exists() and not self._fetch(location, copy, size):
                    return None
        if not _use(copy):
            return None  # it was removed again to make room
        self._known[location] = copy
        return copy

    def open(self, location: str) -> BinaryIO:
        """Open a file for reading: its copy if it is far and there is room, else the file itself."""
        copy = self.local(location) if is_far(location) and self.budget_bytes else None
        return open(copy, "rb") if copy else open_binary(location)

    def usage(self) -> tuple[int, int]:
        """Return the number of copies and their bytes."""
        sizes = [_stat(path)[1] for path in self._files()]
        return len(sizes), sum(sizes)

    def clear(self) -> int:
        """Remove every copy and return the bytes freed. Processes that have opened one can still read it."""
        freed = self.usage()[1]
        for path in self._files():
            path.unlink(missing_ok=True)
        return freed

    def _files(self) -> list[Path]:
        """Return the copies, including those being fetched, and no other files of the folder."""
        return [path for path in self.root.glob("*") if _NAME.match(path.name)]

    def _fetch(self, location: str, copy: Path, size: int) -> bool:
        """Copy a file, whole or not at all. Return False if there is no room for it."""
        if not self._make_room(size):
            return False
        part = copy.with_name(f"{copy.name}.{os.getpid()}.part")
        try:
            name = os.path.basename(location)
            with (
                open_binary(location) as source,
                part.open("wb") as target,
                steps.step(f"fetch {name}", size or None, "bytes", "kept on this node", patience=1.0) as told,
            ):
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
                    told.add(len(chunk))
            os.replace(part, copy)
        finally:
            part.unlink(missing_ok=True)
        return True

    def _make_room(self, size: int) -> bool:
        """Remove copies, longest unused first, until the budget has `size` bytes left; False if it cannot."""
        with FileLock(self.root / "room.lock"):
            known = sorted((_stat(path), path) for path in self._files())
            excess = sum(bytes_ for (_, bytes_), _ in known) + size - self.budget_bytes
            for (used, bytes_), path in known:
                if excess <= 0 or used > time.time() - KEPT_SECONDS:
                    break
                path.unlink(missing_ok=True)
                excess -= bytes_
            return excess <= 0


def _about(location: str) -> tuple[int, str]:
    """Return the size of a file at its origin, and its time or version there."""
    if not is_url(location):
        found = os.stat(location)
        return found.st_size, str(found.st_mtime_ns)
    import fsspec  # 0.1 s that local files need not wait for

    filesystem, inner = fsspec.core.url_to_fs(location)
    about: dict[str, Any] = filesystem.info(inner)
    stamps = ("ETag", "etag", "md5Hash", "version_id", "generation", "mtime", "LastModified", "created")
    return int(about["size"] or 0), repr([str(about[name]) for name in stamps if name in about])


def _use(copy: Path) -> bool:
    """Mark a copy as used now. Return False if it was removed."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _stat(path: Path) -> tuple[float, int]:
    """Return the time of a copy's last use and its bytes; both are 0 if it was removed."""
    try:
        found = path.stat()
        return found.st_mtime, found.st_size
    except OSError:
        return 0.0, 0
