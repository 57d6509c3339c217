"""Write the model folder of a study's best trial: in a slot that is still warm, or later in this process."""

import contextlib
import dataclasses
from pathlib import Path

from ray.exceptions import RayError

from finetune.errors import FinetuneError
from finetune.messages import End, ExportJob
from search.config import resolve
from search.config.study import StudyConfig
from search.driver.study_run import StudyRun
from search.errors import SearchError, SlotsLost
from search.record import reader, reads
from search.record.kept import Kept
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder
from search.slots import train_run
from search.views import export, table
from search.views.phases import Phases
from search.views.tensorboard import pictures


def best(study: StudyRun, to: Path) -> str | None:
    """Have a slot write the model folder of the best trial, which reads the test split.

    Args:
        study: the run of the study.
        to: where the folder goes; `final` gets a model that is trained on the validation images, too.

    Returns:
        The reason if that failed, or None.
    """
    folder, warm = study.folder, study.warm
    record = reader.read_study(folder)
    if record.best is None:
        return None
    now = study.space.settings_now(record.best, cache_dir=str(resolve.cache_dir()))
    refit = to == folder.final
    job = ExportJob(
        id="final" if refit else "export",
        checkpoint=folder.best_weights(record.best.id),
        to=to,
        answers=None if refit else folder.trial(record.best.id),
        provenance=record.provenance
        | {"study": record.name, "trial": record.best.id}
        | reads.enter(folder, record, record.best.id),
        settings=now,
        features=resolve.feature_settings(study.config),
        refit=export.refit_of(record, record.best) if refit else None,
    )
    try:
        # `receive` returns an empty list while the slot works, and `warm.get` raises once nobody can answer.
        warm.get(warm.offer(job))
        heard = 0
        while True:
            for message in warm.get(warm.exchange.receive.remote(job.id, heard)):
                heard += 1
                if isinstance(message, End):
                    return message.error if message.state == "failed" else None
    except (RayError, SlotsLost) as error:
        return f"no answer from its slot ({train_run.first_words(error)})"


def add_pictures(study: StudyRun) -> None:
    """Draw what the best models answered, for TensorBoard; a view never ends a study."""
    record, folder = reader.read_study(study.folder), study.folder
    # The best model was exported; of others the trainings with other seeds have left answers.
    kept = {repeat["trial"]: folder.trial(repeat["id"]) for repeat in reversed(record.repeats)}
    kept |= {record.best.id: folder.trial(record.best.id)} if record.best else {}
    for trial in record.trials:
        if trial.id in kept:
            with contextlib.suppress(OSError):
                pictures.add(folder, study.config, trial, study.images.classes, kept[trial.id])


def complete(config: StudyConfig, folder: StudyFolder, phases: Phases) -> StudyRecord:
    """Return the record of a study that is over, after writing in this process what its folder lacks."""
    record = reader.read_study(folder)
    lacking = [folder.best, *[folder.final] * config.study.refit]
    lacking = [] if record.best is None else [to for to in lacking if not export.is_whole(to, record.best.id)]
    if record.best is not None and lacking:
        study = config.study
        kept = Kept(
            folder,
            objective=study.objective,
            count=study.keep_checkpoints,
            earlier=record.trials,
            goal=study.goal,
        )
        kept.sweep(record.trials)
        try:
            with phases.phase("export of the best model"):
                for to in lacking:
                    export.export_trial(folder, None, to, refit=to == folder.final)
        except FinetuneError as error:
            raise failure(folder, str(error)) from error
        record = dataclasses.replace(record, test_reads=reads.of(folder))
    if not folder.table.exists() or folder.table.stat().st_mtime < folder.database.stat().st_mtime:
        table.to_csv(record, folder.table)  # the driver may have died before it wrote the table
    return record


def failure(folder: StudyFolder, problem: str) -> SearchError:
    """Return the error for a model folder that could not be written."""
    return SearchError(
        f"{folder.best}: the best model must be exported, got {problem.removesuffix('.')}. "
        f"The record is whole: see to that, then `python -m search resume {folder.root}` exports it."
    )
