"""Keep what private studies have spent on a data set, in a file that outlives their folders."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.datasets.catalog import Catalog
from search.config.study import StudyConfig
from search.errors import StudyError

if TYPE_CHECKING:
    from finetune.private.search import Plan

FILE = "privacy-spent.jsonl"


@dataclass(frozen=True)
class Spent:
    """Budget that one study had spent when it released its model."""

    id: str
    """Mark of the study's draws; a study that is resumed has the same."""
    study: str
    epsilon: float
    delta: float
    unit: str
    place: str
    """Place of the images."""
    images: str
    """Fingerprint of the images."""
    at: str


def file(config: StudyConfig) -> Path:
    """Return the file in the folder of all studies."""
    return config.folder.parent / FILE


def spend(config: StudyConfig, images: Catalog, planned: "Plan", key: bytes) -> None:
    """Write down what a study spends; it is on the disk before the model is released.

    Raises:
        StudyError: the file cannot be read.
    """
    mark = hashlib.sha256(b"spent" + key).hexdigest()[:16]
    if any(one.id == mark for one in _read(file(config))):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    epsilon, place = planned.noise.study_epsilon, _place(config)
    row = Spent(mark, config.study.name, epsilon, planned.delta, planned.unit, place, images.fingerprint, now)
    with file(config).open("a", encoding="utf-8") as out:
        out.write(json.dumps(asdict(row)) + "\n")
        out.flush()
        os.fsync(out.fileno())


def earlier(config: StudyConfig, images: Catalog) -> list[Spent]:
    """Return what other studies have spent on these images, or on images in the same place.

    Raises:
        StudyError: the file cannot be read.
    """
    place = _place(config)
    return [one for one in _read(file(config)) if one.images == images.fingerprint or one.place == place]


def lines(config: StudyConfig, images: Catalog, planned: "Plan") -> list[str]:
    """Return a warning as lines of text, if the study is not the first one on its images."""
    found = earlier(config, images)
    if not found:
        return []
    epsilon = planned.noise.study_epsilon + sum(one.epsilon for one in found)
    delta = planned.delta + sum(one.delta for one in found)
    return [
        "warning: private studies on the same images add up: with this one, whoever gets all of their models "
        f"knows up to epsilon {epsilon:.3g} at delta {delta:.2g}, by {file(config)}:",
        *(f"  {one.study}: epsilon {one.epsilon:.3g} for each {one.unit}, {one.at[:10]}" for one in found),
    ]


def _place(config: StudyConfig) -> str:
    path = config.data.path
    return config.data.kind if path is None else str(Path(path).absolute())


def _read(path: Path) -> list[Spent]:
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [Spent(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise StudyError(
            f"{path}: what private studies have spent must be readable, got {type(error).__name__}. Restore "
            "the file; without it nobody knows what was given away."
        ) from error
