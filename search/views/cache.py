"""List and clear what this node stores for later trials: features, decoded images and copies of far files."""

import time
from pathlib import Path
from typing import Any

from finetune.disk import file_cache
from search.errors import StudyError
from search.views.terminal import console, print_line, print_table


def check(folder: Path) -> None:
    """Raise a StudyError unless the folder is marked as a feature store of ours."""
    from finetune.disk.array_store import TAG, Store

    if not Store(folder, 0).is_marked():
        got = f"one without our {TAG}" if folder.is_dir() else "no folder"
        raise StudyError(
            f"{folder}: --dir must be the features.dir of a study, got {got}. Nothing was touched: "
            "correct it, or leave it out for this node's own cache."
        )


def listing(folder: Path) -> dict[str, Any]:
    """Return the entries of a feature store, the last used first, and the sums of stored bytes and copies.

    Returns:
        `dir`, `bytes` and `entries` of the store, and `copies`, with `dir`, `bytes` and `files`.
    """
    from finetune.disk.array_store import Store

    entries = [
        {"key": e["key"], "bytes": e["bytes"], "idle_seconds": round(time.time() - e["used"]), **e["facts"]}
        for e in Store(folder, 0).entries()
    ]
    copies = file_cache.here()
    files, size = copies.usage()
    return {
        "dir": str(folder),
        "bytes": sum(e["bytes"] for e in entries),
        "entries": entries,
        "copies": {"dir": str(copies.root), "bytes": size, "files": files},
    }


def clear(folder: Path, *, copies: bool) -> int:
    """Remove all features, and with `copies` the copies of far files; return the number of bytes freed.

    A running study computes again what it needs.
    """
    from finetune.disk.array_store import Store

    return Store(folder, 0).clear() + (file_cache.here().clear() if copies else 0)


def show(listed: dict[str, Any]) -> None:
    """Print the result of `listing` as a table."""
    out = console()
    header = ("MiB", "used", "what", "split", "images", "data")
    rows = [
        (
            f"{e['bytes'] / 2**20:.1f}",
            f"{e['idle_seconds'] / 60:.0f} min ago",
            _words(e),
            *(str(e.get(fact, "-")) for fact in ("split", "images", "data")),
        )
        for e in listed["entries"]
    ]
    print_table(out, header, rows, right=frozenset({"MiB", "used", "images"}))
    print_line(out, f"{listed['dir']}: {len(rows)} entries, {listed['bytes'] / 2**20:.1f} MiB")
    copies = listed["copies"]
    what = f"{copies['files']} copies of far files, {copies['bytes'] / 2**20:.1f} MiB"
    print_line(out, f"{copies['dir']}: {what}")


def _words(entry: dict[str, Any]) -> str:
    if "backbone" not in entry:
        return "decoded images"
    return f"{entry['backbone']} behind {entry.get('blocks', '?')} blocks, {entry.get('view', '?')}"
