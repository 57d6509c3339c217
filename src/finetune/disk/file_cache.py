"""Copies of far files on this node's own disk: each is fetched once per node, by whoever needs it first.

Far is what a URL names (s3://, gs://, whatever fsspec opens) and what lies on a network file system. A copy
is one file, named after the hash of where it comes from and what is known of it there; it appears under its
name when it is whole. All processes of a node share the folder; a lock per name lets one of them fetch while
the others wait. When the budget is reached, the copies that were used longest ago make room; a file that has
no room at all is read where it is.
"""

import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from finetune.disk.filesystems import is_far, is_network, is_url, open_binary

BUDGET_BYTES = 50 * 2**30
"""For the copies of all studies on a node, where `limit` was not told another one."""
CHUNK_BYTES = 4 * 2**20
LOCKS = 256
"""Files that are fetched at the same time, at most; each name belongs to one of these."""
KEPT_SECONDS = 60.0
"""A copy that was used this recently is not removed: another process may be about to open it."""

_NAME = re.compile(r"[0-9a-f]{64}(\.|$)")
"""Of a copy."""


def limit(budget_bytes: int) -> None:
    """Set what this process lets all copies on its node take, from now on; 0: it makes none."""
    global _budget_bytes
    _budget_bytes = budget_bytes


def here() -> "FileCache":
    """Return the file cache of this node, in its cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return _cache(os.path.join(cache, "finetune", "files"), _budget_bytes)


_budget_bytes = BUDGET_BYTES


@lru_cache(maxsize=8)
def _cache(root: str, budget_bytes: int) -> "FileCache":
    return FileCache(Path(root), 0 if is_network(root) else budget_bytes)  # there it is as far as the file


@dataclass(frozen=True)
class FileCache:
    """The copies below one folder.

    Args:
        root: of this node alone; made where it is missing.
        budget_bytes: for all copies together; 0: none is made.
    """

    root: Path
    budget_bytes: int
    _known: dict[str, Path] = field(default_factory=dict, compare=False, repr=False)
    """What this process found or fetched: location -> copy."""

    def local(self, location: str) -> Path | None:
        """Return this node's copy of a far file, fetching it first where it is missing.

        Returns:
            None where there is no room for it: then it is to be read where it is.

        Raises:
            OSError: it cannot be read; some of fsspec's file systems raise errors of their own.
        """
        known = self._known.get(location)
        if known is not None and _use(known):
            return known
        size, stamp = _about(location)
        name = hashlib.sha256(repr((location, size, stamp)).encode()).hexdigest()
        copy = self.root / (name + os.path.splitext(location)[1].lower())
        self.root.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            with FileLock(self.root / f"{int(name, 16) % LOCKS:03d}.lock"):
                if not copy.exists() and not self._fetch(location, copy, size):
                    return None
        if not _use(copy):
            return None  # gone again, for room
        self._known[location] = copy
        return copy

    def open(self, location: str) -> BinaryIO:
        """Open a file for reading: its copy if it is far and there is room, else itself."""
        copy = self.local(location) if is_far(location) and self.budget_bytes else None
        return open(copy, "rb") if copy else open_binary(location)

    def usage(self) -> tuple[int, int]:
        """Return how many copies there are, and their bytes."""
        sizes = [_stat(path)[1] for path in self._files()]
        return len(sizes), sum(sizes)

    def clear(self) -> int:
        """Remove every copy; return how many bytes that freed. Whoever reads one keeps it."""
        freed = self.usage()[1]
        for path in self._files():
            path.unlink(missing_ok=True)
        return freed

    def _files(self) -> list[Path]:
        """Return the copies, those that are being fetched included, and nobody else's files."""
        return [path for path in self.root.glob("*") if _NAME.match(path.name)]

    def _fetch(self, location: str, copy: Path, size: int) -> bool:
        """Copy a file, whole or not at all; False if there is no room for it."""
        if not self._make_room(size):
            return False
        part = copy.with_name(f"{copy.name}.{os.getpid()}.part")
        try:
            with open_binary(location) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
            os.replace(part, copy)
        finally:
            part.unlink(missing_ok=True)
        return True

    def _make_room(self, size: int) -> bool:
        """Remove copies, those used longest ago first, until `size` bytes more are within the budget."""
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
    """Return size and time or version of a file where it comes from."""
    if not is_url(location):
        found = os.stat(location)
        return found.st_size, str(found.st_mtime_ns)
    import fsspec  # 0.1 s that local files need not wait for

    filesystem, inner = fsspec.core.url_to_fs(location)
    about: dict[str, Any] = filesystem.info(inner)
    stamps = ("ETag", "etag", "md5Hash", "version_id", "generation", "mtime", "LastModified", "created")
    return int(about["size"] or 0), repr([str(about[name]) for name in stamps if name in about])


def _use(copy: Path) -> bool:
    """Mark a copy as used now; False if it is gone."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _stat(path: Path) -> tuple[float, int]:
    """Return when a copy was last used, and its bytes; one that is gone counts nothing."""
    try:
        found = path.stat()
        return found.st_mtime, found.st_size
    except OSError:
        return 0.0, 0
