"""Findings of `check` about images, kept on this node for the studies that train on the same images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.disk.filesystems import text_of
from search.config import resolve
from search.record.study_folder import write_text

ABOUT_IMAGES = ("in_two_splits", "two_labels", "twice", "near_copies", "near_labels", "nearly_twice")
"""Checks whose findings are kept, besides those named `shortcut_...`."""


def keep(inspected: Mapping[str, Any]) -> None:
    """Keep what an inspection says about copies and shortcuts; a folder that takes no file keeps nothing."""
    found = [one for one in inspected["findings"] if _is_kept(one["check"])]
    try:
        write_text(_file(inspected["fingerprint"]), json.dumps(found))
    except OSError:
        return


def kept(fingerprint: str) -> list[dict[str, Any]] | None:
    """Return what was found in the images with this fingerprint; None if nobody has checked them here."""
    try:
        found = json.loads(text_of(_file(fingerprint)))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) else None


def _is_kept(check: str) -> bool:
    return check in ABOUT_IMAGES or check.startswith("shortcut_")


def _file(fingerprint: str) -> Path:
    return resolve.cache_dir() / "findings" / f"{fingerprint}.json"
