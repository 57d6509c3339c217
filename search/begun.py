"""Which study a config has begun: a job that is submitted again goes on with that one."""

import re
from pathlib import Path

from search import config_file
from search.layout import StudyFolder
from search.problems import ConfigErrors
from search.study import StudyConfig


def find(config: StudyConfig) -> StudyFolder | None:
    """Return the latest results folder in which a study with this config has begun, or None."""
    found = [folder for folder in folders(Path(config.results)) if _is_of(folder, config)]
    return max(found, key=lambda folder: folder.database.stat().st_mtime, default=None)


def folders(results: Path) -> list[StudyFolder]:
    """Return the studies below a folder of results, by name."""
    return [StudyFolder(path.parent) for path in sorted(results.glob("*/study.yaml"))]


def _is_of(folder: StudyFolder, config: StudyConfig) -> bool:
    if not folder.database.exists():
        return False
    try:
        begun = config_file.load(folder.config)
    except ConfigErrors:  # written by another version
        return False
    # The folder's config is named like the folder, such as NAME-2.
    named = config.study.model_copy(update={"name": begun.study.name})
    own = folder.root.name.removeprefix(config.study.name)
    return config.model_copy(update={"study": named}) == begun and bool(re.fullmatch(r"(-\d+)?", own))
