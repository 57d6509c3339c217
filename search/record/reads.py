"""Count how often a study's test split was read, in a file beside the record.

A read is entered before it begins. Lines are only ever appended, since models are exported while a study
runs and long after. A read that is killed counts; a read that failed before it gave a score is withdrawn by
a later line.
"""

import json
import os
import uuid
from datetime import datetime, timezone
from typing import Any

from finetune.disk.filesystems import text_of
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder


def enter(folder: StudyFolder, record: StudyRecord, trial: str, *, why: str = "export") -> dict[str, Any]:
    """Enter a read of the test split for a trial, and return the facts about it for the model folder.

    `why` is `export`, or `verdict` for a training with another seed, which chooses nothing.

    `test_reads` is the number of reads so far, this one included, or None if the study's folder cannot be
    written; `test_read` identifies this read. A study without a test split yields no facts.
    """
    if record.provenance.get("images", {}).get("test") == 0:
        return {}
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    read = uuid.uuid4().hex
    if not _append(folder, {"read": read, "trial": trial, "at": at, "why": why}):
        return {"test_reads": None}
    return {"test_reads": len(of(folder)), "test_read": read}


def withdraw(folder: StudyFolder, entered: dict[str, Any]) -> None:
    """Withdraw a read that has failed; `entered` is the result of `enter`."""
    if "test_read" in entered:
        _append(folder, {"withdrawn": entered["test_read"]})


def of(folder: StudyFolder) -> tuple[dict[str, Any], ...]:
    """Return each read of the test split, in order, as its `trial`, its time `at` and `why`.

    A damaged line counts as a read for an unknown trial.
    """
    try:
        lines = text_of(folder.test_reads, errors="replace").splitlines()
    except OSError:
        return ()
    entries = [_entry(line) for line in lines if line.strip()]
    withdrawn = {entry["withdrawn"] for entry in entries if "withdrawn" in entry}
    return tuple(
        {"trial": entry.get("trial"), "at": entry.get("at"), "why": entry.get("why", "export")}
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
    # The line break comes first, so that this entry stays whole if a full disk cut the line before it.
    text = f"\n{json.dumps(entry)}"
    try:
        file = os.open(folder.test_reads, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            return os.write(file, text.encode()) == len(text)
        finally:
            os.close(file)
    except OSError:
        return False
