"""Labels of a study's training images that may be wrong, for `check --suspects`. Imports torch."""

from pathlib import Path

from finetune import safe_text, steps
from finetune.disk.atomic import replacing
from finetune.explain import doubts
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


def find(config: StudyConfig) -> list[Doubt]:
    """Return training images whose label may be wrong, by features of the study's first backbone.

    Features are read from the store; those that it lacks are computed and kept for the study's trials.

    Raises:
        FinetuneError: data or weights are not as the config says.
    """
    space = Space(config)
    settings = space.settings(space.baseline(EXACT), number=0, cache_dir=str(resolve.cache_dir()))
    with steps.step("ask for labels that may be wrong"):
        return doubts.find(settings, resolve.feature_settings(config))


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
