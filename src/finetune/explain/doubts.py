"""Find labels of a data set that may be wrong, by features that have not learned them.

Shapes: N training images, D pooled features.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.exact import held_out
from finetune.exact.rows import Rows
from finetune.images.batches import ImageData
from finetune.model.exact_head import ExactShape
from finetune.settings import FeatureSettings, TrialSettings, WeightsSettings
from finetune.suspects import labels
from finetune.training import exact
from finetune.training.run import Run
from finetune.training.workers import World

MOST_BYTES = 2 * 2**30
"""Most features that are looked at."""


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


def source(settings: TrialSettings, stored: FeatureSettings | None, device: torch.device) -> Run:
    """Return a run that trains nothing, whose features are those of the pretrained backbone.

    Args:
        settings: settings of a trial with the data, the backbone and its weights.
        stored: store of features, which gets those that it lacks; None: compute them.
        device: device of the backbone.

    Raises:
        FinetuneError: data or weights are not as the settings say.
    """
    return Run(exact.frozen(settings), World(device=device), stored, shape=ExactShape())


def unlearned(run: Run) -> Run | None:
    """Return a run whose features have not learned the labels of a trained run's images.

    It is the run itself if it trains no block. Blocks that were trained have learned wrong labels too, and
    are not surprised by them: then it is a run with the pretrained backbone; None if that is random.
    """
    if not len(run.model.trunk):
        return run
    if run.settings.weights == WeightsSettings():
        return None
    return source(run.settings, run.features, run.world.device)


def find(data: ImageData, images: Tensor, pooled: Tensor) -> list[Doubt]:
    """Return training images whose label may be wrong, the most doubtful first.

    Args:
        data: the images.
        images: numbers of the training images that are looked at, int64 (N,).
        pooled: their features (N, D), which have not learned the labels, see `unlearned`.
    """
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


def fit(run: Run) -> int:
    """Return the number of images whose features fit into MOST_BYTES."""
    return MOST_BYTES // (4 * run.model.pooled_features)
