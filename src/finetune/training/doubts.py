"""Labels of a data set that may be wrong, by the features of a pretrained backbone."""

import dataclasses

from finetune.exact import held_out
from finetune.model.exact_head import ExactShape
from finetune.settings import FeatureSettings, TrialSettings
from finetune.suspects import labels
from finetune.training import exact
from finetune.training.run import Run
from finetune.training.workers import World


@dataclasses.dataclass(frozen=True)
class Doubt:
    """A training image whose label may be wrong, in words."""

    path: str
    label: str
    given: float
    """Probability of the label."""
    likely: str
    """The most probable class."""
    probability: float

    @property
    def line(self) -> str:
        """The image as a line of a list for `data.exclude`: its path, a tab, and why."""
        return (
            f"{self.path}\t# {self.label} {self.given:.3f}, looks like {self.likely} {self.probability:.3f}"
        )


def find(
    settings: TrialSettings, features: FeatureSettings | None, world: World | None = None
) -> list[Doubt]:
    """Return training images whose label may be wrong, the most doubtful first.

    Args:
        settings: settings with the data, the backbone and its weights, and strategy `exact`.
        features: store of features, which gets those that it lacks; None: compute them.
        world: one worker; None: on the CPU.

    Raises:
        FinetuneError: data or weights are not as the settings say.
    """
    return of_run(Run(settings, world or World(), features, shape=ExactShape()))


def of_run(run: Run) -> list[Doubt]:
    """Return the same for a run of strategy `exact` with one worker."""
    rows = exact.read(run)
    names, paths = run.data.classes, run.data.paths("train")
    taken = rows.images[rows.plain]
    if len(taken) != len(rows.labels):
        return []
    every = -(
        -run.data.size("train") // len(rows.labels)
    )  # `read` leaves out images that memory has no room for
    return [
        Doubt(paths[one.place * every], names[one.label], one.given, names[one.likely], one.probability)
        for one in labels.rank(held_out.probabilities(rows).numpy(), rows.labels.tolist())
    ]
