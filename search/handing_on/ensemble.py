"""Join heads of a study that share one frozen backbone, where that beats its best model beyond noise."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search.config import config_file, resolve
from search.config.study import StudyConfig
from search.errors import StudyError
from search.record import reader, reads
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from search.suggest.space import Space
from search.verdict.ensemble import Judged, Pool
from search.verdict.words import Scale
from search.views import ranking

if TYPE_CHECKING:
    from finetune.model_folder.ensembles import Candidates, Member
    from finetune.training.workers import World

MOST = 16
"""Best heads that may become a part."""


@dataclasses.dataclass(frozen=True)
class Found:
    """The answer to whether an ensemble is worth it."""

    judged: Judged
    parts: dict[str, int]
    """Trials of the ensemble that all validation images choose, and how often each is in it."""
    single: str
    """The best single trial."""
    facts: dict[str, Any] | None
    """Content of its model.yaml; None if it was not exported."""
    metric: str

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        judged, scale = self.judged, Scale(self.metric)
        ahead = f"{scale.gain(judged.gain)} (± {scale.gain(judged.error).lstrip('+')})"
        where = (
            f"{self.metric} on images that did not choose: {judged.ensemble:.4f} against {judged.single:.4f}"
        )
        parts = ", ".join(f"{count} x {name}" for name, count in self.parts.items())
        if self.facts is not None:
            return f"ensemble of {parts}: {ahead} over the best single model, {where}"
        return f"no ensemble: {parts} would be {ahead} over {self.single}, which noise explains; {where}"


def export(folder: StudyFolder, to: Path) -> Found:
    """Write the ensemble of a study's heads to `to` if it beats the best single model beyond noise.

    Weights that were not kept are trained again, from stored features. The test images are read only if the
    ensemble is exported.

    Raises:
        StudyError: the study has fewer than two heads on one frozen backbone, or too few validation images.
        FinetuneError: images or weights have changed, or `to` cannot take a model.
    """
    record, config = reader.read_study(folder), config_file.load(folder.config)
    _check(folder, record, config)
    chosen = _candidates(record, Space(config))
    if len(chosen) < 2:
        raise StudyError(
            f"{folder.root}: an ensemble needs two complete heads on one frozen backbone, got {len(chosen)}. "
            "Run more trials, or export the best one."
        )
    import torch

    from finetune.model_folder.ensembles import Candidates
    from finetune.training.workers import World

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(device=device)
    with _with_weights(folder, config, [*chosen, *_other_best(folder, record, chosen)], world) as members:
        features = dataclasses.replace(resolve.feature_settings(config), test=True)
        candidates = Candidates(members, world=world, features=features)
        pool = _pool(candidates, record.metric, joined=len(chosen))
        try:
            judged = pool.judge(seed=config.study.seed)
        except ValueError as error:
            raise StudyError(f"{folder.root}: {error}. Use a larger validation split.") from None
        counts = pool.choose()
        parts = {m.trial: n for m, n in zip(members, counts, strict=True) if n}
        found = Found(judged, parts, members[pool.single()].trial, None, record.metric)
        if not judged.wins or len(parts) < 2:
            return found
        return dataclasses.replace(found, facts=_write(folder, record, candidates, counts, to, judged))


def _check(folder: StudyFolder, record: StudyRecord, config: StudyConfig) -> None:
    if record.privacy is not None:
        raise StudyError(f"{folder.root}: a private study releases one model, got --ensemble. Leave it out.")
    if config.parts != {"image"}:
        raise StudyError(
            f"{folder.root}: heads for text or clips are not joined, got --ensemble. Leave it out."
        )


def _candidates(record: StudyRecord, space: Space) -> list[TrialRecord]:
    """Return the best complete heads on the frozen backbone whose best head is best, the best first."""
    heads = [
        trial
        for trial in ranking.ranked(record)
        if trial.state == "COMPLETE"
        and record.metric in trial.metrics["best"]
        and not record.breaks(trial)
        and trial.baseline != "scratch"
        and not space.trains(trial.params)
        and space.settings_now(trial, cache_dir="") is not None
    ]

    def backbone(trial: TrialRecord) -> tuple[Any, ...]:
        settings = space.settings_now(trial, cache_dir="")
        assert settings is not None
        return settings.backbone, settings.weights, settings.data.image_size

    mine = [trial for trial in heads if backbone(trial) == backbone(heads[0])]
    return mine[:MOST]


def _other_best(folder: StudyFolder, record: StudyRecord, chosen: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the best trial of the study if it is none of the heads: an ensemble has to beat it, too."""
    best = record.best
    known = {trial.number for trial in chosen}
    if best is None or best.number in known or not folder.best_weights(best.id).exists():
        return []
    return [best]


@contextmanager
def _with_weights(
    folder: StudyFolder, config: StudyConfig, trials: Sequence[TrialRecord], world: "World"
) -> "Iterator[list[Member]]":
    """Yield the trials with their best weights; those that were not kept are trained again."""
    from finetune import steps
    from finetune.model_folder.ensembles import Member

    space = Space(config)
    with tempfile.TemporaryDirectory() as temporary, steps.step("heads", len(trials), "heads") as told:
        members = []
        for trial in trials:
            settings = space.settings_now(trial, cache_dir=str(resolve.cache_dir()))
            assert settings is not None
            path = folder.best_weights(trial.id)
            if not path.exists():
                path = _again(settings, Path(temporary) / trial.id, config, world)
            members.append(Member(trial.id, settings, path))
            told.add()
        yield members


def _again(settings: Any, place: Path, config: StudyConfig, world: "World") -> Path:
    """Train a head again and return its best weights."""
    import torch

    from finetune.messages import Keep
    from finetune.training import loop

    place.mkdir()
    # As in a slot: the products of a head are so small that threads would mostly wait for each other.
    torch.set_num_threads(1)
    keep = Keep(metric=config.study.metric, best=place / "best.safetensors", last=place / "last.safetensors")
    features = resolve.feature_settings(config)
    loop.train(settings, keep=keep, report=lambda message: None, world=world, features=features)
    return keep.best


def _pool(candidates: "Candidates", metric: str, joined: int) -> Pool:
    outputs = candidates.outputs("val")
    told = np.stack([one.logits.double().softmax(dim=1).numpy() for one in outputs])
    return Pool(told, outputs[0].labels.numpy(), candidates.classes, metric, joined)


def _write(
    folder: StudyFolder,
    record: StudyRecord,
    candidates: "Candidates",
    counts: Sequence[int],
    to: Path,
    judged: Judged,
) -> dict[str, Any]:
    from finetune.errors import FinetuneError

    entered = reads.enter(folder, record, "ensemble")
    told = {"gain": judged.gain, "error": judged.error}
    provenance = record.provenance | {"study": record.name, "trial": "ensemble", "ensemble": told} | entered
    try:
        return candidates.write(counts, to, provenance)
    except FinetuneError:
        reads.withdraw(folder, entered)
        raise
