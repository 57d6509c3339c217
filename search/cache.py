"""What this node keeps for later trials: features of frozen blocks, and decoded images."""

import time
from pathlib import Path
from typing import Any

from search.terminal import console, print_line, print_table


def listing(folder: Path) -> dict[str, Any]:
    """Return the folder, its bytes and its entries, the last used first."""
    from finetune.store import Store

    entries = [
        {"key": e["key"], "bytes": e["bytes"], "idle_seconds": round(time.time() - e["used"]), **e["facts"]}
        for e in Store(folder, 0).entries()
    ]
    return {"dir": str(folder), "bytes": sum(e["bytes"] for e in entries), "entries": entries}


def clear(folder: Path) -> int:
    """Remove everything; return the bytes that were freed. A running study computes anew what it needs."""
    from finetune.store import Store

    return Store(folder, 0).clear()


def show(listed: dict[str, Any]) -> None:
    """Print what `listing` gave as a table."""
    out = console()
    header = ("MiB", "used", "what", "split", "images", "data")
    rows = [
        (
            f"{e['bytes'] / 2**20:.1f}",
            f"{e['idle_seconds'] / 60:.0f} min ago",
            _words(e),
            e["split"],
            str(e["images"]),
            e["data"],
        )
        for e in listed["entries"]
    ]
    print_table(out, header, rows, right=frozenset({"MiB", "used", "images"}))
    print_line(out, f"{listed['dir']}: {len(rows)} entries, {listed['bytes'] / 2**20:.1f} MiB")


def _words(entry: dict[str, Any]) -> str:
    if "backbone" not in entry:
        return "decoded images"
    return f"{entry['backbone']} behind {entry['blocks']} blocks, {entry['view']}"
