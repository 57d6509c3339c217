"""Find the earlier study of a config, so that a job which is submitted again resumes it."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.config import config_file
from search.config.problems import ConfigErrors, shown
from search.config.study import StudyConfig
from search.record.study_folder import StudyFolder

SHOWN = 3
"""Number of changed keys that a message names; it only counts the others."""


def find(config: StudyConfig) -> StudyFolder | None:
    """Return the latest results folder of a study that began with this config, or None."""
    found = [folder for folder in folders(Path(config.results)) if _is_of(folder, config)]
    return max(found, key=lambda folder: folder.database.stat().st_mtime, default=None)


def near(config: StudyConfig) -> str | None:
    """Return a message about the latest study of this name that began with another config, or None."""
    found: list[tuple[float, StudyFolder, list[str]]] = []
    for folder in folders(Path(config.results)):
        if folder.database.exists() and _is_named_like(folder, config):
            with contextlib.suppress(ConfigErrors):  # written by another version
                differ = _differences(config_file.load(folder.config), config)
                found.append((folder.database.stat().st_mtime, folder, differ))
    if not found:
        return None
    _, folder, differ = max(found, key=lambda one: one[0])
    more = [f"{len(differ) - SHOWN} more"] * (len(differ) > SHOWN)
    return (
        f"{folder.root}: this study was begun with {', '.join([*differ[:SHOWN], *more])}, so a "
        "new one begins. To go on with it, change its study.yaml and run "
        f"`python -m search resume {folder.root}`"
    )


def _differences(begun: StudyConfig, config: StudyConfig) -> list[str]:
    before, now = (_flat(one.model_dump(mode="json")) for one in (begun, config))
    return [
        f"{key} {shown(before.get(key))} instead of {shown(now.get(key))}"
        for key in {**now, **before}
        if key != "study.name" and before.get(key) != now.get(key)
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config by dotted key."""
    return {
        f"{section}.{key}" if isinstance(inner, Mapping) else section: value
        for section, inner in values.items()
        for key, value in (inner.items() if isinstance(inner, Mapping) else [("", inner)])
    }


def folders(results: Path) -> list[StudyFolder]:
    """Return the folders of all studies in a folder of results, sorted by name."""
    return [StudyFolder(path.parent) for path in sorted(results.glob("*/study.yaml"))]


def _is_of(folder: StudyFolder, config: StudyConfig) -> bool:
    if not folder.database.exists():
        return False
    try:
        begun = config_file.load(folder.config)
    except ConfigErrors:  # written by another version
        return False
    # The config in a folder has the folder's name, such as NAME-2, as its study's name.
    named = config.study.model_copy(update={"name": begun.study.name})
    return config.model_copy(update={"study": named}) == begun and _is_named_like(folder, config)


def _is_named_like(folder: StudyFolder, config: StudyConfig) -> bool:
    own = folder.root.name.removeprefix(config.study.name)
    return bool(re.fullmatch(r"(-\d+)?", own))
