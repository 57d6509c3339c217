"""Labels of a study's training images that may be wrong, for `check --suspects`. Imports torch."""

from pathlib import Path

import torch

from finetune import safe_text, steps
from finetune.datasets.inspection import Vectors
from finetune.disk.atomic import replacing
from finetune.explain import doubts, features
from finetune.explain.doubts import Doubt
from search.config import resolve
from search.config.sections import EXACT
from search.config.study import StudyConfig
from search.errors import StudyError
from search.suggest.space import Space

HEADER = """\
# Training images whose label may be wrong, the most doubtful first. Look at each, and delete the lines whose
# label is right. A study with `data.exclude: {name}` leaves out those that remain.
"""


def find(config: StudyConfig) -> tuple[list[Doubt], Vectors]:
    """Return training images whose label may be wrong, and features of all images, of the first backbone.

    Features are read from the store; those that it lacks are computed, and those of training and validation
    images kept for the study's trials.

    Raises:
        FinetuneError: data or weights are not as the config says.
    """
    space = Space(config)
    settings = space.settings(space.baseline(EXACT), number=0, cache_dir=str(resolve.cache_dir()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with steps.step("ask for labels that may be wrong"):
        run = doubts.source(settings, resolve.feature_settings(config), device)
        images = features.spread(run.data.size("train"), doubts.fit(run))
        rows = features.pooled(run, "train", images)
        found = doubts.find(run.data, images, rows)
        return found, features.by_path(run, images, rows, doubts.fit(run))


def write(found: list[Doubt], to: Path) -> None:
    """Write the images as a list that `data.exclude` takes.

    Raises:
        StudyError: the file cannot be written.
    """
    lines = [safe_text.terminal(doubt.line, keep="\t") for doubt in found]
    try:
        with replacing(to) as temporary:
            text = HEADER.format(name=to.name) + "".join(f"{line}\n" for line in lines)
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise StudyError(
            f"{to}: --suspects must be a file that can be written, got '{error.strerror}'. Choose another."
        ) from error
