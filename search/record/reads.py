"""How often a study's test split was read: whoever reads it for a model enters that beside the record first.

A file to which lines are only appended: models are exported while a study runs and long after. A read that
is killed counts; one that failed before it told a score is taken back by a later line.
"""

import json
import os
import uuid
from datetime import datetime, timezone
from typing import Any

from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder


def enter(folder: StudyFolder, record: StudyRecord, trial: str) -> dict[str, Any]:
    """Enter that the test split is read for a trial, and return what its model folder says of that.

    `test_reads` is how often it was read by now, or None where the study's folder cannot be written;
    `test_read` is this read's own name. A study without a test split says nothing.
    """
    if record.provenance.get("images", {}).get("test") == 0:
        return {}
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    read = uuid.uuid4().hex
    if not _append(folder, {"read": read, "trial": trial, "at": at}):
        return {"test_reads": None}
    return {"test_reads": len(of(folder)), "test_read": read}


def withdraw(folder: StudyFolder, entered: dict[str, Any]) -> None:
    """Take back what `enter` entered: the read failed."""
    if "test_read" in entered:
        _append(folder, {"withdrawn": entered["test_read"]})


def of(folder: StudyFolder) -> tuple[dict[str, Any], ...]:
    """Return each read of the test split, in order: its trial and when.

    A damaged line is a read of an unknown trial.
    """
    try:
        lines = folder.test_reads.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    entries = [_entry(line) for line in lines if line.strip()]
    withdrawn = {entry["withdrawn"] for entry in entries if "withdrawn" in entry}
    return tuple(
        {"trial": entry.get("trial"), "at": entry.get("at")}
        for entry in entries
        if "withdrawn" not in entry and entry.get("read") not in withdrawn
    )


def _entry(line: str) -> dict[str, str]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        return {}
    return entry


def _append(folder: StudyFolder, entry: dict[str, str]) -> bool:
    # The line break comes first: a line that a full disk has cut ends there.
    text = f"\n{json.dumps(entry)}"
    try:
        file = os.open(folder.test_reads, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            return os.write(file, text.encode()) == len(text)
        finally:
            os.close(file)
    except OSError:
        return False
