"""What lies in a folder, file by file: to tell whether a command left it as it was."""

import hashlib
from pathlib import Path

Contents = dict[str, tuple[int, str]]
"""Path below the folder -> size and SHA-256 of the file."""


def contents(root: Path) -> Contents:
    """Return every file of a folder."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def changed(before: Contents, after: Contents) -> list[str]:
    """Return the files that came, went or changed."""
    return sorted(path for path, _ in before.items() ^ after.items())
