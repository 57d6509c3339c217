"""Write several heads on one frozen backbone as one model folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.disk import checkpoint
from finetune.errors import DataError
from finetune.evaluation import calibration
from finetune.evaluation.outputs import Outputs
from finetune.evaluation.scores import Scores, evaluate
from finetune.model.ensemble import ENSEMBLE, EnsembleHead, mean_logits
from finetune.model.strategies import TransferModel
from finetune.model_folder import files
from finetune.model_folder.writing import SPLITS, described, head_of, trained, write_files
from finetune.settings import ALL, FeatureSettings, TrialSettings
from finetune.training import shared
from finetune.training.run import Run
from finetune.training.workers import World


@dataclass(frozen=True)
class Member:
    """A trained model that may become a part of an ensemble."""

    trial: str
    """Id of its trial."""
    settings: TrialSettings
    """Its settings with today's paths."""
    checkpoint: Path
    """Its best weights."""


class Candidates:
    """Trained models of one study, loaded to be asked and joined.

    Args:
        members: the models, of the same images.
        world: the worker, which must be alone.
        features: store from which features are read.

    Raises:
        CheckpointError: a checkpoint is not intact.
        DataError: the images are missing or have changed.
    """

    def __init__(
        self, members: Sequence[Member], *, world: World, features: FeatureSettings | None = None
    ) -> None:
        self.members, self._world, self._features = tuple(members), world, features
        self._kept: dict[tuple[int, str], Outputs] = {}
        self._runs: dict[int, Run] = {}

    def outputs(self, split: str) -> list[Outputs]:
        """Return the answers of each model on the images of a split."""
        return [self._of(place, split) for place in range(len(self.members))]

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self._run(0).data.classes)

    def write(self, counts: Sequence[int], to: Path, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write an ensemble as the model folder `to`, and measure it on validation and test images.

        Args:
            counts: how often each model is a part; all that are must have the same backbone, wholly frozen.
            to: folder to write; it must be new, empty or a model folder.
            provenance: facts about the study that are added to model.yaml.

        Returns:
            The content of model.yaml.

        Raises:
            CheckpointError: `to` cannot become a model folder.
            ValueError: the parts do not share a frozen backbone.
        """
        files.claim(to)
        places = [place for place, count in enumerate(counts) if count]
        runs = [self._run(place) for place in places]
        _check(runs)
        shares = [counts[place] / sum(counts) for place in places]
        first = runs[0]
        metrics: dict[str, Any] = {"validation": None, "test": None}
        logits: dict[str, Tensor] = {}
        labels: dict[str, Tensor] = {}
        for name, split in SPLITS:
            if first.data.size(split):
                logits[split] = mean_logits([self._of(place, split).logits for place in places], shares)
                labels[split] = first.data.labels(split)
                metrics[name] = _scores(first, logits[split], labels[split])
        members = [
            {**head_of(run), **told} for run, told in zip(runs, self._told(places, shares), strict=True)
        ]
        facts = described(first, metrics, provenance)
        facts |= {"strategy": ENSEMBLE, "head": {"members": members}}
        fitted = calibration.fit(logits["val"], labels["val"])
        told = {name: (logits[split], labels[split]) for name, split in SPLITS if split in logits}
        facts["calibration"] = calibration.facts(fitted, told)
        backbone = shared.backbone(first.settings, self._world.device)
        head = EnsembleHead(backbone.pool, [run.model.head for run in runs], shares)
        write_files(to, TransferModel(backbone, len(backbone.blocks), head), facts, None)
        return facts

    def _told(self, places: Sequence[int], shares: Sequence[float]) -> list[dict[str, Any]]:
        return [
            {"trial": self.members[p].trial, "strategy": self.members[p].settings.strategy, "share": share}
            for p, share in zip(places, shares, strict=True)
        ]

    def _run(self, place: int) -> Run:
        if place not in self._runs:
            member = self.members[place]
            tensors, stored = checkpoint.read(member.checkpoint)
            self._runs[place] = trained(tensors, stored, member.settings, self._world, self._features)
        return self._runs[place]

    def _of(self, place: int, split: str) -> Outputs:
        if (place, split) not in self._kept:
            self._kept[place, split] = self._run(place).measure(split)[1]
        return self._kept[place, split]


def _check(runs: Sequence[Run]) -> None:
    """Raise a ValueError unless all runs have the same frozen backbone and images of the same size."""
    parts = {(r.settings.backbone, r.weights_sha256, r.settings.data.image_size) for r in runs}
    frozen = all(run.settings.frozen_layers == ALL or not len(run.model.trunk) for run in runs)
    if len(parts) > 1 or not frozen:
        raise ValueError(f"an ensemble needs one backbone, wholly frozen, got {sorted(map(str, parts))}")
    if any(run.settings.data.has_parts for run in runs):
        raise DataError("ensembles: samples must be images, got text or several frames. Export one model.")


def _scores(run: Run, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the metrics of an ensemble's answers on a split."""
    scores = Scores(run.data.classes, logits.device)
    found = evaluate(lambda x: x, [(logits, labels)], scores, None)
    return {**found, "images": len(labels)}
