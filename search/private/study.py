"""Run a private study in this process: its trials take seconds, since features are computed once.

No Ray, since a trial is a matter of seconds and its score and head are secret: they would pass through Ray's
object store, logs and results on every node. On a cluster the study runs on the head node.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from finetune import extras
from finetune.datasets.catalog import Catalog
from finetune.disk import file_cache
from finetune.errors import DataError
from search import provenance
from search.config import resolve
from search.config.study import StudyConfig
from search.private import reads, spending
from search.private.draws import Draws
from search.record import reader
from search.record.ledger import Ledger
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder, trial_id
from search.suggest.space import Space
from search.views import table
from search.views.phases import Phases
from search.views.terminal import console, print_line

if TYPE_CHECKING:
    from finetune.private.search import Images, Plan
    from finetune.private.trial import Outcome
    from finetune.settings import TrialSettings


PRIVATE = "private"
"""Folder, in a study's results, of what must not be released."""


def require() -> None:
    """Check that a private study can run here.

    Raises:
        MissingPackage: the extra `private` is not installed.
    """
    extras.require("private", "privacy.epsilon", ("opacus",))


def plan(config: StudyConfig, images: Catalog) -> "Plan":
    """Return the privacy of a study, before any image is looked at.

    Raises:
        DataError: splits were not given, or a group is in two splits.
        MissingPackage: the extra `private` is not installed.
    """
    require()
    from finetune.private import search as private

    said = config.privacy
    assert said.epsilon is not None
    if images.made:
        raise DataError(
            "privacy: images must be given with their validation split, got splits that would be made: "
            "one image more would move others. Put them into train/, val/ and perhaps test/, or add a column."
        )
    paths = {split: [example.path for example in found] for split, found in images.splits.items()}
    units = private.units_of(paths, said.group)["train"]
    try:
        return private.plan(
            epsilon=said.epsilon,
            delta=None if said.delta == "auto" else said.delta,
            units=int(units.max()) + 1,
            trials=config.study.trials,
            unit=said.unit,
            mechanisms=said.mechanisms,
        )
    except ValueError as error:
        raise DataError(str(error)) from error


def lines(config: StudyConfig, images: Catalog, planned: "Plan") -> list[str]:
    """Return the privacy of a study as lines of text."""
    told = planned.to_dict()
    mean = planned.law.mean
    return [
        f"privacy: epsilon {told['epsilon']:.3g} at delta {planned.delta:.2g} for each {planned.unit}, "
        f"for the whole study: {mean:g} trials on average, of which the best one is released",
        f"privacy: one trial costs epsilon {told['trial_epsilon']:.3g}; released naively, {mean:g} trials "
        f"would cost {told['epsilon_if_all_were_released']:.3g}",
        *spending.lines(config, images, planned),
        *reads.lines(config),
    ]


def run(config: StudyConfig, folder: StudyFolder, images: Catalog, phases: Phases) -> StudyRecord:
    """Run or resume a private study, write its model folder, and return its record: the one released trial.

    The caller holds the study's lock.

    Raises:
        StudyError: config or images are not those that the study began with.
    """
    began = time.monotonic()
    planned = plan(config, images)
    for line in lines(config, images, planned):
        print_line(console(stderr=True), line)
    draws = Draws(folder.root / PRIVATE)
    key = draws.key(config, images.fingerprint)
    with phases.phase("program", "loads torch"):
        import torch

        from finetune.private import search as private
    file_cache.limit(resolve.copies_bytes(config))
    device = torch.device("cuda" if torch.cuda.is_available() and config.resources.gpu else "cpu")
    features = resolve.feature_settings(config)
    data = private.Images(_settings(config), features, device, config.privacy.group)
    outcomes: list[dict[str, Any]] = []

    def told(outcome: "Outcome") -> None:
        outcomes.append({"trial": outcome.number, **outcome.draw.to_dict(), "noisy_accuracy": outcome.score})

    with phases.phase("trials", "their number is secret"):
        best, _ = private.search(planned, key, data, config.backbones, told)
        draws.note(outcomes)
    with phases.phase("release of the best model"):
        spending.spend(config, images, planned, key)
        score = _release(config, folder, planned, key, data, best)
    _record(config, folder, images, planned, best, score, time.monotonic() - began)
    draws.spend()
    record = reader.read_study(folder)
    table.to_csv(record, folder.table)
    return record


def is_over(facts: dict[str, Any]) -> bool:
    """True if a private study has released its model."""
    return facts.get("state") == "finished"


def close(folder: StudyFolder) -> None:
    """Remove the key of a study that is over, in case that its process died before it did."""
    Draws(folder.root / PRIVATE).spend()


def _settings(config: StudyConfig) -> "dict[str, TrialSettings]":
    """Return the settings by which each backbone reads the images."""
    import dataclasses

    space, found = Space(config), {}
    for backbone in config.backbones:
        params = space.baseline("exact", backbone)
        settings = space.settings(params, number=0, cache_dir=str(resolve.cache_dir()))
        found[backbone] = dataclasses.replace(
            settings, data=dataclasses.replace(settings.data, horizontal_flip=False, views=0)
        )
    return found


def _release(
    config: StudyConfig, folder: StudyFolder, planned: "Plan", key: bytes, data: "Images", best: "Outcome"
) -> dict[str, Any]:
    """Write the model folder, and return its scores."""
    from finetune import model_folder
    from finetune.private import search as private

    run, metrics = private.released(planned, key, data, best)
    known = provenance.collect(seed=config.study.seed, data_fingerprint="")
    known |= {"study": config.study.name, "trial": trial_id(0), "test_reads": 1}
    told = planned.to_dict() | {"mechanism": best.draw.to_dict()}
    model_folder.release(run, folder.best, metrics, known, told)
    return metrics


def _record(
    config: StudyConfig,
    folder: StudyFolder,
    images: Catalog,
    planned: "Plan",
    best: "Outcome",
    metrics: dict[str, Any],
    seconds: float,
) -> None:
    """Write the record: the released trial alone."""
    _begin_anew(folder.database)
    ledger = Ledger(
        folder.database,
        metric=config.study.metric,
        sampler=optuna.samplers.RandomSampler(),
        name=config.study.name,
    )
    try:
        trial = ledger.ask()
        params = {"strategy": "private", **best.draw.to_dict()}
        ledger.suggested(trial.number, {"params": params})
        score = metrics["validation"]["accuracy"]
        scores = {"epoch": 1, config.study.metric: score}
        note = (
            f"the released one of a secret number of trials; its score has noise of "
            f"{100 * planned.noise.one_shot / max(1, len(images.splits['val'])):.1f} points"
        )
        facts = {"metrics": {"best": scores, "last": scores}, "epochs": 1, "seconds": seconds, "note": note}
        ledger.end(trial.number, "COMPLETE", score, facts)
        known = provenance.collect(seed=config.study.seed, data_fingerprint=images.fingerprint)
        counts = {split: len(found) for split, found in images.splits.items()}
        ledger.set_fact("provenance", known | {"images": counts, "classes": list(images.classes)})
        ledger.set_fact("privacy", planned.to_dict())
        ledger.set_fact("seconds", round(seconds, 3))
        ledger.flush()
        ledger.set_fact("state", "finished")
    finally:
        ledger.close()


def _begin_anew(database: Path) -> None:
    """Remove a record that was not finished: it follows from the key, and is written again."""
    for name in (database.name, f"{database.name}-wal", f"{database.name}-shm"):
        path = database.with_name(name)
        if path.exists():
            os.unlink(path)
