"""File systems for tests: folders that cannot be written, and ones that are soon full."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, *words: str) -> Iterator[Path]:
    """Mount what `words` say to `mount` at a new folder; a test that may not mount is skipped."""
    place.mkdir()
    done = subprocess.run(["mount", *words, str(place)], capture_output=True) if os.geteuid() == 0 else None
    if done is None or done.returncode != 0:
        pytest.skip("needs root that may mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def read_only(folder: Path, place: Path) -> Iterator[Path]:
    """Show a folder at another place, where nobody may write it, root neither."""
    with mounted(place, "--bind", "-o", "ro", str(folder)):
        with pytest.raises(OSError, match="Read-only"):
            (place / "x").touch()
        yield place


@contextlib.contextmanager
def small(place: Path, size: str) -> Iterator[Path]:
    """Make a file system in memory that holds no more than `size`."""
    with mounted(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield place
