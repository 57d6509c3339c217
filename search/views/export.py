"""Write the model folder of a trial in this process; during a study a slot writes that of the best trial."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from finetune.disk.filesystems import text_of
from finetune.messages import Refit
from search.config import config_file, resolve
from search.config.study import StudyConfig
from search.errors import StudyError
from search.record import reader, reads
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from search.suggest.space import Space
from search.views.tensorboard import pictures


def export_trial(
    folder: StudyFolder,
    number: int | None,
    to: Path,
    formats: Sequence[str] = (),
    *,
    refit: bool | None = None,
) -> dict[str, Any]:
    """Write the model folder of trial `number`, or of the best one, and return the content of its model.yaml.

    This measures the model on the test images, which the record counts. `formats` are added beside it. With
    `refit` the settings are trained again on training and validation images together; None: as `study.refit`.

    Raises:
        StudyError: the study has no such trial, or none that completed.
        CheckpointError: the trial's weights were not kept, `to` cannot take a model, or a file does not
            answer as the model does.
        MissingPackage: a format needs a package that is not installed.
    """
    record = reader.read_study(folder)
    if record.privacy is not None:
        raise StudyError(
            f"{folder.root}: a private study releases one model, with noisy scores, once; got an export that "
            f"would measure it again. Its model is {folder.best}: `export {folder.best} --to ...` copies it."
        )
    trial = _chosen(record, number)
    import torch

    from finetune import model_folder
    from finetune.errors import FinetuneError
    from finetune.handing_on import formats as writers
    from finetune.training.workers import World

    writers.check(formats)
    config = config_file.load(folder.config)
    refit = config.study.refit if refit is None else refit
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entered = reads.enter(folder, record, trial.id)
    provenance = record.provenance | {"study": record.name, "trial": trial.id} | entered
    now = Space(config).settings_now(trial, cache_dir=str(resolve.cache_dir()))
    try:
        facts = model_folder.write(
            folder.best_weights(trial.id),
            to,
            provenance,
            world=World(device=device),
            now=now,
            answers=None if refit else folder.trial(trial.id),
            refit=refit_of(record, trial) if refit else None,
            features=resolve.feature_settings(config) if refit else None,
        )
        with suppress(OSError):  # the folder may be read-only, and the model is whole
            pictures.add(folder, config, trial, facts["classes"])
    except FinetuneError:
        reads.withdraw(folder, entered)
        raise
    return writers.add(to, formats, place=_place(config)) if formats else facts


def refit_of(record: StudyRecord, trial: TrialRecord) -> Refit:
    """Return how a trial's settings are trained on training and validation images together."""
    return Refit(metric=record.metric, limit=trial.effective.get("learning_rate_limit"))


def convert(model: Path, to: Path, formats: Sequence[str]) -> dict[str, Any]:
    """Copy a model folder to `to`, unless that is the same folder, and add files of other formats to it.

    No test image is read.

    Raises:
        FinetuneError: `model` is not whole, `to` cannot take a model, or a format cannot be written.
    """
    from finetune import model_folder
    from finetune.handing_on import formats as writers

    writers.check(formats)
    facts = model_folder.load(model).facts  # before anything at `to` is replaced
    if not (to.exists() and to.samefile(model)):
        model_folder.copy(model, to)
        facts.pop("formats", None)  # their files stay behind
        model_folder.describe(to, facts)
    return writers.add(to, formats, place=place_beside(model)) if formats else facts


def place_beside(model: Path) -> dict[str, Any] | None:
    """Return the place of a model's images if its folder lies in that of its study; None if it does not."""
    study = model.absolute().parent / "study.yaml"
    return _place(config_file.load(study)) if study.is_file() else None


def _place(config: StudyConfig) -> dict[str, Any]:
    data = resolve.data_settings(config)
    return {"path": data.path, "exclude": data.exclude}


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the scores and the files of a model folder as lines for people."""
    told = []
    for split, scores in facts["metrics"].items():
        values = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in (scores or {}).items())
        told.append(f"{split}: {', '.join(values) or 'no such split'}")
    for format_, found in facts.get("formats", {}).items():
        parity = found["parity"]
        told.append(
            f"{format_}: {found['file']}, probabilities within {parity['largest_difference']:.1e} of "
            f"PyTorch's, {parity['changed_answers']} of {parity['images']} answers changed"
        )
    return told


def is_model(folder: Path) -> bool:
    """True if a folder is a model folder rather than a study."""
    return (folder / "model.yaml").is_file()


def is_whole(model: Path, trial: str) -> bool:
    """True if `model` is a complete model folder of the trial with this id."""
    try:
        facts = yaml.safe_load(text_of(model / "model.yaml"))
        provenance = facts["provenance"]
        digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return False
    # README.md is written last, so where it exists everything does.
    same = (provenance.get("trial"), provenance.get("model_sha256")) == (trial, digest)
    return same and (model / "README.md").is_file()


def _chosen(record: StudyRecord, number: int | None) -> TrialRecord:
    if number is None:
        if record.best is None:
            raise StudyError(
                f"{record.folder}: a trial must have completed to be exported, got none. "
                "See `results` for why, or name one with --trial."
            )
        return record.best
    for trial in record.trials:
        if trial.number == number:
            return trial
    raise StudyError(f"{record.folder}: --trial must be one of 0 to {len(record.trials) - 1}, got {number}.")
