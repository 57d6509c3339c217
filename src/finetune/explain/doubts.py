"""Find labels of a data set that may be wrong, by features that have not learned them.

Shapes: N training images, D pooled features.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.exact import held_out
from finetune.exact.rows import Rows
from finetune.explain import features
from finetune.images.batches import ImageData
from finetune.model.exact_head import ExactShape
from finetune.settings import FeatureSettings, TrialSettings
from finetune.suspects import labels
from finetune.training.run import Run
from finetune.training.workers import World

MOST_BYTES = 2 * 2**30
"""Most features that are looked at; of more images some are left out evenly."""


@dataclass(frozen=True)
class Doubt:
    """A training image whose label may be wrong, in words."""

    image: int
    """Its number among the training images."""
    path: str
    label: str
    given: float
    """Probability of the label."""
    likely: str
    """The most probable class."""
    probability: float
    """Probability of that class."""

    @property
    def line(self) -> str:
        """The image as a line of a list for `data.exclude`: its path, a tab, and why."""
        return (
            f"{self.path}\t# {self.label} {self.given:.3f}, looks like {self.likely} {self.probability:.3f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the doubt as plain values."""
        return asdict(self)


def find(settings: TrialSettings, stored: FeatureSettings | None) -> list[Doubt]:
    """Return training images whose label may be wrong, the most doubtful first.

    Args:
        settings: settings with the data, the backbone and its weights, and strategy `exact`.
        stored: store of features, which gets those that it lacks; None: compute them.

    Raises:
        FinetuneError: data or weights are not as the settings say.
    """
    return of_run(Run(settings, World(), stored, shape=ExactShape()))


def of_run(run: Run) -> list[Doubt]:
    """Return the same for a run that trains no block, so that its features have not learned the labels."""
    images = features.spread(run.data.size("train"), MOST_BYTES // (4 * run.model.pooled_features))
    return _ranked(run.data, images, features.pooled(run, "train", images))


def _ranked(data: ImageData, images: Tensor, pooled: Tensor) -> list[Doubt]:
    names, paths, said = data.classes, data.paths("train"), data.labels("train")[images]
    count = len(images)
    mirrored = torch.zeros(count, dtype=torch.bool)
    groups = data.groups("train")
    rows = Rows(
        pooled,
        None,
        torch.arange(count),
        said,
        torch.ones(count),
        mirrored,
        len(names),
        groups=None if groups is None else groups[images],
    )
    found = []
    for one in labels.rank(held_out.probabilities(rows).numpy(), said.tolist()):
        image = int(images[one.place])
        found.append(
            Doubt(image, paths[image], names[one.label], one.given, names[one.likely], one.probability)
        )
    return found
