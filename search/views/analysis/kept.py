"""What a study keeps about its best model beside the record: answers, mistakes, and what explains them."""

import json
from pathlib import Path
from typing import Any

from finetune.disk.filesystems import text_of
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder
from search.verdict import contest
from search.verdict.answers import Answers


def split_of(model: dict[str, Any]) -> str:
    """Return the images on which the best model is shown: `test`, or `validation` where there are none."""
    return "test" if model["metrics"].get("test") else "validation"


def answers(study: StudyRecord, model: dict[str, Any] | None) -> Answers | None:
    """Return the best model's answers on the images of `split_of`; None where the record has none."""
    if study.best is None or model is None:
        return None
    path = StudyFolder(Path(study.folder)).answers(study.best.id)
    try:
        found = contest.load_answers(path, "test" if split_of(model) == "test" else "val")
    except (OSError, KeyError, ValueError):  # never kept, or damaged
        return None
    return found if found.labels.size and found.labels.max() < len(model["classes"]) else None


def mistakes(study: StudyRecord) -> list[dict[str, Any]]:
    """Return the most confident mistakes of the best model, with pictures; none where there are none."""
    if study.best is None:
        return []
    found = _read(StudyFolder(Path(study.folder)).mistakes(study.best.id))
    return found if isinstance(found, list) else []


def explained(study: StudyRecord) -> dict[str, Any]:
    """Return maps and neighbours of the mistakes, and doubtful labels; nothing where there is nothing."""
    if study.best is None:
        return {}
    found = _read(StudyFolder(Path(study.folder)).explained(study.best.id))
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> Any:
    try:
        return json.loads(text_of(path))
    except (OSError, ValueError):  # never kept, or damaged
        return None
