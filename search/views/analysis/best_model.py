"""Measurements of the best model: the facts of its folder, and its answers in the record."""

from pathlib import Path
from typing import Any

import yaml

from finetune.disk.filesystems import text_of
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder

_KEPT = ("format", "backbone", "strategy", "classes", "metrics", "calibration", "source_classes")


def model_facts(record: StudyRecord) -> dict[str, Any] | None:
    """Return what `best/model.yaml` says of the best trial's model.

    None if it is not there, is damaged, or is that of another trial.
    """
    if record.best is None:
        return None
    path = StudyFolder(Path(record.folder)).best / "model.yaml"
    try:
        facts = yaml.load(text_of(path), Loader=SafeLoader)
        if facts["provenance"]["trial"] != record.best.id:
            return None
        if not (isinstance(facts["classes"], list) and isinstance(facts["metrics"], dict)):
            return None
        return {name: facts[name] for name in _KEPT if name in facts}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None


SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The fast loader where PyYAML was built with it: a thousand classes are thousands of lines."""
